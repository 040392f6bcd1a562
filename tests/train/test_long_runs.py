"""What keeps a run of days going: watchdogs, failing writes, resuming from damage."""

import dataclasses
import errno
import io
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ggtune.config import TrainConfig
from ggtune.demo import DATA, MODEL
from ggtune.errors import GgtuneError
from ggtune.files import WriteError, replacing
from ggtune.run import saver as saver_module
from ggtune.run.checkpoint import load_checkpoint, newest_checkpoint
from ggtune.run.metrics import MetricsFile, read_metrics
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Progress
from ggtune.run.watchdog import MemoryWatch, spike_text
from ggtune.train.resources import disk_bytes
from ggtune.train.session import fine_tune, prepare


def config(**changes: Any) -> TrainConfig:
    values = {
        "model": str(MODEL),
        "data": str(DATA),
        "ctx": 64,
        "batch": 4,
        "rank": 2,
        "epochs": 0.0,
        "max_steps": 6,
        "schedule": "constant",
        "warmup": 0.0,
        "save_every": "2",
        "holdout": "0",
        "threads": 1,
    }
    return TrainConfig(**{**values, **changes})


def run(out: Path, settings: TrainConfig) -> str:
    """Train; return what was shown."""
    shown = io.StringIO()
    outputs = Outputs.folder(out)
    found = newest_checkpoint(outputs.checkpoint)
    prepare(settings, outputs, checkpoint=found[1] if found else None).loop(Progress(shown)).run()
    return shown.getvalue()


# -- what is not finite ----------------------------------------------------------------------------------------------


@pytest.fixture
def poisoned_model(tmp_path: Path) -> Path:
    """The demo model, one token's embedding not finite: samples with that token give no finite loss."""
    path = tmp_path / "poisoned.gguf"
    shutil.copyfile(MODEL, path)
    reader = gguf.GGUFReader(path)
    embedding = next(t for t in reader.tensors if t.name == "token_embd.weight")
    tokens = reader.get_field("tokenizer.ggml.tokens")
    assert tokens is not None
    word = next(i for i, token in enumerate(tokens.contents()) if token == "Ġmetal")
    row_bytes = int(embedding.n_bytes) // int(embedding.shape[1])
    data = bytearray(path.read_bytes())
    start = int(embedding.data_offset) + word * row_bytes
    data[start : start + row_bytes] = b"\xff" * row_bytes  # NaN as a block's f16 scale, in every quantization
    path.write_bytes(data)
    return path


def test_a_poisoned_batch_is_dropped_and_the_run_goes_on(tmp_path: Path, poisoned_model: Path) -> None:
    table = tmp_path / "table.csv"
    good = "".join(f"What is number {n}?,It is {n}.\n" for n in range(7))
    table.write_text("question,answer\n" + good + "What is mercury?,It is a metal.\n")
    out = tmp_path / "run"
    fine_tune(config(model=str(poisoned_model), data=str(table), batch=2, max_steps=8), out, quiet=True)
    records = read_metrics(out / "metrics.jsonl")
    dropped = [record for record in records if "dropped" in record]
    assert [record["step"] for record in records] == list(range(1, 9))
    assert len(dropped) == 2  # once an epoch
    assert all(record["loss"] is None and record["grad_norm"] is None for record in dropped)
    final = load_checkpoint(out / "checkpoint-8.gguf")
    assert (final.state.n_dropped, final.state.n_updates, final.state.lr_scale) == (2, 6, 1.0)
    assert all(np.isfinite(values).all() for values in final.adapter.tensors.values())


def test_an_absurd_rate_goes_back_once_and_then_ends(tmp_path: Path) -> None:
    with pytest.raises(GgtuneError, match=r"again after going back at half .* smaller --lr than 1e\+30"):
        run(tmp_path, config(lr=1e30, max_steps=30))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    assert records[0]["lr"] == 5e29
    assert [("dropped" in record) for record in records[-3:]] == [True] * 3
    status = (tmp_path / "status.json").read_text()
    assert '"failed"' in status
    assert "--lr" in status


def test_it_goes_back_to_a_checkpoint_and_comes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ggtune.train import loop

    update, calls = loop.Loop._update, iter(range(1, 1000))

    def failing(self: Any, loss: float, lr: float) -> float | None:
        # the gradient "overflows" at steps 4 to 6 of the first way
        return update(self, float("nan") if 4 <= next(calls) <= 6 else loss, lr)

    monkeypatch.setattr(loop.Loop, "_update", failing)
    shown = run(tmp_path, config(max_steps=8))
    assert "back to step 2, at half the learning rate" in shown
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 9))
    assert [record["lr"] for record in records] == [2e-4] * 2 + [1e-4] * 6
    final = load_checkpoint(tmp_path / "checkpoint-8.gguf").state
    assert (final.n_dropped, final.lr_scale, final.failed_step) == (0, 0.5, 0)


