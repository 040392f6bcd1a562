"""``data_card.json`` of a run folder: what its data are, for whoever looks at the run when they are gone."""

import json
from pathlib import Path
from typing import Any

from ggtune.config import TrainConfig
from ggtune.data.card import DataCard
from ggtune.train.samples import RunSamples, held_out_of

DATA_CARD = "data_card.json"


def data_card(config: TrainConfig, samples: RunSamples) -> dict[str, Any]:
    """Describe the samples of a run in plain values."""
    held_out = held_out_of(config, samples.data)[1]
    card = DataCard.of(samples.data, held_out, samples.apart)
    return card.to_dict(samples.context, len(samples.held_out))


def data_card_text(config: TrainConfig, samples: RunSamples) -> str:
    """Return what the file holds."""
    return json.dumps(data_card(config, samples), indent=1) + "\n"


def read_data_card(folder: Path) -> dict[str, Any]:
    """Read the file of a run folder; nothing where there is none, or none that can be read."""
    try:
        values = json.loads((folder / DATA_CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
