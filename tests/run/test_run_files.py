"""metrics.jsonl, output names, progress lines, signals, processors."""

import json
import os
import signal
from pathlib import Path

import pytest

import ggtune
from ggtune.errors import GgtuneError
from ggtune.run.interrupts import Interrupts
from ggtune.run.metrics import MetricsFile, read_metrics
from ggtune.run.outputs import Outputs
from ggtune.run.progress import format_duration, step_line
from ggtune.system import available_memory, available_threads, format_bytes, resolved_threads


def test_metrics_after_the_checkpoint_are_dropped_and_a_torn_line_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n, "loss": 1.0}) + "\n" for n in range(1, 6)) + '{"step": 6, "lo')
    with MetricsFile(path, after_step=3) as metrics:
        metrics.write({"step": 4, "loss": 0.5})
    assert [(r["step"], r["loss"]) for r in read_metrics(path)] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 0.5)]


def test_iteration_and_latest_in_names(tmp_path: Path) -> None:
    pattern = tmp_path / "checkpoint-ITERATION.gguf"
    outputs = Outputs(tmp_path / "lora.bin", pattern, tmp_path / "m.jsonl", latest="LATEST")
    for step in (10, 250):
        Outputs.at_step(pattern, step).write_text(str(step))
        outputs.update_latest(pattern, step)
    outputs.update_latest(outputs.adapter, 250)  # no ITERATION in it: no copy
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"checkpoint-{n}.gguf" for n in ("10", "250", "LATEST")]
    assert (tmp_path / "checkpoint-LATEST.gguf").read_text() == "250"
    assert sorted(outputs.checkpoints()) == [10, 250]


def test_trying_a_folder_leaves_nothing(tmp_path: Path) -> None:
    Outputs.folder(tmp_path / "a" / "b").check_writable()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(GgtuneError, match="can't write to the folder"):
        Outputs.folder(tmp_path / "file" / "b").check_writable()


def test_a_line_has_all_figures() -> None:
    record = {
        "step": 3,
        "epoch": 0.5,
        "loss": 1.25,
        "smoothed_loss": 1.5,
        "tokens_per_second": 99.6,
        "elapsed_s": 61.0,
    }
    line = step_line(record, held_out=2.0, total_steps=9, eta_s=3600)
    assert line == (
        "step 3/9  epoch 0.50  loss 1.2500  smoothed 1.5000  held-out 2.0000  100 tokens/s  "
        "elapsed 0:01:01  ETA 1:00:00"
    )
    assert format_duration(0.4) == "0:00:00"
    dropped = {**record, "loss": None, "smoothed_loss": None, "dropped": "loss not finite"}  # the run's first step
    assert "loss dropped (loss not finite)  smoothed -  " in step_line(dropped, held_out=None, total_steps=9, eta_s=1)


def test_a_signal_waits_for_what_must_be_whole() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt), interrupts.allowed():
            pytest.fail("the work was begun all the same")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_ends_what_may_be_given_up() -> None:
    def work(interrupts: Interrupts) -> None:
        with interrupts.allowed():
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()

    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        work(interrupts)


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/box/inner", {"box/inner/cpu.max": "max 100000", "box/cpu.max": "150000 100000"}, 1),
        ("0::/box", {"box/cpu.max": "50000 100000"}, 1),
        ("0::/", {}, None),
        ("3:cpu,cpuacct:/box", {"cpu/box/cpu.cfs_quota_us": "100000", "cpu/box/cpu.cfs_period_us": "100000"}, 1),
        ("3:cpu,cpuacct:/box", {"cpu/box/cpu.cfs_quota_us": "-1", "cpu/box/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_threads_follow_the_quota(tmp_path: Path, membership: str, files: dict[str, str], expected: int | None) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(membership + "\n")
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert available_threads(proc=tmp_path / "proc", root=tmp_path / "groups") == (expected or free)


def test_memory_follows_the_group(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box\n")
    group = tmp_path / "groups/box"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("700000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 100000\nactive_file 50000\n")
    assert available_memory(proc=tmp_path / "proc", root=tmp_path / "groups") == 450000
    assert format_bytes(450000) == "439.5 KiB"


def test_threads_are_resolved_in_one_place() -> None:
    assert (resolved_threads(3), resolved_threads(0)) == (3, available_threads())
    package = Path(ggtune.__file__).parent
    users = [path.name for path in package.rglob("*.py") if "available_threads" in path.read_text()]
    assert users == ["system.py"]
