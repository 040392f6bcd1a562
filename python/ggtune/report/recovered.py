"""The data card of a run whose folder has none, from data that are still what they were."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from ggtune._native import core
from ggtune.errors import GgtuneError
from ggtune.evaluate.subject import from_here
from ggtune.run.checkpoint import newest_checkpoint
from ggtune.run.job import read_settings
from ggtune.run.outputs import Outputs
from ggtune.train.data_card import data_card
from ggtune.train.samples import read_samples


def recovered_card(folder: Path) -> dict[str, Any]:
    """Read the data of a run again and describe them; nothing where they, or the model, are gone or have changed."""
    try:
        config = read_settings(folder / "config.json")
        found = newest_checkpoint(Outputs.folder(folder).checkpoint)
        if config is None or found is None:
            return {}
        config, state = from_here(config, folder), found[1].state
        now = datetime.datetime.fromisoformat(state.started) if state.started else None
        samples = read_samples(config, core.Model(config.model, vocab_only=True), now=now)
        return data_card(config, samples) if samples.fingerprint() == state.data_fingerprint else {}
    except (GgtuneError, OSError, ValueError):
        return {}
