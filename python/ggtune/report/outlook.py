"""What going on with a run would bring, from the curve of its held-out losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ggtune.report.plots import Forecaster
from ggtune.report.reading import RunRecord


@dataclass(frozen=True)
class Outlook:
    """Sentences for the reader, and the curve with the step up to which it is drawn."""

    sentences: Sequence[str]
    fit: Forecaster | None
    fit_to: int | None


def outlook(run: RunRecord) -> Outlook:
    """Fit the curve of a run and say what another epoch is worth."""
    return Outlook((), None, None)
