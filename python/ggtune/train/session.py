"""A run that is ready to start: built, checked against memory and disk, told of; nothing written yet."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggtune.config import TrainConfig
from ggtune.gguf.io import model_fingerprint
from ggtune.run.checkpoint import Checkpoint, CheckpointError, State
from ggtune.run.event_logs.logs import EventLogs
from ggtune.run.job import Job
from ggtune.run.observer import Observer
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Progress, Reporter
from ggtune.train.build import Build
from ggtune.train.data_card import DATA_CARD, data_card_text
from ggtune.train.loop import Loop
from ggtune.train.placing import PlacedRun, moved_text, placed_run, places_record
from ggtune.train.report import first_lines
from ggtune.train.resources import check_disk, check_memory, disk_bytes
from ggtune.train.result import Result
from ggtune.version import version


@dataclass(frozen=True)
class Session:
    """A run that has passed all checks and written nothing yet. ``report`` is for the user."""

    placed: PlacedRun
    outputs: Outputs
    state: State
    report: tuple[str, ...]
    logs: EventLogs

    @property
    def built(self) -> Build:
        """What it computes with."""
        return self.placed.built

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
        job = Job(
            built.config,
            self.outputs,
            steps,
            version(),
            command or {},
            overwrite=overwrite,
            texts=written,
            places=places_record(self.placed.devices),
        )
        observers = [self.logs, *observers]
        return Loop(built, self.outputs, progress, self.state, job, asked=self.placed.asked, observers=observers)


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
    placed = placed_run(config, checkpoint=checkpoint, now=_time(started))
    built, config = placed.built, placed.built.config
    check_memory(config, placed.needed, built.plan.largest[0], placed.free_bytes, experts=built.experts)
    outputs.check_writable()
    check_disk(config, outputs, disk_bytes(config, built.adapter, built.plan) + extra_disk_bytes)
    if checkpoint is not None:
        state = dataclasses.replace(checkpoint.state, version=version()).with_places(placed.layer_numbers())
        moved = moved_text(checkpoint.state, state)
    else:
        moved = []
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
        ).with_places(placed.layer_numbers())
    return Session(placed, outputs, state, (*first_lines(placed), *moved), logs)


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
