"""Which architectures of the built-in llama.cpp train, tried beforehand (``scripts/trainability.py --write``)."""

import json
from pathlib import Path

_FILE = Path(__file__).with_suffix(".json")


def architectures() -> dict[str, str]:
    """Return why each architecture can't be trained, "" where it can.

    A ``+`` marks a variant of one: ``llama+experts``.
    """
    known: dict[str, str] = json.loads(_FILE.read_text(encoding="utf-8"))
    return known
