"""Every option of ``export-lora``: by the tensors of the file that it writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result
from learned import ROWS, LearnedRun
from numpy.typing import NDArray

from ggtune import _core
from ggtune.cli import cli
from ggtune.cli.export_lora import command
from ggtune.demo import MODEL
from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import read_adapter
from ggtune.system import available_threads

# the test of each
OPTIONS = {
    "run": "test_of_a_run",
    "model_base": "test_base",
    "lora": "test_factors",
    "lora_scaled": "test_factors",
    "model_out": "test_base",
    "threads": "test_threads",
    "outtype": "test_type",
    "seed": "test_seed",
    "fit": "test_scales",
    "tune_seconds": "test_tuning",
    "name": "test_name",
    "which": "test_step",
    "force": "test_another_base",
}
LINEAR = "blk.1.attn_q.weight"
Merge = Callable[..., dict[str, Any]]


def export(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["export-lora", *map(str, arguments)])


def exported(output: Path, *arguments: object) -> Path:
    result = export("-o", output, *arguments)
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the native merge is given."""
    seen: list[dict[str, Any]] = []
    merge: Merge = _core.merge

    def recorded(base: str, adapters: list[tuple[str, float]], output: str, **arguments: Any) -> dict[str, Any]:
        seen.append({"base": base, "adapters": adapters, "output": output, **arguments})
        return merge(base, adapters, output, **arguments)

    monkeypatch.setattr(_core, "merge", recorded)
    return seen


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def values(path: Path, name: str = LINEAR) -> NDArray[np.float32]:
    tensor = tensors(path)[name]
    data = np.ascontiguousarray(tensor.data).view(np.uint8)
    return _core.dequantize(tensor.tensor_type.name, data, int(tensor.shape[0]))


def product(adapter: Path) -> NDArray[np.float32]:
    """What a live adapter adds to the weight."""
    content = read_adapter(adapter)
    a, b = content.tensors[LINEAR + ".lora_a"], content.tensors[LINEAR + ".lora_b"]
    return content.alpha / content.rank_of(LINEAR) * (b @ a)


def test_every_option_has_a_test() -> None:
    assert {parameter.name for parameter in command.params if isinstance(parameter, click.Parameter)} == set(OPTIONS)
    assert set(OPTIONS.values()) <= set(globals())


@pytest.fixture
def adapters(wiring_files: Path, learned_run: LearnedRun) -> tuple[Path, Path]:
    """Two adapters of the demo's model."""
    return wiring_files / "adapter.gguf", learned_run.adapter


def test_factors(tmp_path: Path, adapters: tuple[Path, Path]) -> None:
    one, two = adapters
    base = values(MODEL)
    for i, (given, added) in enumerate(
        [
            (["--lora", one], product(one)),
            (["-l", one, "--lora", two], product(one) + product(two)),
            (["--lora-scaled", one, 0.5], 0.5 * product(one)),
            (["-s", two, -2, "-l", one], product(one) - 2 * product(two)),
        ]
    ):
        merged = exported(tmp_path / f"{i}.gguf", "--model-base", MODEL, "--outtype", "f32", *given)
        np.testing.assert_allclose(values(merged) - base, added, rtol=0, atol=1e-5 * np.abs(added).max() + 1e-7)
        assert np.abs(added).max() > 1e-3


def test_base(tmp_path: Path, adapters: tuple[Path, Path], wiring_files: Path) -> None:
    own = exported(tmp_path / "own.gguf", "-m", MODEL, "--lora", adapters[0])
    other = wiring_files / "other.gguf"
    of_other = tmp_path / "new" / "other.gguf"
    result = export("--model-base", other, "--lora", adapters[0], "--model-out", of_other, "--force")
    assert result.exit_code == 0, result.output
    changed = "blk.3.ffn_up.weight"  # in the other base
    distance = [
        [np.linalg.norm(values(merged, changed) - values(base, changed)) for base in (MODEL, other)]
        for merged in (own, of_other)
    ]
    assert distance[0][0] < 0.1 * distance[0][1]
    assert distance[1][1] < 0.1 * distance[1][0]


def test_type(tmp_path: Path, adapters: tuple[Path, Path]) -> None:
    base = {name: tensor.tensor_type.name for name, tensor in tensors(MODEL).items()}
    adapted = {f"{name}" for name in read_adapter(adapters[0]).bases}
    for outtype, expected in ((None, None), ("same", None), ("q8_0", "Q8_0"), ("f16", "F16")):
        given = ["--outtype", outtype] if outtype else []
        merged = exported(tmp_path / f"{outtype}.gguf", "-m", MODEL, "-l", adapters[0], *given)
        types = {name: tensor.tensor_type.name for name, tensor in tensors(merged).items()}
        assert types == {name: expected if expected and name in adapted else kind for name, kind in base.items()}
    auto = export("-m", MODEL, "-l", adapters[0], "-o", tmp_path / "auto.gguf", "--outtype", "auto")
    assert auto.exit_code == 2
    assert "give the folder of the training" in auto.stderr


def test_seed(tmp_path: Path, adapters: tuple[Path, Path]) -> None:
    given = ["-m", MODEL, "-l", adapters[0]]
    codes = [
        np.array(tensors(exported(tmp_path / f"{i}.gguf", *given, *seed))[LINEAR].data).tobytes()
        for i, seed in enumerate(([], ["--seed", 0], ["--seed", 1]))
    ]
    assert codes[0] == codes[1] != codes[2]


