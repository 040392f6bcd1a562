from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ggtune.cli import cli

Ggtune = Callable[..., Result]

ROWS = [
    ("Which gas do plants take in?", "Plants take in carbon dioxide."),
    ("What does a thermometer measure?", "It measures temperature."),
    ("How many legs has a spider?", "A spider has eight legs."),
    ("What is frozen water called?", "Frozen water is called ice."),
    ("Which planet is the third one?", "The third planet is Earth."),
    ("What do bees make?", "Bees make honey and wax."),
]


@pytest.fixture(autouse=True)
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the runs of tests out of the user's list."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ".state"))


@pytest.fixture
def ggtune() -> Ggtune:
    """Run a command line in this process; paths may stand among the arguments."""
    return lambda *arguments: CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def rows() -> list[tuple[str, str]]:
    return ROWS


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text("question,answer\n" + "".join(f'"{q}","{a}"\n' for q, a in ROWS))
    return path
