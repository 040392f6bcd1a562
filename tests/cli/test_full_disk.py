"""Commands on a full disk: one message with path and space needed, the old file intact, nothing half-written.

A file size limit stops a write in its middle, a failing ``fsync`` at its end, and a small tmpfs is a disk.
"""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result

from file_limits import largest_file
from ggtune.data.records import Record
from ggtune.data.sft import write_sft
from ggtune.data.templates import TEMPLATES
from ggtune.demo import MODEL
from ggtune.errors import GgtuneError
from ggtune.files import WriteError, replacing
from ggtune.gguf.adapter_file import read_adapter, write_adapter
from ggtune.ollama.package import package_model
from ggtune.run import saver as saver_module
from ggtune.run.registry import known_runs, register

Ggtune = Callable[..., Result]
SMALL = ["--ctx", "64", "--batch", "2", "--rank", "1", "--threads", "1"]
SPACE = r"\(\d+\.?\d* [KM]?i?B needed, \d+\.?\d* [KMGT]?i?B free\)"


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    """Let writing files whose path has ``name`` in it fail at the end, as a disk does that fills up."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if name in os.readlink(f"/proc/self/fd/{handle}"):  # noqa: PTH115 - Path would normalize it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the file by /proc")


def files_below(folder: Path) -> dict[str, bytes]:
    """Content of all files, hidden ones too; of an empty folder its name."""
    return {
        str(path.relative_to(folder)): b"" if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


def refused(result: Result, path: Path, space: str = SPACE) -> None:
    """Assert one message that names the path and the space needed."""
    assert result.exit_code == 1, result.output
    named = re.escape(str(path)) + r"(/\S+)?: "
    assert re.fullmatch(rf"Error: [^\n]*{named}[^\n]*{space}[^\n]*\n", result.stderr), result.stderr
    assert "unexpected" not in result.stderr


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of the demo model whose merged tensors differ from the model's."""
    import numpy as np

    from ggtune._native import core
    from ggtune.gguf.adapter_file import adapter_content

    live = core.Adapter(core.Model(str(MODEL)), rank=1, alpha=1.0, targets=["attn_q"])
    for name in live.tensor_names():
        live.set(name, np.full_like(live.get(name), 0.01))
    path = tmp_path / "inputs" / "adapter.gguf"
    path.parent.mkdir()
    write_adapter(path, adapter_content(live, {}))
    return path


@pytest.fixture
def sft(tmp_path: Path, rows: list[tuple[str, str]]) -> Path:
    path = tmp_path / "table.txt"
    records = [Record(question, answer, None, 2 + i) for i, (question, answer) in enumerate(rows)]
    path.write_text(write_sft(path, records, TEMPLATES["llama2"]))
    return path


@pytest.fixture
def disk(make_disk: Callable[[str], Path]) -> Path:
    return make_disk("8m")


# -- convert ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.txt", "out.csv"])
@pytest.mark.parametrize("before", [None, "old"])
def test_convert(ggtune: Ggtune, tmp_path: Path, table: Path, sft: Path, name: str, before: str | None) -> None:
    out = tmp_path / "out" / name
    if before:
        out.parent.mkdir()
        out.write_text(before)
    source = sft if name.endswith(".csv") else table
    there = files_below(tmp_path)
    with largest_file(100):
        refused(ggtune("convert", source, "-o", out), out)
    assert files_below(tmp_path) == there
    assert out.parent.exists() == (before is not None)
    assert ggtune("convert", source, "-o", out).exit_code == 0
    assert out.stat().st_size > 100