def test_name(tmp_path: Path, adapters: tuple[Path, Path]) -> None:
    given = ["-m", MODEL, "-l", adapters[0]]
    for more, name in (([], "merged"), (["--name", "Chemistry"], "Chemistry")):
        reader = gguf.GGUFReader(exported(tmp_path / "merged.gguf", *given, *more))
        field = reader.get_field("general.name")
        assert field is not None
        assert field.contents() == name


def test_threads(tmp_path: Path, adapters: tuple[Path, Path], merges: list[dict[str, Any]]) -> None:
    given = ["-m", MODEL, "-l", adapters[0]]
    files = [
        exported(tmp_path / f"{i}.gguf", *given, *threads, "--name", "same").read_bytes()
        for i, threads in enumerate((["-t", 1], ["--threads", 3], []))
    ]
    assert [merge["threads"] for merge in merges] == [1, 3, available_threads()]
    assert len(set(files)) == 1


def test_scales(
    tmp_path: Path, merges: list[dict[str, Any]], adapters: tuple[Path, Path], learned_run: LearnedRun
) -> None:
    """Fitted unless that is not wanted, of files and of a run, and to what the run was trained on."""
    given = ["-m", MODEL, "-l", adapters[0], "-t", 1, "--name", "one"]
    files = [exported(tmp_path / f"{i}.gguf", *given, *more) for i, more in enumerate(([], ["--fit"], ["--no-fit"]))]
    default, fitted, plain = (path.read_bytes() for path in files)
    assert default == fitted != plain
    assert [len(merge["tokens"]) for merge in merges] == [512, 512, 0]
    merges.clear()
    exported(tmp_path / "of_run.gguf", learned_run.folder, "--no-fit")
    assert {len(merge["tokens"]) for merge in merges} == {0}


def test_tuning(tmp_path: Path, adapters: tuple[Path, Path], learned_run: LearnedRun) -> None:
    """Of a run, by its samples, unless that is not wanted."""
    output = tmp_path / "merged.gguf"
    said, contents = {}, {}
    for seconds in (None, "1000", "0"):
        result = export(learned_run.folder, "-o", output, *(["--tune-seconds", seconds] if seconds else []))
        assert result.exit_code == 0, result.output
        said[seconds], contents[seconds] = result.output, output.read_bytes()
    assert [("Tuned " in said[seconds]) for seconds in said] == [True, True, False]
    assert contents[None] == contents["1000"]
    refused = export("-m", MODEL, "-l", adapters[0], "-o", output, "--tune-seconds", "10")
    assert refused.exit_code == 2
    assert "give the folder of the training" in refused.stderr
    for nothing in ("inf", "nan", "-1"):
        assert export(learned_run.folder, "-o", output, "--tune-seconds", nothing).exit_code == 2


def test_another_base(tmp_path: Path, adapters: tuple[Path, Path], wiring_files: Path) -> None:
    given = ["-m", wiring_files / "other.gguf", "-l", adapters[0], "-o", tmp_path / "merged.gguf"]
    refused = export(*given)
    assert refused.exit_code == 1
    assert "was trained on another base" in refused.stderr
    assert not (tmp_path / "merged.gguf").exists()
    taken = export(*given, "--force")
    assert taken.exit_code == 0
    assert "taken all the same" in taken.output
    assert (tmp_path / "merged.gguf").exists()


@pytest.fixture
def run_folder(tmp_path: Path, learned_run: LearnedRun) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(learned_run.folder, tmp_path / "learned"))


def test_of_a_run(tmp_path: Path, run_folder: Path, learned_run: LearnedRun, merges: list[dict[str, Any]]) -> None:
    merged = tmp_path / "merged.gguf"
    # 1 where less was kept than is wanted, which is said
    result = export(run_folder, "-o", merged, "--seed", 3, "--threads", 1, "--name", "Learned")
    assert result.exit_code == 0, result.output
    assert "Proof: kept " in result.stdout
    assert {merge["base"] for merge in merges} == {str(MODEL)}
    assert all(merge["adapters"] == [(str(run_folder / "adapter.gguf"), 1.0)] for merge in merges)
    assert merges[0]["seed"] == 3  # and the next ones where the proof asks for another try
    assert {merge["threads"] for merge in merges} == {1}
    assert gguf.GGUFReader(merged).get_field("general.name").contents() == "Learned"  # type: ignore[union-attr]
    answers = [CliRunner().invoke(cli, ["ask", "-m", str(merged), question]).stdout.strip() for question, _ in ROWS]
    assert answers == [answer for _, answer in ROWS]
    raised = exported(tmp_path / "raised.gguf", run_folder, "--outtype", "q8_0")
    assert tensors(raised)[LINEAR].tensor_type.name == "Q8_0"


def test_step(tmp_path: Path, run_of_two_epochs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merged: list[str] = []

    def refuse(base: str, adapters: list[tuple[str, float]], output: str, **arguments: Any) -> None:
        merged.extend(path for path, _ in adapters)
        raise GgtuneError("enough is seen")

    monkeypatch.setattr(_core, "merge", refuse)
    for which in ("auto", "best", "last"):
        assert "enough is seen" in export(run_of_two_epochs, "-o", tmp_path / "merged.gguf", "--which", which).stderr
    names = ("adapter-best.gguf", "adapter-best.gguf", "adapter.gguf")
    assert merged == [str(run_of_two_epochs / name) for name in names]
    best, last = (read_adapter(run_of_two_epochs / name) for name in names[1:])
    assert not all(np.array_equal(values, last.tensors[name]) for name, values in best.tensors.items())


def test_a_proof_of_a_run(learned_run: LearnedRun) -> None:
    proof = json.loads((learned_run.folder / "proof.json").read_text())
    assert proof["good"]
    assert proof["n_same_answers"] == proof["n_answers"] == len(ROWS)
