"""Weights & Biases by its own client: an offline run in ``wandb/`` of the run folder.

Nothing is sent unless the environment variable ``WANDB_MODE`` says ``online``; ``wandb sync`` uploads an offline run.
"""

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ggtune.extras import need
from ggtune.run.event_logs.facts import Past, Record, RunFacts, by_step, points
from ggtune.run.status import FINISHED

_COLUMNS = ("question", "reference", "answer", "ended")


class WandbLog:
    """A run of the client, which holds the whole run of ggtune.

    Its service takes no step twice, and none that is earlier than the last: where a run goes on or goes back, an
    offline run is removed and written anew under the same id, and online it is another one of the same group.
    """

    def __init__(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own crash reports, read when it is imported
        self._wandb = need("wandb", "wandb", "--log wandb")
        self._run: Any = None

    def begin(self, facts: RunFacts, past: Past) -> None:
        """Start a run and give it the steps that there are."""
        self._close(None)
        mode, identity = os.environ.get("WANDB_MODE") or "offline", facts.identity
        if mode == "online":
            identity = f"{identity}-{time.time_ns():x}"
        else:
            for older in facts.folder.glob("offline-run-*"):
                shutil.rmtree(older)
        facts.folder.mkdir(parents=True, exist_ok=True)
        settings = self._wandb.Settings(
            mode=mode,
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "ggtune",
            dir=str(facts.folder.parent),
            id=identity,
            group=facts.identity,
            name=facts.name,
            config=dict(facts.settings),
            reinit="create_new",
            settings=settings,
        )
        answers = by_step(past.answers)
        for record in past.records:
            for step in sorted(step for step in answers if step < record["step"]):
                self.answers(step, answers.pop(step))
            self.step(record)
        for step in sorted(answers):
            self.answers(step, answers[step])

    def step(self, record: Record) -> None:
        """Log the numbers of a step."""
        for step, values in points(record):
            self._run.log(values, step=step)

    def answers(self, step: int, lines: Iterable[Record]) -> None:
        """Log a table of questions and answers."""
        rows = [[step, *(line.get(name) for name in _COLUMNS)] for line in lines]
        self._run.log({"answers": self._wandb.Table(columns=["step", *_COLUMNS], data=rows)}, step=step)

    def end(self, state: str) -> None:
        """Close the run."""
        self._close(0 if state == FINISHED else 1)

    def abandon(self) -> None:
        """Close the run, whatever comes of it."""
        with suppress(Exception):
            self._close(1)

    def _close(self, status: int | None) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=status)
