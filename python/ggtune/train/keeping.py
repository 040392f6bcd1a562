"""When a run is saved, and that its last step is."""

import dataclasses
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ggtune.config import TrainConfig
from ggtune.gguf.adapter_file import adapter_content, write_adapter
from ggtune.run.checkpoint import Checkpoint, State
from ggtune.run.outputs import Outputs
from ggtune.run.saver import Saver
from ggtune.setting_texts import SaveInterval
from ggtune.train.monitor import Monitor

if TYPE_CHECKING:
    from ggtune._core import Trainer


class Keeper:
    """Makes checkpoints of an engine, and has them written in the background (:class:`Saver`).

    A context manager, as that is.
    """

    def __init__(self, outputs: Outputs, config: TrainConfig, engine: "Trainer", start_step: int) -> None:
        self._outputs = outputs
        self._config = config
        self._engine = engine
        self._saver = Saver(outputs, config.keep)
        self._interval = SaveInterval.parse(config.save_every)
        self._saved_at = time.monotonic()
        self._saved_step = start_step or None
        self._start_step = start_step
        self.messages = self._saver.messages
        self.flush = self._saver.flush

    def __enter__(self) -> "Keeper":
        self._saver.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._saver.__exit__(kind, error, trace)

    def is_due(self, step: int) -> bool:
        """Whether it is time for a checkpoint."""
        if self._interval.steps is not None:
            return step % self._interval.steps == 0
        return self._interval.seconds is not None and time.monotonic() - self._saved_at >= self._interval.seconds

    def submit(self, state: State, monitor: Monitor) -> None:
        """Have a checkpoint written."""
        self._saver.submit(self._snapshot(state, monitor))
        self._saved_step, self._saved_at = state.step, time.monotonic()

    def forget(self) -> None:
        """The checkpoint that is there is not what the run stands at, though it may be of the same step."""
        self._saved_step = None

    def save(self, state: State, monitor: Monitor) -> Path:
        """See to it that the checkpoint of the last whole step is on the disk. Raises :class:`GgtuneError`."""
        self._saver.flush()
        path = Outputs.at_step(self._outputs.checkpoint, state.step)
        written = self._start_step if self._saver.written_step is None else self._saver.written_step
        if not (self._saved_step == written == state.step and path.exists()):
            self._saver.write_now(self._snapshot(state, monitor))
        return path

    def save_last(self, state: State, monitor: Monitor) -> None:
        """As :meth:`save`, and the adapter file, too, where nothing was left to train."""
        self.save(state, monitor)
        if self._saver.written_step != state.step:
            adapter = adapter_content(self._engine.adapter, state.adapter_notes)
            write_adapter(Outputs.at_step(self._outputs.adapter, state.step), adapter)
            self._outputs.update_latest(self._outputs.adapter, state.step)

    def _snapshot(self, state: State, monitor: Monitor) -> Checkpoint:
        """Copy all that a checkpoint holds."""
        state = dataclasses.replace(state, monitor=monitor.state(), loss_scale=self._engine.loss_scale)
        adapter = adapter_content(self._engine.adapter, state.adapter_notes)
        return Checkpoint(adapter, self._engine.moments(), state, self._config)
