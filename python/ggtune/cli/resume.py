"""``ggtune resume``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggtune.cli.background import detach_option, start_detached
from ggtune.cli.options import ConfigCommand, config_options, given_settings
from ggtune.cli.run import Packaging, run
from ggtune.cli.train import train
from ggtune.cli.training import STATUSES, claim_folder, earlier_settings, find_checkpoint, settings
from ggtune.errors import GgtuneError

if TYPE_CHECKING:
    from ggtune.config import TrainConfig


@click.command("resume", cls=ConfigCommand, epilog=STATUSES)
@click.argument("out", type=click.Path(path_type=Path), metavar="RUN")
@config_options("train", leave_out=("from_adapter",))
@detach_option
@click.pass_context
def command(context: click.Context, /, out: Path, detach: bool, **_: Any) -> None:
    """Go on with the run in the folder RUN, from its newest whole checkpoint and with its own settings.

    After an interruption the result is the same as without it. --epochs or --max-steps add to a run that has ended. A
    run started by `ggtune run` is packaged at its end, as it was asked for there.
    """
    from ggtune.run.status import read_status_file

    outputs = claim_folder(out, resume=True, overwrite=False)
    before = earlier_settings(outputs)
    if before is None and not outputs.checkpoints():
        raise GgtuneError(f"{out} holds no run: start one with `ggtune train` or `ggtune run`")
    if detach:
        start_detached(context, out)
        return
    written = read_status_file(out / "status.json")
    checkpoint = find_checkpoint(outputs, resume=True, checkpoint_in=None)
    known = checkpoint.config if checkpoint is not None else before
    names = ("model", "data") if checkpoint is not None else ("model", "data", "from_adapter")
    moved = _moved(known, written, given_settings(context), names) if known is not None else {}
    config = settings(context, "train", checkpoint, before=before, **moved)
    made_by = written.get("command")
    how: dict[str, Any] = made_by if isinstance(made_by, dict) else {}
    if how.get("name") == "run":
        run(config, outputs, checkpoint, Packaging.from_dict(how.get("packaging")))
    else:
        train(config, outputs, checkpoint)


def _moved(
    config: "TrainConfig", written: dict[str, Any], given: dict[str, Any], names: tuple[str, ...]
) -> dict[str, str]:
    """Find files of relative paths from the folder that the run was started in."""
    found = {}
    for name in names:
        path = Path(getattr(config, name))
        there = Path(str(written.get("working_folder", "."))) / path
        if name not in given and not path.is_absolute() and not path.exists() and there.exists():
            found[name] = str(there)
    return found
