"""What commands share that use an Ollama store or a registry: options, help and progress."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ggtune.ollama.manifest import Layer
    from ggtune.ollama.registry.client import TransferOptions
    from ggtune.ollama.registry.report import Report

F = TypeVar("F", bound=Callable[..., Any])

EPILOG = """
Credentials are looked for where the registry asks for them, in this order: GGTUNE_REGISTRY_USERNAME and
GGTUNE_REGISTRY_PASSWORD (or GGTUNE_REGISTRY_TOKEN, an access token) in the environment; Docker's config.json as
`docker login` writes it ($DOCKER_CONFIG or ~/.docker), with its credential helpers; $NETRC or ~/.netrc.
SSL_CERT_FILE names a CA of one's own, a PEM file.

An interrupted transfer is gone on with by the same command.
"""


def store_option(function: F) -> F:
    """Give a command ``--store``, Ollama's model folder."""
    return click.option(
        "--store",
        type=click.Path(path_type=Path),
        help="Ollama's model folder (default: $OLLAMA_MODELS, else ~/.ollama/models).",
    )(function)


def retries_option(function: F) -> F:
    """Give a command ``--retries``, for :class:`ggtune.ollama.registry.retry.RetryPolicy`."""
    return click.option(
        "--retries",
        type=click.IntRange(min=0),
        default=5,
        show_default=True,
        help="Tries after failures in a row, each waiting twice as long.",
    )(function)


def transfer_options(function: F) -> F:
    """Give a command the options of a transfer; it gets ``options`` for them."""

    @click.option("--insecure", is_flag=True, help="Speak plain HTTP, not TLS (or write http:// before the name).")
    @click.option(
        "--timeout",
        "timeout_s",
        type=click.IntRange(1, 86400),
        default=60,
        show_default=True,
        help="How long the registry may be silent.",
        metavar="SECONDS",
    )
    @retries_option
    @functools.wraps(function)
    def command(*arguments: Any, insecure: bool, timeout_s: float, retries: int, **others: Any) -> Any:
        return function(*arguments, options=_options(insecure, timeout_s, retries), **others)

    return command  # type: ignore[return-value]


def _options(insecure: bool, timeout_s: float, retries: int) -> TransferOptions:
    from ggtune.ollama.registry.client import TransferOptions
    from ggtune.ollama.registry.retry import RetryPolicy

    return TransferOptions(insecure=insecure, timeout_s=timeout_s, retry=RetryPolicy(retries=retries))


@contextmanager
def terminal_report() -> Iterator[Report]:
    """Give a report with a bar for each blob on a terminal, and a line for each anywhere.

    A stream that is gone or full (a closed terminal, a log on a full disk) does not end a transfer.
    """
    from tqdm import tqdm

    from ggtune.ollama.registry.report import Report
    from ggtune.system import format_bytes

    class TerminalReport(Report):
        def __init__(self) -> None:
            self._bar: tqdm[Any] | None = None
            self._layer: Layer | None = None
            self._begun = False

        def begin(self, layer: Layer, doing: str) -> None:
            self.close()
            self._layer = layer
            self._begun = False
            with suppress(OSError):
                self._bar = tqdm(
                    total=layer.size,
                    desc=f"{doing} {layer}",
                    unit="B",
                    unit_scale=True,
                    unit_divisor=1024,
                    leave=False,
                    dynamic_ncols=True,
                    file=sys.stderr,
                    disable=None,  # where there is no terminal
                )

        def at(self, done_bytes: int) -> None:
            if self._bar is None or self._bar.disable:
                return
            if not self._begun:  # what was there before says nothing about the speed
                self._begun = True
                self._bar.initial = self._bar.n = done_bytes
            with suppress(OSError):
                self._bar.update(done_bytes - self._bar.n)

        def end(self, outcome: str) -> None:
            self.close()
            if outcome and self._layer is not None:
                with suppress(OSError):
                    click.echo(f"{self._layer} ({format_bytes(self._layer.size)}): {outcome}")

        def note(self, text: str) -> None:
            with suppress(OSError), tqdm.external_write_mode(file=sys.stderr):
                click.echo(text, err=True)

        def close(self) -> None:
            if self._bar is not None:
                with suppress(OSError):
                    self._bar.close()
                self._bar = None

    report = TerminalReport()
    try:
        yield report
    except KeyboardInterrupt:
        report.close()
        click.echo("The same command goes on from here.", err=True)
        raise
    finally:
        report.close()
