"""The fuzz campaign in short, and every input that once gave trouble."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import fuzz  # noqa: E402

CORPUS = sorted((ROOT / "tests/fuzz/corpus").glob("*/*"))


def test_only_documented_exceptions() -> None:
    command = [sys.executable, ROOT / "scripts/fuzz.py", "--examples", "300", "--seed", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("300 inputs") == len(fuzz.Targets().all)


@pytest.fixture(scope="module")
def targets() -> fuzz.Targets:
    return fuzz.Targets()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once(targets: fuzz.Targets, path: Path, tmp_path: Path) -> None:
    read, _ = targets.all[path.parent.name]
    copy = tmp_path / "input"  # some targets write beside it
    copy.write_bytes(path.read_bytes())
    assert fuzz.check(read, copy) in ("refused", "taken")