def test_convert_looks_at_the_space_first(
    ggtune: Ggtune, tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggtune.files.free_bytes", lambda path: 99)
    out = tmp_path / "new" / "out.txt"
    refused(ggtune("convert", table, "-o", out), out, r"the disk is full \(\d+ B needed, 99 B free\)")
    assert not out.parent.exists()


def test_a_text_that_is_no_unicode_is_not_written(ggtune: Ggtune, tmp_path: Path, table: Path) -> None:
    result = ggtune("convert", table, "-o", tmp_path / "out.txt", "--system", "\udcff")
    assert result.exit_code == 1
    assert f"can't write {tmp_path / 'out.txt'}: '\\udcff' in its text" in result.stderr
    assert not (tmp_path / "out.txt").exists()


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, reason in ((pipe, "not a regular file"), (tmp_path, "it is a folder")):
        with pytest.raises(WriteError, match=reason), replacing(path):
            pytest.fail("it was tried all the same")
    assert list(tmp_path.iterdir()) == [pipe]
    assert pipe.is_fifo()


# -- export-lora -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, b"old"])
def test_export_lora(ggtune: Ggtune, tmp_path: Path, adapter: Path, before: bytes | None) -> None:
    out = tmp_path / "merged.gguf"
    if before:
        out.write_bytes(before)
    there = files_below(tmp_path)
    with largest_file(1 << 20):
        result = ggtune("export-lora", "-m", MODEL, "-l", adapter, "-o", out)
    assert result.exit_code == 1
    assert f"{out}: can't be written: {os.strerror(errno.EFBIG)} (8 MB needed, " in result.stderr
    assert files_below(tmp_path) == there


def test_export_lora_on_a_disk_that_is_really_full(ggtune: Ggtune, disk: Path, adapter: Path) -> None:
    out = disk / "merged.gguf"
    out.write_bytes(bytes(1 << 20))
    result = ggtune("export-lora", "-m", MODEL, "-l", adapter, "-o", out)
    refused(result, out, r"needs 8 MB in .*, where \d MB are free: make room")
    assert files_below(disk) == {"merged.gguf": bytes(1 << 20)}


# -- package ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, "FROM old.gguf\n"])
def test_package_a_modelfile(ggtune: Ggtune, tmp_path: Path, before: str | None) -> None:
    out = tmp_path / "package"
    if before:
        out.mkdir()
        (out / "Modelfile").write_text(before)
    there = files_below(tmp_path)
    with largest_file(50):
        refused(ggtune("package", MODEL, "--name", "x", "--no-store", "--out", out), out / "Modelfile")
    assert files_below(tmp_path) == there
    assert out.exists() == (before is not None)


def test_package_a_blob(ggtune: Ggtune, tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "package"
    with largest_file(1 << 20):
        result = ggtune("package", MODEL, "--name", "x", "--store", store, "--out", out)
    refused(result, store / "blobs")
    assert files_below(tmp_path) == {}
    assert not store.exists()
    assert not out.exists()


@needs_proc
def test_package_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, out = tmp_path / "store", tmp_path / "package"
    package_model(MODEL, "x", out_dir=out, store=store)
    there = files_below(tmp_path)
    manifest = store / "manifests/registry.ollama.ai/library/x/latest"
    message = rf"{re.escape(str(manifest))}: No space left on device {SPACE}"
    with failing(monkeypatch, "/sha256-manifest-"), pytest.raises(GgtuneError, match=message):
        package_model(MODEL, "x", out_dir=out, store=store, system="Be brief.")
    after = files_below(tmp_path)
    new = set(after) - set(there)  # whole blobs may stay: the next attempt finds them, and Ollama clears them away
    assert all(re.fullmatch(r"store/blobs/sha256-[0-9a-f]{64}", name) for name in new), new
    assert {name: after[name] for name in there} == there


def test_a_store_on_a_disk_that_is_really_full(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggtune.ollama.blobs._RESERVE_BYTES", 0)
    store = disk / "store"
    (disk / "ballast").write_bytes(bytes(1 << 20))
    with pytest.raises(GgtuneError, match=rf"{store}: .*too little room: 7\.5 MiB needed .*, [67]\.\d MiB free"):
        package_model(MODEL, "x", out_dir=tmp_path, store=store)
    assert set(files_below(disk)) == {"ballast"}
    assert not (tmp_path / "Modelfile").exists()


# -- runs ------------------------------------------------------------------------------------------------------------


@needs_proc
@pytest.mark.parametrize("name", ["config.json", "status.json"])
def test_a_run_that_can_not_begin_leaves_nothing(
    ggtune: Ggtune, tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = tmp_path / "runs" / "new"
    with failing(monkeypatch, f"/.{name}."):
        result = ggtune("train", "--model", MODEL, "--data", table, "--out", out, *SMALL, "--max-steps", 1)
    refused(result, out / name)
    assert not out.parent.exists()


@needs_proc
@pytest.mark.parametrize("name", ["config.json", "status.json"])
def test_a_run_that_can_not_begin_keeps_the_one_that_it_was_to_overwrite(
    ggtune: Ggtune, tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = tmp_path / "run"
    command = ["train", "--model", MODEL, "--data", table, "--out", out, *SMALL, "--holdout", 0]
    assert ggtune(*command, "--max-steps", 2).exit_code == 0
    there = files_below(out)
    with failing(monkeypatch, f"/.{name}."):
        refused(ggtune(*command, "--max-steps", 1, "--overwrite"), out / name)
    after = files_below(out)
    if name == "config.json":  # it is flushed last
        assert after.pop("status.json") != there.pop("status.json")
    assert after == there
    assert ggtune(*command, "--max-steps", 1, "--overwrite").exit_code == 0
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-1.gguf"}


@needs_proc
def test_a_full_home_only_leaves_a_run_out_of_the_list(
    ggtune: Ggtune, tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, out = tmp_path / "earlier", tmp_path / "run"
    earlier.mkdir()
    register(earlier)
    there = files_below(tmp_path / ".state")
    with failing(monkeypatch, "/.state/"):
        result = ggtune("train", "--model", MODEL, "--data", table, "--out", out, *SMALL, "--max-steps", 1)
    assert result.exit_code == 0, result.output
    assert files_below(tmp_path / ".state") == there
    assert known_runs() == [earlier]


@needs_proc
def test_finetune_ends_with_the_old_adapter(
    ggtune: Ggtune, tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "_RETRY_AFTER_S", (0.01,))
    lora, checkpoint = tmp_path / "lora.gguf", tmp_path / "checkpoint-ITERATION.gguf"
    command = ["finetune", "--model-base", MODEL, "--train-data", table, "--lora-out", lora]
    command += ["--checkpoint-out", checkpoint, "--ctx", 64, "--batch", 2, "--threads", 1]
    assert ggtune(*command, "--adam-iter", 1).exit_code == 0
    before = lora.read_bytes()
    with failing(monkeypatch, f"/.lora.gguf.{os.getpid()}"):
        refused(ggtune(*command, "--adam-iter", 2), lora)
    assert lora.read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))

    # what was trained is in the checkpoint
    only = ["finetune", "--only-write-lora", "--checkpoint-in", tmp_path / "checkpoint-2.gguf", "--lora-out", lora]
    with largest_file(100 << 10):
        refused(ggtune(*only), lora)
    assert lora.read_bytes() == before
    assert ggtune(*only).exit_code == 0
    assert lora.read_bytes() != before
    assert read_adapter(lora).rank == 4


def test_finetune_on_a_disk_that_is_really_full(ggtune: Ggtune, tmp_path: Path, disk: Path, table: Path) -> None:
    checkpoint = tmp_path / "checkpoint-1.gguf"
    command = ["finetune", "--model-base", MODEL, "--train-data", table, "--lora-out", tmp_path / "lora.gguf"]
    command += ["--checkpoint-out", checkpoint, "--ctx", 64, "--batch", 2, "--threads", 1, "--adam-iter", 1]
    assert ggtune(*command).exit_code == 0
    (disk / "lora.gguf").write_bytes(b"old")
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - (100 << 10)))
    result = ggtune("finetune", "--only-write-lora", "--checkpoint-in", checkpoint, "--lora-out", disk / "lora.gguf")
    refused(result, disk / "lora.gguf")
    assert set(files_below(disk)) == {"lora.gguf", "ballast"}
    assert (disk / "lora.gguf").read_bytes() == b"old"


def test_a_full_log_does_not_end_a_run(tmp_path: Path, table: Path) -> None:
    """``nohup ggtune run ... > log`` on a disk that is full: it goes on to the merged and packaged model."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ggtune", "run", table, "--model", MODEL, "--out", out, *SMALL, "--max-steps", "1"]
    with Path("/dev/full").open("w") as full:
        assert subprocess.run(list(map(str, command)), stdout=full, stderr=full, check=False).returncode == 0
    assert {"adapter.gguf", "model.gguf", "Modelfile"} <= {path.name for path in out.iterdir()}
