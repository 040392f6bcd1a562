"""A training in a folder: the folder claimed, the checkpoint to go on from found, settings settled, steps taken."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggtune.config import Face, TrainConfig, differences, rounding_differences
from ggtune.errors import GgtuneError
from ggtune.run.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint
from ggtune.run.lock import check_free
from ggtune.run.observer import Observer
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Reporter
from ggtune.run.registry import register
from ggtune.train.result import Result, describe
from ggtune.train.session import Session, prepare


@dataclass(frozen=True)
class TrainOptions:
    """What a training is told beside its settings."""

    checkpoint: Checkpoint | None = None  # to go on from
    overwrite: bool = False  # the folder's earlier run
    listed: bool = False  # among the runs of this user, which `ggtune status` shows
    observers: tuple[Observer, ...] = ()


def train(
    config: TrainConfig,
    out: str | Path | Outputs,
    options: TrainOptions | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Train an adapter into the folder ``out``, or into the files that it names.

    Raises :class:`~ggtune.run.interrupts.RunInterruptedError` for a signal, when what there is has been saved, and
    :class:`GgtuneError` for anything else that the user can mend; until the first step nothing is written.
    """
    return train_for(config, out, options or TrainOptions(), reporter or Reporter(), {"name": "train"})


def train_for(
    config: TrainConfig,
    out: str | Path | Outputs,
    options: TrainOptions,
    reporter: Reporter,
    command: Mapping[str, Any],
    *,
    extra_disk_bytes: int = 0,
    prepared: Callable[[Session], Mapping[Path, str]] | None = None,
) -> Result:
    """Train as a part of something: ``command`` says in ``status.json`` what :func:`~ggtune.pipeline.resume` goes on.

    ``extra_disk_bytes`` are what will be written after it. ``prepared`` is called before anything is written, and gives
    texts for files of the run's folder.
    """
    outputs = out
    if not isinstance(outputs, Outputs):
        outputs = claim_folder(outputs, resume=options.checkpoint is not None, overwrite=options.overwrite)
    session = prepare(config, outputs, checkpoint=options.checkpoint, extra_disk_bytes=extra_disk_bytes)
    for line in session.report:
        reporter.note(line)
    texts = prepared(session) if prepared is not None else {}
    if options.listed and outputs.status is not None:
        register(outputs.status.parent)
    loop = session.loop(
        reporter, command=command, overwrite=options.overwrite, observers=options.observers, texts=texts
    )
    result = loop.run()
    for line in describe(result):
        reporter.note(line)
    return result


def claim_folder(out: str | Path, *, resume: bool = False, overwrite: bool = False) -> Outputs:
    """Name the files of a run folder.

    Raises :class:`GgtuneError` where a job is at it, or where it holds a run that was not spoken of.
    """
    out = Path(out)
    outputs = Outputs.folder(out)
    if out.exists() and not out.is_dir():
        raise GgtuneError(f"can't write to the folder {out}: it is a file")
    check_free(outputs.lock)
    if not resume and not overwrite and (there := outputs.existing()):
        raise GgtuneError(
            f"{out} already holds a run ({there[0].name}): give another --out, --resume to go on with it, "
            "or --overwrite to start anew"
        )
    return outputs


def find_checkpoint(outputs: Outputs, file: Path | None = None, reporter: Reporter | None = None) -> Checkpoint | None:
    """Load the checkpoint to go on from: ``file``, or the newest whole one of ``outputs``; None where there is none."""
    reporter = reporter or Reporter()
    if file is not None:
        checkpoint = load_checkpoint(file)
        reporter.note(f"Going on from {file}, after step {checkpoint.state.step}.")
        return checkpoint
    found = newest_checkpoint(outputs.checkpoint)
    if found is None:
        reporter.note(f"No checkpoint {outputs.checkpoint}: starting from the beginning.")
        return None
    path, checkpoint, damaged = found
    for text in damaged:
        reporter.note(f"Passed over: {text}")
    reporter.note(f"Going on from {path}, after step {checkpoint.state.step}.")
    return checkpoint


def settings(
    given: Mapping[str, Any],
    checkpoint: Checkpoint | None,
    before: TrainConfig | None,
    *,
    face: Face = "train",
    reporter: Reporter | None = None,
) -> TrainConfig:
    """Make the configuration: what is given, else what the checkpoint has, else the defaults of ``face``.

    ``before`` are the settings of a run that is started anew: they stand for the defaults. Raises
    :class:`GgtuneError` where a run can't go on so.
    """
    if checkpoint is None:
        return TrainConfig.for_face(face, **given) if before is None else before.continued(given)
    config = checkpoint.config.continued(given)
    if changed := differences(checkpoint.config, config):
        raise GgtuneError(
            "the checkpoint is of a run with other settings: "
            + "; ".join(changed)
            + ". Leave these options out, or start a new run."
        )
    if reporter is not None and (changed := rounding_differences(checkpoint.config, config)):
        reporter.note("Changed: " + "; ".join(changed) + ". The result stays the same but for rounding.")
    return config
