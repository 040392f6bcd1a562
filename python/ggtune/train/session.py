"""A run that is ready to start: built, checked against memory and disk, told of; nothing written yet."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggtune.config import TrainConfig
from ggtune.errors import DeviceMemoryError
from ggtune.gguf.io import model_fingerprint
from ggtune.run.checkpoint import Checkpoint, CheckpointError, State
from ggtune.run.event_logs.logs import EventLogs
from ggtune.run.job import Job
from ggtune.run.observer import Observer
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Progress, Reporter
from ggtune.system import available_memory
from ggtune.train.beside import Beside, beside
from ggtune.train.build import Build, build
from ggtune.train.data_card import DATA_CARD, data_card_text
from ggtune.train.loop import Loop
from ggtune.train.measuring import Asked, asked_of
from ggtune.train.placement import fewer
from ggtune.train.recomputation import set_recomputation
from ggtune.train.report import first_lines
from ggtune.train.resources import check_disk, check_memory, disk_bytes
from ggtune.train.result import Result
from ggtune.version import version

_FEWER_FROM = 64  # layers, where a model did not even load


@dataclass(frozen=True)
class Session:
    """A run that has passed all checks and written nothing yet. ``report`` is for the user."""

    built: Build
    outputs: Outputs
    state: State
    report: tuple[str, ...]
    asked: Asked
    logs: EventLogs

    def loop(
        self,
        progress: Reporter,
        *,
        command: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        observers: Sequence[Observer] = (),
        texts: Mapping[Path, str] | None = None,
    ) -> Loop:
        """Make the loop; ``command``, ``overwrite`` and ``texts`` as in :class:`~ggtune.run.job.Job`."""
        built = self.built
        steps = built.plan.known_steps
        written = dict(texts or {})
        if self.outputs.status is not None:  # a run folder
            written[self.outputs.status.with_name(DATA_CARD)] = data_card_text(built.config, built.samples)
        job = Job(built.config, self.outputs, steps, version(), command or {}, overwrite=overwrite, texts=written)
        observers = [self.logs, *observers]
        return Loop(built, self.outputs, progress, self.state, job, asked=self.asked, observers=observers)


def fine_tune(config: TrainConfig, out: str | Path, *, quiet: bool = False) -> Result:
    """Train an adapter into the run folder ``out``. Raises :class:`GgtuneError` for anything that the user can mend."""
    return prepare(config, Outputs.folder(Path(out))).loop(Progress(quiet=quiet)).run()


def prepare(
    config: TrainConfig, outputs: Outputs, *, checkpoint: Checkpoint | None = None, extra_disk_bytes: int = 0
) -> Session:
    """Load and check everything. Raises :class:`GgtuneError` before anything is written.

    ``extra_disk_bytes`` are what the caller will write beside the run's own files.
    """
    logs = EventLogs(config.log, outputs)  # a library that is missing is said before anything is read
    fingerprint = model_fingerprint(config.model)
    if checkpoint is not None:
        check_same_model(config.model, checkpoint.state, fingerprint)
    started = checkpoint.state.started if checkpoint is not None else ""
    started = started or datetime.datetime.now().isoformat(timespec="seconds")
    built, asked, measured, needed, free, told = _built(config, checkpoint, _time(started))
    config = built.config
    check_memory(config, needed, built.plan.largest[0], free, experts=built.experts)
    outputs.check_writable()
    check_disk(config, outputs, disk_bytes(config, built.adapter, built.plan) + extra_disk_bytes)
    if checkpoint is not None:
        state = dataclasses.replace(checkpoint.state, version=version(), device_layers=built.placement.recorded)
    else:
        state = State(
            step=0,
            n_micro_batches=0,
            epoch=0,
            cursor=0,
            model_fingerprint=fingerprint,
            data_fingerprint=built.samples.fingerprint(),
            data_files=built.samples.file_fingerprints(),
            notes={**built.start.notes, **built.samples.data.report.asked_with(), "base_fingerprint": fingerprint},
            started=started,
            version=version(),
            device_layers=built.placement.recorded,
        )
    return Session(built, outputs, state, (*first_lines(built, needed, measured), *told), asked, logs)


def _built(
    config: TrainConfig, checkpoint: Checkpoint | None, now: datetime.datetime
) -> tuple[Build, Asked, Beside, dict[str, int], int, list[str]]:
    """Build all of it, with memory on devices for its largest micro-batch.

    Where a device has too little of it after all, and their number is open, fewer layers lie there: the last item says
    so. Raises :class:`GgtuneError`.
    """
    told: list[str] = []
    most_layers = None
    while True:
        placement = None
        try:
            built = build(config, checkpoint=checkpoint, now=now, most_layers=most_layers)
            placement = built.placement
            free = available_memory()
            asked = asked_of(built)
            measured = beside(built, asked)
            needed = set_recomputation(built, free - measured.answer_bytes)
            if measured.answer_bytes:
                needed["answers"] = measured.answer_bytes
            if placement.devices:
                built.engine.reserve(*built.plan.largest)
            return built, asked, measured, needed, free, told
        except DeviceMemoryError as error:
            if config.gpu_layers != "auto" or most_layers == 0:
                raise
            most_layers = fewer(placement) if placement is not None else (most_layers or _FEWER_FROM) // 2
            told.append(f"{error} So at most {most_layers} layers are put there.")


def check_same_model(path: str, state: State, fingerprint: str | None = None) -> None:
    """Raise :class:`CheckpointError` where a checkpoint is not of the model at ``path``."""
    if (fingerprint or model_fingerprint(path)) != state.model_fingerprint:
        raise CheckpointError(
            f"the checkpoint was made with another model than {path}: give the model that the run was started with"
        )


def _time(text: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        raise CheckpointError(f"the checkpoint has a wrong time of its start: {text[:40]!r}") from None
