"""A run that has learned a few answers by heart; the fixture ``learned_run`` makes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROWS = [
    ("Which gas do plants take in?", "Plants take in carbon dioxide."),
    ("What does a thermometer measure?", "It measures temperature."),
    ("How many legs has a spider?", "A spider has eight legs."),
    ("What is frozen water called?", "Frozen water is called ice."),
    ("Which planet is the third one?", "The third planet is Earth."),
    ("What do bees make?", "Bees make honey and wax."),
]
SYSTEM = "Be brief."
TEMPLATE = "chatml"  # not the model's own


@dataclass(frozen=True)
class LearnedRun:
    """A run of ``ggtune run`` that has learned the answers of :data:`ROWS` by heart."""

    folder: Path
    template: str

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter.gguf"

    @property
    def merged(self) -> Path:
        return self.folder / "model.gguf"
