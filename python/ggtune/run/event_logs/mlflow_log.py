"""MLflow by its own client: a folder of runs, ``mlflow/`` in the run folder.

Nothing is sent unless the environment variable ``MLFLOW_TRACKING_URI`` names a server.
"""

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any

from ggtune.extras import need
from ggtune.run.event_logs.facts import Past, Record, RunFacts, by_step, markdown, points
from ggtune.run.status import FINISHED, INTERRUPTED

_MOST = 1000  # metrics of one request; of parameters it takes fewer
_MOST_PARAMETERS = 100
_LONGEST = 6000  # parameter
_IDENTITY = "ggtune.run"
_STATES = {FINISHED: "FINISHED", INTERRUPTED: "KILLED"}


class MlflowLog:
    """A run of MLflow, which holds the whole run of ggtune; that of an earlier session is deleted."""

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # folders are refused without it since 3.10
        self._mlflow = need("mlflow", "mlflow", "--log mlflow")
        self._entities = need("mlflow.entities", "mlflow", "--log mlflow")
        self._client: Any = None
        self._run = ""

    def begin(self, facts: RunFacts, past: Past) -> None:
        """Create a run and give it the steps that there are."""
        server = os.environ.get("MLFLOW_TRACKING_URI")
        client = self._client = self._mlflow.MlflowClient(tracking_uri=server or facts.folder.resolve().as_uri())
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ggtune"
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else client.create_experiment(name)
        mine = f"tags.`{_IDENTITY}` = '{facts.identity}'" if server else ""  # all that is in the run's own folder
        for older in client.search_runs([experiment], filter_string=mine):
            client.delete_run(older.info.run_id)
            if not server:
                shutil.rmtree(facts.folder / experiment / older.info.run_id)
        start_s = datetime.fromisoformat(facts.started).timestamp()
        tags = {_IDENTITY: facts.identity}
        run = client.create_run(experiment, start_time=round(1000 * start_s), tags=tags, run_name=facts.name)
        self._run = run.info.run_id
        settings = [self._entities.Param(key, str(value)[:_LONGEST]) for key, value in facts.settings.items()]
        for at in range(0, len(settings), _MOST_PARAMETERS):
            client.log_batch(self._run, params=settings[at : at + _MOST_PARAMETERS])
        metrics = []
        for record in past.records:
            metrics += self._metrics(record, start_s + record.get("elapsed_s", 0.0))
        for at in range(0, len(metrics), _MOST):
            client.log_batch(self._run, metrics=metrics[at : at + _MOST])
        for step, lines in by_step(past.answers).items():
            self.answers(step, lines)

    def step(self, record: Record) -> None:
        """Log the numbers of a step."""
        self._client.log_batch(self._run, metrics=self._metrics(record, time.time()))

    def answers(self, step: int, lines: Iterable[Record]) -> None:
        """Keep the answers of a step as a page."""
        text = "\n\n---\n\n".join(markdown(line) for line in lines)
        self._client.log_text(self._run, text + "\n", f"answers/step-{step:08}.md")

    def end(self, state: str) -> None:
        """Say how the run has ended."""
        self._client.set_terminated(self._run, _STATES.get(state, "FAILED"))
        self._run = ""

    def abandon(self) -> None:
        """Say that the run has failed, where it was begun."""
        run, self._run = self._run, ""
        if run:
            with suppress(Exception):
                self._client.set_terminated(run, "FAILED")

    def _metrics(self, record: Record, time_s: float) -> list[Any]:
        return [
            self._entities.Metric(name, value, round(1000 * time_s), step)
            for step, values in points(record)
            for name, value in values.items()
        ]