@pytest.mark.parametrize(
    ("loss", "n_before", "factor", "reported"),
    [(3.1, 10, 3.0, True), (2.9, 10, 3.0, False), (3.1, 9, 3.0, False), (3.1, 10, 0.0, False)],
)
def test_loss_spikes(loss: float, n_before: int, factor: float, reported: bool) -> None:
    text = spike_text(7, loss, 1.0, n_before, factor)
    assert (text is not None) == reported
    assert text is None or "step 7 is 3.1, 3.1 times the smoothed 1" in text


def test_memory_growth_is_reported_once_per_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([1 << 30, (1 << 30) + (100 << 20), 2 << 30, 2 << 30])
    monkeypatch.setattr("ggtune.run.watchdog.private_memory", lambda: next(sizes))
    watch = MemoryWatch()
    told = [text for text in (watch.growth() for _ in range(80)) if text]
    assert told == ["warning: memory has grown from 1.0 GiB to 2.0 GiB during the run"]


# -- damage ----------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_passed_over_and_never_kept_for_a_good_one(tmp_path: Path) -> None:
    fine_tune(config(keep=1, max_steps=4, save_every="1"), tmp_path, quiet=True)
    good = (tmp_path / "checkpoint-4.gguf").read_bytes()
    (tmp_path / "checkpoint-9.gguf").write_bytes(good[:-100])
    found = newest_checkpoint(tmp_path / "checkpoint-ITERATION.gguf")
    assert found is not None
    assert found[0].name == "checkpoint-4.gguf"
    assert "checkpoint-9.gguf: the GGUF file is truncated" in found[2][0]
    shown = run(tmp_path, config(keep=1, max_steps=6, save_every="1"))
    assert "set aside" in shown
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-6.gguf", "checkpoint-9.gguf.old"]


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ggtune.train import loop

    losses = iter([9.0, 5.0, 4.0, 6.0, 7.0, 8.0])
    monkeypatch.setattr(loop.Loop, "_evaluate", lambda self: next(losses))
    fine_tune(config(keep=1, save_every="0", epochs=5.0, max_steps=0, batch=63, holdout="1"), tmp_path, quiet=True)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2.gguf", "checkpoint-5.gguf"]
    monitor = load_checkpoint(tmp_path / "checkpoint-5.gguf").state.monitor
    assert (monitor["best_step"], monitor["best_held_out"]) == (2, 4.0)


def test_a_date_in_a_template_is_that_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ggtune.train import samples

    times, load = [], samples.load_parts

    def spy(*arguments: Any, **options: Any) -> Any:
        times.append(arguments[2].now)
        return load(*arguments, **options)

    monkeypatch.setattr(samples, "load_parts", spy)
    run(tmp_path, config(max_steps=2))
    checkpoint = load_checkpoint(tmp_path / "checkpoint-2.gguf")
    earlier = dataclasses.replace(checkpoint.state, started="2020-02-29T12:00:00")
    prepare(config(), Outputs.folder(tmp_path), checkpoint=dataclasses.replace(checkpoint, state=earlier))
    assert times[0].isoformat() == checkpoint.state.started
    assert times[1].isoformat() == "2020-02-29T12:00:00"


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_the_fingerprint_sees_changes_all_over_a_big_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    from ggtune.gguf import io as gguf_io

    monkeypatch.setattr(gguf_io, "_SAMPLE_DISTANCE_BYTES", 1 << 18)  # as in a tensor of gigabytes
    reader = gguf.GGUFReader(MODEL)
    tensor = next(t for t in reader.tensors if t.name == "token_embd.weight")
    offset = {"first": 0, "middle": 3 << 18, "last": int(tensor.n_bytes) - 1}[place]
    changed = bytearray(MODEL.read_bytes())
    changed[int(tensor.data_offset) + offset] ^= 1
    (tmp_path / "model.gguf").write_bytes(changed)
    assert gguf_io.model_fingerprint(tmp_path / "model.gguf") != gguf_io.model_fingerprint(MODEL)


# -- disks that are full ---------------------------------------------------------------------------------------------


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, name: str, times: int = 1000) -> Iterator[list[str]]:
    """Let writing files of a name fail at their end, as a full disk does."""
    real, hits = os.fsync, []

    def fsync(handle: int) -> None:
        path = str(Path(f"/proc/self/fd/{handle}").readlink())
        if f"/.{name}" in path and len(hits) < times:
            hits.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield hits


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the file by /proc")


@needs_proc
@pytest.mark.parametrize("name", ["checkpoint-", "adapter.gguf"])
def test_a_write_that_fails_is_retried_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(saver_module, "_RETRY_AFTER_S", (0.01, 0.01))
    with full_disk(monkeypatch, name, times=1) as hits:
        shown = run(tmp_path, config())
    assert len(hits) == 1
    assert "No space left on device" in shown
    assert "tried again" in shown
    assert load_checkpoint(tmp_path / "checkpoint-6.gguf").state.step == 6
    assert not list(tmp_path.glob(".*"))


