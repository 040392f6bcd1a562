"""Quick runs on the demo model that learn their answers by heart."""

import dataclasses
from pathlib import Path

from ggtune.config import TrainConfig
from ggtune.demo import MODEL
from ggtune.evaluate.proof import Prover
from ggtune.evaluate.verify import samples_of_run
from ggtune.train.samples import RunSamples
from ggtune.train.session import fine_tune

ROWS = [
    ("Which gas do plants take in?", "Plants take in carbon dioxide."),
    ("What does a thermometer measure?", "It measures temperature."),
    ("How many legs has a spider?", "A spider has eight legs."),
    ("What is frozen water called?", "Frozen water is called ice."),
    ("Which planet is the third one?", "The third planet is Earth."),
    ("What do bees make?", "Bees make honey and wax."),
]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run on the demo model that has learned its answers, and nothing merged yet."""

    folder: Path
    config: TrainConfig
    samples: RunSamples

    @property
    def adapters(self) -> list[tuple[str, float]]:
        return [(str(self.folder / "adapter.gguf"), 1.0)]

    def prover(self, **options: object) -> Prover:
        values = {"threads": 1, **options}
        return Prover(self.config.model, self.adapters, self.samples.training, self.samples.held_out, **values)  # type: ignore[arg-type]


def train(folder: Path, **changes: object) -> Trained:
    """A few steps at a high rate."""
    table = folder / "table.csv"
    table.write_text("question,answer\n" + "".join(f'"{q}","{a}"\n' for q, a in ROWS))
    values = {
        "model": str(MODEL),
        "data": str(table),
        "ctx": 64,
        "batch": 2,
        "rank": 4,
        "lr": 4e-3,
        "epochs": 30.0,
        "holdout": "2",
        "save_every": "0",
        "threads": 1,
    }
    config = TrainConfig(**{**values, **changes})  # type: ignore[arg-type]
    result = fine_tune(config, folder / "run", quiet=True)
    return Trained(folder / "run", result.config, samples_of_run(folder / "run", result.config))
