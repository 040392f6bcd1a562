"""From files or a run folder to a proof: the samples that the training had, and what the merged file makes of them."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ggtune._native import core
from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.evaluate.proof import Proof, Prover
from ggtune.gguf.adapter_file import read_adapter
from ggtune.gguf.base import adapter_fingerprint, check_base, merged_adapters
from ggtune.run.checkpoint import newest_checkpoint
from ggtune.run.job import read_settings
from ggtune.run.outputs import Outputs
from ggtune.train.chosen import adapter_of_run
from ggtune.train.samples import RunSamples, read_samples


def verify_file(
    merged: Path,
    base: str,
    adapters: Sequence[tuple[str, float]],
    data: str,
    *,
    template: str | None = None,
    system: str | None = None,
    holdout: str = "0",
    threads: int = 0,
    seconds: float = 24.0,
    force: bool = False,
) -> Proof:
    """Prove a merged file on the samples of ``data``, with template and system text of the first adapter.

    Raises :class:`GgtuneError` for files that don't fit each other.
    """
    notes = read_adapter(adapters[0][0]).notes
    given: dict[str, Any] = {
        "template": template or notes.get("template"),
        "system": system if system is not None else notes.get("system"),
    }
    config = TrainConfig(
        model=base, data=data, holdout=holdout, threads=threads, **{k: v for k, v in given.items() if v}
    )
    return _prove(merged, config, adapters, samples_of(config), threads=threads, seconds=seconds, force=force)


def verify_run(folder: Path, *, threads: int = 0, seconds: float = 24.0, force: bool = False) -> Proof:
    """Prove ``model.gguf`` of a run folder. Raises :class:`GgtuneError` where one of its files is missing."""
    merged = folder / "model.gguf"
    config = read_settings(folder / "config.json")
    if config is None or not merged.is_file():
        missing = "config.json" if merged.is_file() else merged.name
        raise GgtuneError(f"{folder} has no {missing}: it is no folder of a `ggtune run` that has merged")
    adapter = _merged_adapter(merged, folder)
    samples = samples_of_run(folder, config)
    return _prove(merged, config, [(str(adapter), 1.0)], samples, threads=threads, seconds=seconds, force=force)


def _merged_adapter(merged: Path, folder: Path) -> Path:
    """Find the adapter of a run that was merged into a file, by its fingerprint: the best one or the last.

    Raises :class:`GgtuneError` where it is neither.
    """
    outputs = Outputs.folder(folder)
    fingerprints = merged_adapters(merged)
    if not fingerprints:
        return adapter_of_run(folder)[0]
    for path in (outputs.best_adapter, outputs.adapter):
        if path.exists() and adapter_fingerprint(read_adapter(path)) in fingerprints:
            return path
    raise GgtuneError(
        f"{merged} is merged from another adapter than {folder} holds now: merge again with "
        f"`ggtune export-lora {folder} --model-out {merged}`"
    )


def samples_of(config: TrainConfig, *, now: datetime.datetime | None = None) -> RunSamples:
    """Read the samples that a run with these settings trains on and holds out."""
    return read_samples(config, core.Model(config.model, vocab_only=True), now=now)


def samples_of_run(folder: Path, config: TrainConfig) -> RunSamples:
    """Read the samples of the run in a folder; templates that write the date write the day of its start."""
    found = newest_checkpoint(Outputs.folder(folder).checkpoint)
    started = found[1].state.started if found is not None else ""
    return samples_of(config, now=datetime.datetime.fromisoformat(started) if started else None)


def _prove(
    merged: Path,
    config: TrainConfig,
    adapters: Sequence[tuple[str, float]],
    samples: RunSamples,
    *,
    threads: int,
    seconds: float,
    force: bool,
) -> Proof:
    for path, _ in adapters:
        check_base(path, config.model, force=force)
    prover = Prover(
        config.model,
        adapters,
        samples.training,
        samples.held_out,
        threads=threads,
        seconds=seconds,
    )
    return prover.with_answers(prover.prove(str(merged)), str(merged))
