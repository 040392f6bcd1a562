"""Mixtures of experts and hybrids through all commands, from the file to the answer, on the golden tiny models."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf import GGUFReader

from ggtune.cli import cli
from ggtune.config import TrainConfig
from ggtune.gguf.adapter_file import read_adapter
from ggtune.train.build import build

GOLDEN = Path(__file__).parents[1] / "golden/sparse"
EXPERTS = {f"ffn_{part}_exps" for part in ("gate", "up", "down")}
STEPS = 6
# samples of unequal lengths, several micro-batches a step; the schedule does not depend on the number of steps
SETTINGS = f"""--targets all --template chatml --ctx 128 --batch 4 --micro-batch-tokens 160 --rank 2
--lr 2e-2 --dropout 0.1 --schedule constant --epochs 0 --max-steps {STEPS} --save-every 2 --keep 0 --holdout 2
--threads 1""".split()
ROWS = [
    ("Which gas?", "It is neon."),
    ("What does a thermometer measure?", "It measures temperature."),
    ("Ice?", "Frozen water."),
    ("Which planet is the third one?", "Earth."),
    ("How many legs has a spider, if it lost none?", "Eight."),
    ("Bees?", "They make honey and wax."),
    ("Is mercury a metal?", "Yes."),
    ("Who?", "A man of whom nothing is known but his name."),
]


@dataclass(frozen=True)
class Case:
    name: str  # of the golden file
    quantization: str
    layers: str  # the architecture has

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("mixtral", "Q4_0", "experts"),
    Case("granitehybrid-moe", "Q8_0", "states, attention, experts"),
    Case("lfm2", "Q8_0", "convolutions, attention"),
    Case("qwen35", "Q8_0", "states of the delta rule, attention"),
    Case("deepseek3", "Q8_0", "latent attention, experts"),
]


@dataclass
class Trained:
    """What `run` made of a quantized golden file."""

    case: Case
    base: Path
    table: Path
    out: Path
    text: str

    @property
    def adapter(self) -> Path:
        return self.out / "adapter.gguf"

    @property
    def merged(self) -> Path:
        return self.out / "model.gguf"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module", params=CASES, ids=str)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param.name)
    base, table, out = folder / "base.gguf", folder / "table.csv", folder / "run"
    succeed("quantize", GOLDEN / f"{request.param.name}.gguf", base, request.param.quantization)
    table.write_text("question,answer\n" + "".join(f'"{q}","{a}"\n' for q, a in ROWS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / ".state"))  # module scope: before the fixture of each test
        text = succeed("run", table, "--model", base, "--out", out, *SETTINGS)
    return Trained(request.param, base, table, out, text)


def same_adapter(one: Path, other: Path) -> bool:
    first, second = read_adapter(str(one)).tensors, read_adapter(str(other)).tensors
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_inspect_tells_its_linears(trained: Trained) -> None:
    found = json.loads(succeed("inspect", trained.base, "--json"))
    assert found["trains"] is True
    kinds = {linear["kind"] for linear in found["linears"]}
    assert ("experts" in trained.case.layers) == (kinds >= EXPERTS)
    assert (found["n_active_params"] < found["n_params"]) == ("experts" in trained.case.layers)


def test_the_loss_falls_and_every_pair_learns(trained: Trained) -> None:
    records = [json.loads(line) for line in (trained.out / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == STEPS
    assert max(record["n_micro_batches"] for record in records) > 1
    assert records[-1]["loss"] < records[0]["loss"] - 0.1
    tensors = read_adapter(str(trained.adapter)).tensors
    assert all(np.any(values, axis=(-2, -1)).all() for name, values in tensors.items()), "an expert's pair is 0"
    stacks = {name.split(".")[2] for name, values in tensors.items() if values.ndim == 3}
    assert ("experts" in trained.case.layers) == (stacks >= EXPERTS)


def test_merged_in_the_bases_own_types(trained: Trained) -> None:
    base, merged = GGUFReader(trained.base), GGUFReader(trained.merged)
    assert [(t.name, t.tensor_type) for t in base.tensors] == [(t.name, t.tensor_type) for t in merged.tensors]
    of_merged = {tensor.name: tensor.data for tensor in merged.tensors}
    changed = {t.name for t in base.tensors if not np.array_equal(t.data, of_merged[t.name])}
    adapted = {name.removesuffix(".lora_a") for name in read_adapter(str(trained.adapter)).tensors}
    assert changed == {name for name in adapted if not name.endswith(".lora_b")}
    proof = json.loads((trained.out / "proof.json").read_text())
    assert 0.9 < proof["trained"]["kept"] < 1.1


@pytest.mark.parametrize("trained", [CASES[0]], indirect=True, ids=str)  # the answers of others take seconds
def test_verify_passes_the_merged_file_and_no_other(trained: Trained) -> None:
    rest = ["--base", trained.base, "--lora", trained.adapter, "--data", trained.table, "--seconds", 5]
    assert call("verify", trained.merged, *rest).exit_code == 0
    assert call("verify", trained.base, *rest).exit_code == 1


def test_ask(trained: Trained) -> None:
    """What is asked of base and adapter, and of the merged file, is not the base's answer."""
    question = [ROWS[0][0], "--max-tokens", 12, "--template", "chatml"]
    base = succeed("ask", "--model", trained.base, *question)
    live = succeed("ask", "--model", trained.base, "--lora", trained.adapter, *question)
    merged = succeed("ask", "--model", trained.merged, *question)
    assert live.strip()
    assert live != base
    assert merged.strip()
    assert merged != base


