"""Writes checkpoints in the background, one at a time."""

import threading
from collections import deque
from pathlib import Path
from types import TracebackType

from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import write_adapter
from ggtune.run.checkpoint import Checkpoint, remove_old_checkpoints, save_checkpoint
from ggtune.run.outputs import Outputs

_RETRY_AFTER_S = (2.0, 10.0)


class Saver:
    """A thread that writes checkpoint and adapter file from a snapshot.

    A write that fails leaves the old files, is retried, and is reported by :meth:`messages`; a newer snapshot takes the
    place of one that waits to be retried. :meth:`flush` waits for what is under way.
    """

    def __init__(self, outputs: Outputs, keep: int) -> None:
        self._outputs = outputs
        self._keep = keep
        self._changed = threading.Condition()
        self._waiting: Checkpoint | None = None
        self._writing = False
        self._failures = 0  # of the one that waits, in a row
        self._closing = False
        self._messages: deque[str] = deque()
        self._written_step: int | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Saver":
        self._thread = threading.Thread(target=self._work, name="ggtune-saver", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        assert self._thread is not None
        self._thread.join()

    @property
    def written_step(self) -> int | None:
        """Step of the newest checkpoint that this session has written."""
        with self._changed:
            return self._written_step

    def messages(self) -> list[str]:
        """Return what there is to tell the user, once."""
        with self._changed:
            texts = list(self._messages)
            self._messages.clear()
        return texts

    def submit(self, checkpoint: Checkpoint) -> None:
        """Have it written; waits while the one before is being written."""
        with self._changed:
            self._changed.wait_for(self._is_idle)
            self._waiting, self._failures = checkpoint, 0
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until nothing is being written; what waits to be retried is given up."""
        with self._changed:
            self._changed.wait_for(self._is_idle)
            self._waiting, self._failures = None, 0

    def _is_idle(self) -> bool:
        return not self._writing and (self._waiting is None or self._failures > 0)

    def write_now(self, checkpoint: Checkpoint) -> Path:
        """Write on this thread, after what is under way; where that fails, once more at once.

        Raises :class:`ggtune.files.WriteError` when both fail.
        """
        self.flush()
        try:
            return self._write(checkpoint)
        except GgtuneError:
            return self._write(checkpoint)

    def _work(self) -> None:
        while (checkpoint := self._next()) is not None:
            problem = self._attempt(checkpoint)
            with self._changed:
                self._writing = False
                self._failures = self._failures + 1 if problem else 0
                if problem:
                    self._messages.append(self._failure_text(checkpoint.state.step, problem))
                if not problem or self._failures > len(_RETRY_AFTER_S):
                    self._waiting, self._failures = None, 0
                self._changed.notify_all()

    def _next(self) -> Checkpoint | None:
        """Wait for the next one to write, or to write again; None: there is none any more."""
        with self._changed:
            if self._failures:
                failed, pause_s = self._waiting, _RETRY_AFTER_S[self._failures - 1]
                self._changed.wait_for(lambda: self._closing or self._waiting is not failed, pause_s)
            self._changed.wait_for(lambda: self._closing or self._waiting is not None)
            if self._closing:
                return None
            self._writing = True
            return self._waiting

    def _attempt(self, checkpoint: Checkpoint) -> str | None:
        try:
            self._write(checkpoint)
        except GgtuneError as error:
            return str(error)
        # whatever happens, the thread and with it the run goes on
        except Exception as error:
            return f"can't write the checkpoint of step {checkpoint.state.step}: {type(error).__name__}: {error}"
        return None

    def _failure_text(self, step: int, problem: str) -> str:
        failures = self._failures
        if failures <= len(_RETRY_AFTER_S):
            then = f"tried again in {_RETRY_AFTER_S[failures - 1]:.0f} s"
        else:
            then = f"given up for step {step}; the run goes on, and the next checkpoint is tried"
        return f"warning: {problem}: {then}"

    def _write(self, checkpoint: Checkpoint) -> Path:
        outputs, step = self._outputs, checkpoint.state.step
        path = Outputs.at_step(outputs.checkpoint, step)
        save_checkpoint(path, checkpoint)
        outputs.update_latest(outputs.checkpoint, step)
        write_adapter(Outputs.at_step(outputs.adapter, step), checkpoint.adapter)
        outputs.update_latest(outputs.adapter, step)
        remove_old_checkpoints(outputs.checkpoint, self._keep, checkpoint.state.monitor.get("best_step"))
        with self._changed:
            self._written_step = step
        return path
