"""The fuzz campaign in short, and every input that once gave trouble."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import pytest

from ggtune.errors import GgtuneError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import fuzz  # noqa: E402
from fuzzing import gguf_edits, worker  # noqa: E402

GOLDEN = sorted((ROOT / "tests/golden").glob("*.gguf"))
CORPUS = sorted((ROOT / "tests/fuzz/corpus").glob("*/*"))


def test_only_documented_exceptions() -> None:
    command = [sys.executable, ROOT / "scripts/fuzz.py", "--examples", "300", "--seed", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("300 inputs") == len(fuzz.Targets().all)


@pytest.fixture(scope="module")
def targets() -> fuzz.Targets:
    return fuzz.Targets()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once(targets: fuzz.Targets, path: Path) -> None:
    (outcome,) = worker.run(targets.all[path.parent.name].read, [path.read_bytes()])
    assert outcome in worker.FINE


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_parts_make_the_same_file(path: Path) -> None:
    assert gguf_edits.apply(path.read_bytes(), []) == path.read_bytes()


def test_edits_leave_the_rest(tmp_path: Path) -> None:
    edits: list[gguf_edits.Edit] = [
        ["set", "llama.context_length", 4, 77],
        ["item", "tokenizer.ggml.tokens", 5, "five"],
        ["unset", "general.file_type"],
        ["shape", "blk.0.attn_q.weight", [64, 32], 0],
        ["rename", "output.weight", "other.weight"],
        ["fill", "output_norm.weight", "0000803f"],
        ["architecture", "qwen2"],
    ]
    before = gguf_edits.Parts((ROOT / "tests/golden/llama.gguf").read_bytes())
    path = tmp_path / "edited.gguf"
    path.write_bytes(gguf_edits.apply((ROOT / "tests/golden/llama.gguf").read_bytes(), edits))
    reader = gguf.GGUFReader(path)
    assert reader.fields["qwen2.context_length"].contents() == 77
    assert reader.fields["tokenizer.ggml.tokens"].contents()[5] == "five"
    assert "general.file_type" not in reader.fields
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert set(before.tensors) - set(tensors) == {"output.weight"}
    assert tensors["blk.0.attn_q.weight"].data.shape == (32, 64)
    assert (tensors["output_norm.weight"].data == 1.0).all()
    assert tensors["blk.1.ffn_down.weight"].data.tobytes() == before.tensors["blk.1.ffn_down.weight"].data


def _crash(path: Path) -> None:
    data = path.read_bytes()
    if data == b"crash":
        os.abort()
    if data == b"hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(3600)
    if data == b"raise":
        raise KeyError("what")
    if data == b"refuse":
        raise GgtuneError("no")


def test_crashes_and_hangs_are_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LIMIT_S", 0.2)
    monkeypatch.setattr(worker, "GRACE_S", 0.2)
    inputs = [b"", b"crash", b"refuse", b"hang", b"raise", b""]
    outcomes = worker.run(_crash, inputs)
    assert [outcomes[i] for i in (0, 2, 5)] == ["taken", "refused", "taken"]
    assert "SIGABRT" in outcomes[1]
    assert "hangs" in outcomes[3]
    assert outcomes[4].startswith("KeyError at ")
