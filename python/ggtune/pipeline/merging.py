"""Adapters merged into their base, and what the merged file has kept of them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggtune.errors import GgtuneError
from ggtune.evaluate.proved_merge import TUNE_SECONDS, ProvedMerge, merge_and_prove
from ggtune.evaluate.verify import samples_of_run
from ggtune.gguf.merge import AUTO, merge_adapters
from ggtune.run.job import read_settings
from ggtune.run.progress import Reporter
from ggtune.run.status import read_status
from ggtune.train.chosen import Chosen, Which, chosen_adapter
from ggtune.train.samples import RunSamples

_TUNE_SHARE = 0.1  # of the training's seconds


@dataclass(frozen=True)
class MergeOptions:
    """How adapters are merged: the keywords of :func:`merge_adapters` and :func:`merge_and_prove`."""

    outtype: str | None = None  # of the merged tensors: None or "same" each one's own, "auto", or one for all
    seed: int = 0  # of the rounding
    fit: bool = True  # scales, after the rounding, to what the layers read of a text
    tune_seconds: float | None = None  # about how long scales are tuned at most, where there are samples; 0: not at all
    name: str | None = None  # that the model file carries; None: its file name
    threads: int = 0
    force: bool = False  # take an adapter that was trained on another base


def merge(
    base: str | Path,
    adapters: Sequence[tuple[str | Path, float]],
    output: str | Path,
    options: MergeOptions | None = None,
    *,
    samples: RunSamples | None = None,
    reporter: Reporter | None = None,
) -> ProvedMerge:
    """Write ``base`` with the ``adapters`` (file, factor) merged to ``output``.

    With the training's ``samples`` the merge is proved on them, and mended where it has lost too much; without them
    there is no proof. Raises :class:`GgtuneError`; nothing is left of a file that was not taken.
    """
    base, output, files = str(base), Path(output), [(str(path), scale) for path, scale in adapters]
    options = options or MergeOptions()
    how: dict[str, Any] = {**dataclasses.asdict(options), "say": (reporter or Reporter()).note}
    tune_seconds = how.pop("tune_seconds")
    if samples is not None:
        how["tune_seconds"] = TUNE_SECONDS if tune_seconds is None else tune_seconds
        return merge_and_prove(base, files, output, trained=samples.training, held_out=samples.held_out, **how)
    if options.outtype == AUTO:
        raise GgtuneError("the type auto needs samples to measure on: those of the training")
    return ProvedMerge(merge_adapters(base, files, output, **how), None)


@dataclass(frozen=True)
class MergedRun:
    """The adapter of a run that was merged, and the merge."""

    adapter: Chosen
    merge: ProvedMerge


def merge_run(
    folder: str | Path,
    output: str | Path,
    options: MergeOptions | None = None,
    *,
    which: Which = "auto",
    reporter: Reporter | None = None,
) -> MergedRun:
    """Merge the adapter of a run, of the step ``which`` (:func:`chosen_adapter`), and prove it on the run's samples."""
    folder, reporter = Path(folder), reporter or Reporter()
    config = read_settings(folder / "config.json")
    if config is None:
        raise GgtuneError(f"{folder} holds no run: it has no config.json")
    chosen = chosen_adapter(folder, which)
    reporter.note(f"Adapter: {chosen.path}: {chosen.reason}")
    samples = samples_of_run(folder, config)
    options = options or MergeOptions()
    options = dataclasses.replace(options, tune_seconds=tune_seconds_of(folder, options.tune_seconds))
    merged = merge(config.model, [(chosen.path, 1.0)], output, options, samples=samples, reporter=reporter)
    return MergedRun(chosen, merged)


def tune_seconds_of(folder: Path, asked: float | None) -> float:
    """How long the scales of a run's merged file are tuned: what is asked for, or more after a long training."""
    if asked is not None:
        return asked
    try:
        return max(TUNE_SECONDS, _TUNE_SHARE * read_status(folder).elapsed_s)
    except GgtuneError:  # of a run of which only settings and adapter are left
        return TUNE_SECONDS
