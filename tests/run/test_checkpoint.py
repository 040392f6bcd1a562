import errno
import os
from pathlib import Path

import numpy as np
import pytest

from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.files import replacing
from ggtune.gguf.adapter_file import AdapterFile, write_adapter
from ggtune.run.checkpoint import (
    Checkpoint,
    State,
    load_checkpoint,
    newest_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
)

PATTERN = "checkpoint-ITERATION.gguf"


def make_checkpoint(step: int = 7) -> Checkpoint:
    random = np.random.default_rng(step)
    tensors = {
        "blk.0.attn_q.weight.lora_a": random.normal(size=(2, 5)).astype(np.float32),
        "blk.0.attn_q.weight.lora_b": random.normal(size=(3, 2)).astype(np.float32),
    }
    moments = {name: (values * 2, values**2) for name, values in tensors.items()}
    monitor = {"average": 0.1 + 0.2, "n_steps": step, "held_out": None}
    state = State(step, 3 * step, 1, 2, "model", "data", monitor, {"step": step}, 1.5, {"system": "Grüße\n"})
    return Checkpoint(
        AdapterFile("llama", 8.5, tensors, state.notes), moments, state, TrainConfig(model="m", data="d", seed=3)
    )


def test_round_trip_is_exact(tmp_path: Path) -> None:
    written = make_checkpoint()
    save_checkpoint(tmp_path / "c.gguf", written)
    read = load_checkpoint(tmp_path / "c.gguf")
    assert read.state == written.state
    assert read.config == written.config
    assert (read.adapter.architecture, read.adapter.alpha) == ("llama", 8.5)
    for name, values in written.adapter.tensors.items():
        np.testing.assert_array_equal(read.adapter.tensors[name], values)
        for got, expected in zip(read.moments[name], written.moments[name], strict=True):
            np.testing.assert_array_equal(got, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["c.gguf"]


def test_every_flipped_byte_of_data_and_state_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.gguf"
    save_checkpoint(path, make_checkpoint())
    whole = path.read_bytes()
    tensor = make_checkpoint().adapter.tensors["blk.0.attn_q.weight.lora_b"].tobytes()
    places = [whole.index(tensor) + 3, whole.index(b'"step": 7') + 8, whole.index(b'"seed": 3') + 8]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(GgtuneError, match="damaged"):
            load_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "c.gguf"
    save_checkpoint(path, make_checkpoint())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(GgtuneError, match=r"c\.gguf"):
        load_checkpoint(path)


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save_checkpoint(tmp_path / f"checkpoint-{step}.gguf", make_checkpoint(step))
    (tmp_path / "checkpoint-100.gguf").write_bytes(b"GGUF")
    (tmp_path / "checkpoint-x.gguf").write_bytes(b"")
    found = newest_checkpoint(tmp_path / PATTERN)
    assert found is not None
    path, checkpoint, damaged = found
    assert (path.name, checkpoint.state.step, len(damaged)) == ("checkpoint-10.gguf", 10, 1)


def test_none_and_only_damaged(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "no" / PATTERN) is None
    (tmp_path / "checkpoint-1.gguf").write_bytes(b"GGUF")
    with pytest.raises(GgtuneError, match="no whole checkpoint"):
        newest_checkpoint(tmp_path / PATTERN)


def test_keep(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}.gguf").write_bytes(b"")
    remove_old_checkpoints(tmp_path / PATTERN, 0)
    remove_old_checkpoints(tmp_path / PATTERN, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10.gguf", "checkpoint-100.gguf"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "c.gguf"
    save_checkpoint(path, make_checkpoint())
    before = path.read_bytes()

    def fill_the_disk() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(before[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(GgtuneError, match="No space left"):
        fill_the_disk()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.gguf"]


def test_an_adapter_is_no_checkpoint(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a.gguf", make_checkpoint().adapter)
    with pytest.raises(GgtuneError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "a.gguf")