def test_packages_of_both_kinds(trained: Trained, tmp_path: Path) -> None:
    merged = succeed("package", trained.merged, "--name", "tiny", "--out", tmp_path / "a", "--no-store")
    beside = succeed(
        *("package", trained.base, "--lora", trained.adapter, "--name", "tiny", "--out", tmp_path / "b", "--no-store")
    )
    assert all("gives the training's text" in text for text in (trained.text, merged, beside))
    assert "ADAPTER" in (tmp_path / "b/Modelfile").read_text()
    assert "ADAPTER" not in (tmp_path / "a/Modelfile").read_text()


def test_recomputed_layers_give_the_same_bits(trained: Trained, tmp_path: Path) -> None:
    succeed("train", "--model", trained.base, "--data", trained.table, "--out", tmp_path, *SETTINGS, "--recompute")
    assert same_adapter(tmp_path / "adapter.gguf", trained.adapter)


KILLED_IN_STEP_5 = """
import os, signal, sys, time
from ggtune.cli import cli
from ggtune.train.loop import Loop

update = Loop._update
def killing(self, *arguments):
    if self._state.step == 4:
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, *arguments)

Loop._update = killing
cli(sys.argv[2:])
"""


def test_killed_and_resumed_it_ends_with_the_same_bits(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "run"
    start = ["train", "--model", trained.base, "--data", trained.table, "--out", out, *SETTINGS]
    program = [sys.executable, "-c", KILLED_IN_STEP_5, out / "checkpoint-4.gguf", *start]
    killed = subprocess.run([str(part) for part in program], capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (out / f"checkpoint-{STEPS}.gguf").exists()
    succeed("train", "--resume", "--out", out)
    assert same_adapter(out / "adapter.gguf", trained.adapter)


def test_the_memory_that_is_predicted_is_that_of_the_largest_graph(trained: Trained) -> None:
    """Samples of unequal lengths take several graphs in a hybrid; that of all their rows is never built."""
    built = build(
        TrainConfig(
            model=str(trained.base),
            data=str(trained.table),
            template="chatml",
            batch=8,
            micro_batch_tokens=2048,
            max_steps=1,
            holdout="0",
        ),
        header_only=True,
    )
    n_rows = [len(sample.tokens) - 1 for sample in built.samples.training]
    n_tokens, n_targets, n_sequences = built.plan.largest
    if built.engine.needs_equal_lengths:
        graphs = [[n_rows[i] for i in graph] for graph in built.engine.graphs(n_rows)]
        assert n_tokens == max(len(graph) * max(graph) for graph in graphs)
        assert n_sequences == max(len(graph) for graph in graphs if len(graph) * max(graph) == n_tokens)
    else:
        assert n_tokens == sum(n_rows)
        assert n_sequences == len(n_rows)
    assert 0 < n_targets < n_tokens


def test_plan_and_preview(trained: Trained) -> None:
    planned = succeed("plan", "--model", trained.base, "--data", trained.table, *SETTINGS)
    assert "it fits" in planned
    assert ("for experts" in planned) == ("experts" in trained.case.layers)
    shown = succeed("preview", "--model", trained.base, "--data", trained.table, "--template", "chatml")
    assert ROWS[0][1] in shown
    assert "samples" in succeed("check-data", "--model", trained.base, "--data", trained.table, "--template", "chatml")
