"""The event logs of a run, all that ``--log`` names: told of each step, closed at the end."""

import functools
from collections.abc import Sequence
from pathlib import Path

from ggtune.config import TrainConfig
from ggtune.run.event_logs.facts import EventLog, Record, RunFacts, past_of, plain_settings
from ggtune.run.event_logs.thread import LogThread
from ggtune.run.observer import Observer
from ggtune.run.outputs import Outputs


def _tensorboard() -> EventLog:
    from ggtune.run.event_logs.tensorboard import TensorBoardLog

    return TensorBoardLog()


def _wandb() -> EventLog:
    from ggtune.run.event_logs.weights_and_biases import WandbLog

    return WandbLog()


def _mlflow() -> EventLog:
    from ggtune.run.event_logs.mlflow_log import MlflowLog

    return MlflowLog()


_LOGS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


class EventLogs(Observer):
    """What ``names`` name, of the run that writes ``outputs``.

    Making it raises :class:`ggtune.errors.GgtuneError` for a library that is missing, and writes nothing.
    """

    def __init__(self, names: Sequence[str], outputs: Outputs) -> None:
        self._logs = {name: _LOGS[name]() for name in dict.fromkeys(names) if name in _LOGS}
        self._outputs = outputs
        self._threads: list[LogThread] = []

    def begin(self, folder: Path, config: TrainConfig, *, started: str, step: int) -> None:
        """Write the logs with what the run's files hold, up to ``step``."""
        metrics, samples = self._outputs.metrics, self._outputs.samples
        for name, log in self._logs.items():
            path = self._outputs.event_log(name)
            facts = RunFacts(path, path.absolute().parent.name, plain_settings(config.to_dict()), started)
            past = functools.partial(past_of, metrics, samples)
            self._threads.append(LogThread(f"the {name} log {path}", log, facts, past))
        self.rewind(step)

    def rewind(self, step: int) -> None:
        """The run goes on from ``step``: its files hold none that is later."""
        for thread in self._threads:
            thread.begin(step)

    def step(self, record: Record) -> None:
        """A step is in ``metrics.jsonl``."""
        for thread in self._threads:
            thread.step(record)

    def answers(self, step: int, lines: Sequence[Record]) -> None:
        """Sampled answers are in ``samples.jsonl``."""
        for thread in self._threads:
            thread.answers(step, lines)

    def messages(self) -> list[str]:
        """Return what there is to tell the user, once."""
        return [text for thread in self._threads for text in thread.messages()]

    def wait(self) -> None:
        """Wait until all that was told is written, or has failed."""
        for thread in self._threads:
            thread.wait()

    def end(self, state: str, reason: str) -> None:
        """Close the logs of a run that is ``state`` now, as in ``status.json``."""
        for thread in self._threads:
            thread.close(state)
        for thread in self._threads:
            thread.join()