@needs_proc
def test_a_disk_that_stays_full_ends_the_run_with_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, config(max_steps=2))
    before = {p.name: p.read_bytes() for p in tmp_path.glob("*.gguf")}
    monkeypatch.setattr(saver_module, "_RETRY_AFTER_S", (0.01,))
    with (
        full_disk(monkeypatch, "checkpoint-"),
        pytest.raises(GgtuneError, match=r"checkpoint-6.gguf: No space .* needed.*make room and start it again"),
    ):
        run(tmp_path, config())
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.gguf")} == before
    assert not list(tmp_path.glob(".*"))
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 6
    run(tmp_path, config())  # there is room again
    assert load_checkpoint(tmp_path / "checkpoint-6.gguf").state.step == 6


def test_metrics_wait_for_room(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsFile(path, after_step=0) as metrics:
        assert metrics.write({"step": 1}) is None
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (18, hard))  # the first line and a part of the second
            problem = metrics.write({"step": 2})
            assert problem is not None
            assert str(path) in problem
            assert metrics.write({"step": 3}) is None  # told once
            assert [r["step"] for r in read_metrics(path)] == [1]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert metrics.write({"step": 4}) is None
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3, 4]


def test_too_little_room_is_said_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = prepare(config(), Outputs.folder(tmp_path / "run"))
    needed = disk_bytes(session.built.config, session.built.adapter, session.built.plan)
    monkeypatch.setattr("ggtune.train.resources.free_bytes", lambda path: needed - 1)
    with pytest.raises(GgtuneError, match=r"run: the disk has too little room .* are free"):
        prepare(config(), Outputs.folder(tmp_path / "run"))
    prepare(config(force=True), Outputs.folder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    run(tmp_path / "run", config(force=True))
    taken = sum(p.stat().st_size for p in (tmp_path / "run").iterdir())
    assert taken < needed < 2.5 * taken


def test_room_is_looked_at_before_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr("ggtune.files.free_bytes", lambda path: 99)
    text = r"file: the disk is full \(100 B needed, 99 B free\)"
    with pytest.raises(WriteError, match=text), replacing(path, needed_bytes=100):
        pytest.fail("it was tried all the same")
    assert path.read_text() == "old"


def test_on_a_disk_that_is_really_full(make_disk: Callable[[str], Path], tmp_path: Path) -> None:
    tiny_disk = make_disk("700k")
    out = tiny_disk / "run"
    command = [sys.executable, "-m", "ggtune", "train", "--model", MODEL, "--data", DATA, "--out", out]
    settings = "--ctx 64 --batch 4 --rank 1 --threads 1 --holdout 0 --epochs 0 --save-every 1 --keep 1"
    command += settings.split()

    def train(*more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*command, *more], capture_output=True, text=True, check=False)

    refused = train("--max-steps", "2", "--rank", "16")
    assert refused.returncode == 1
    assert "too little room" in refused.stderr
    assert not out.exists()

    first = train("--max-steps", "2", "--force", "--targets", "attn_q")
    assert first.returncode == 0, first.stderr
    whole = (out / "checkpoint-2.gguf").read_bytes()
    free = shutil.disk_usage(tiny_disk).free
    (tiny_disk / "ballast").write_bytes(bytes(free - 8192))
    full = train("--max-steps", "5", "--resume", "--force")
    assert full.returncode == 1, full.stdout
    assert f"can't write {out}" in full.stderr
    assert "needed" in full.stderr
    assert (out / "checkpoint-2.gguf").read_bytes() == whole
    assert not list(out.glob(".*.tmp"))
    (tiny_disk / "ballast").unlink()
    again = train("--max-steps", "5", "--resume", "--force")
    assert again.returncode == 0, again.stderr
    assert [r["step"] for r in read_metrics(out / "metrics.jsonl")] == [1, 2, 3, 4, 5]


@needs_proc
def test_a_newer_snapshot_takes_the_place_of_one_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "_RETRY_AFTER_S", (60.0,))
    run(tmp_path / "source", config(max_steps=4, keep=0))
    first, second = (load_checkpoint(tmp_path / f"source/checkpoint-{step}.gguf") for step in (2, 4))
    outputs = Outputs.folder(tmp_path / "run")
    with full_disk(monkeypatch, "checkpoint-2", times=1), saver_module.Saver(outputs, 3) as saver:
        saver.submit(first)
        saver.submit(second)  # waits for the first attempt, and not for the minute until the second
        saver.flush()
        assert saver.written_step == 4
        assert [text for text in saver.messages() if "checkpoint-2.gguf: No space left" in text]
    assert list(outputs.checkpoints()) == [4]
