"""run, export-lora and verify as a user calls them: merging, and the proof of what was kept."""

import json
import re
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from ggtune.cli import cli
from ggtune.demo import MODEL

LEARN = ["--ctx", 64, "--batch", 2, "--rank", 4, "--lr", 4e-3, "--epochs", 30, "--threads", 1, "--save-every", 0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> Path:
    """A folder of ``run`` with all answers learned by heart; what it has printed lies in stdout.txt."""
    folder = tmp_path_factory.mktemp("finished")
    table = folder / "table.csv"
    table.write_text("question,answer\n" + "".join(f'"{q}","{a}"\n' for q, a in rows))
    arguments = ["run", table, "--model", MODEL, "--out", folder / "run", *LEARN, "--holdout", 0, "--name", "m"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / ".state"))
        result = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    (folder / "run/stdout.txt").write_text(result.stdout)
    return folder / "run"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same folder, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def files(finished: Path) -> list[object]:
    """Options of ``verify`` for a merged file of that run."""
    return ["--base", MODEL, "--lora", finished / "adapter.gguf", "--data", finished.parent / "table.csv"]


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def test_run_writes_and_prints_its_proof(finished: Path) -> None:
    proof = json.loads((finished / "proof.json").read_text())
    assert proof["good"]
    assert proof["trained"]["kept"] > 0.97
    assert proof["trained"]["n_samples"] == proof["n_answers"] == proof["n_same_answers"] == 6
    assert proof["held_out"] is None
    (line,) = re.findall(r"^Proof: .*$", (finished / "stdout.txt").read_text(), re.MULTILINE)
    assert f"kept {100 * proof['trained']['kept']:.1f} % of the gain" in line
    assert "6 of 6 answers the same" in line
    assert types(finished / "model.gguf") == types(MODEL)


def test_the_merged_model_answers_word_for_word(finished: Path, ggtune, rows) -> None:  # type: ignore[no-untyped-def]
    for question, answer in rows:
        asked = ggtune("ask", "--model", finished / "model.gguf", question)
        assert asked.exit_code == 0, asked.output
        assert asked.stdout.strip() == answer
    assert ggtune("ask", "--model", MODEL, rows[0][0]).stdout.strip() != rows[0][1]


def test_verify_of_a_run(finished: Path, ggtune) -> None:  # type: ignore[no-untyped-def]
    result = ggtune("verify", finished, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Proof: kept ")
    as_json = ggtune("verify", finished, "--threads", 1, "--json")
    values, before = json.loads(as_json.stdout), json.loads((finished / "proof.json").read_text())
    for name in ("trained", "kl", "end_merged", "n_same_answers", "good"):
        assert values[name] == before[name]


def test_verify_of_a_file(finished: Path, files, ggtune) -> None:  # type: ignore[no-untyped-def]
    good = ggtune("verify", finished / "model.gguf", *files, "--threads", 1, "--json")
    assert good.exit_code == 0, good.output
    of_run = json.loads((finished / "proof.json").read_text())
    assert json.loads(good.stdout)["trained"] == of_run["trained"]
    scaled = ["--lora-scaled", finished / "adapter.gguf", 0.5, *files[:2], *files[4:]]
    half = ggtune("verify", finished / "model.gguf", *scaled, "--threads", 1, "--json")
    assert json.loads(half.stdout)["trained"]["live"] > of_run["trained"]["live"] + 0.5


def test_a_bad_merge_is_status_1(copied: Path, files, ggtune) -> None:  # type: ignore[no-untyped-def]
    result = ggtune("verify", MODEL, *files, "--threads", 1)
    assert result.exit_code == 1
    assert "kept 0.0 % of the gain" in result.stdout
    assert "Less than 90 % was kept" in result.stdout
    (copied / "model.gguf").write_bytes(MODEL.read_bytes())
    of_run = ggtune("verify", copied, "--threads", 1, "--json")
    assert of_run.exit_code == 1
    assert json.loads(of_run.stdout)["good"] is False


def test_wrong_usage_of_verify(finished: Path, files, tmp_path: Path, ggtune) -> None:  # type: ignore[no-untyped-def]
    for arguments in (
        [],
        [finished / "model.gguf"],
        [finished / "model.gguf", *files[:4]],
        [finished / "model.gguf", *files[2:]],
        [finished, "--base", MODEL],
        [finished, "--lora", finished / "adapter.gguf"],
        [finished, "--data", finished.parent / "table.csv"],
        [finished, "--template", "chatml"],
        [finished, "--system", ""],
        [finished, "--holdout", 2],
        [finished, "--seconds", 0],
    ):
        result = ggtune("verify", *arguments)
        assert result.exit_code == 2, arguments
    for arguments, said in (
        ([tmp_path / "none.gguf", *files], "none.gguf"),
        ([tmp_path], "has no model.gguf"),
        ([finished / "model.gguf", *files[:4], "--data", tmp_path / "none.csv"], "none.csv"),
        ([finished.parent / "table.csv", *files], "table.csv"),
    ):
        result = ggtune("verify", *arguments)
        assert result.exit_code == 1, arguments
        assert said in result.stderr
        assert "Traceback" not in result.output


def test_export_of_a_run(finished: Path, tmp_path: Path, ggtune) -> None:  # type: ignore[no-untyped-def]
    output = tmp_path / "merged.gguf"
    result = ggtune("export-lora", finished, "-o", output, "--threads", 1, "--name", "Sage")
    assert result.exit_code == 0, result.output
    assert f"Wrote {output}: " in result.stdout
    assert "\nProof: kept " in result.stdout
    assert types(output) == types(MODEL)
    # the same merges as those of the run, from which the same one is taken
    reader, of_run = gguf.GGUFReader(output), gguf.GGUFReader(finished / "model.gguf")
    assert all(np.array_equal(a.data, b.data) for a, b in zip(reader.tensors, of_run.tensors, strict=True))
    assert reader.fields["general.name"].contents() == "Sage"
    assert [path.name for path in tmp_path.iterdir()] == ["merged.gguf"]
    f16 = ggtune("export-lora", finished, "-o", output, "--outtype", "f16", "--threads", 1)
    assert f16.exit_code == 0, f16.output
    assert "tensors q5_K to f16" in f16.stdout
    assert set(types(output).values()) >= {"F16"}


def test_export_of_a_run_takes_the_seed(finished: Path, tmp_path: Path, ggtune, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from ggtune.evaluate import proved_merge

    monkeypatch.setattr(proved_merge, "_MORE_SEEDS", 0)
    output = tmp_path / "merged.gguf"
    result = ggtune("export-lora", finished, "-o", output, "--seed", 77, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert gguf.GGUFReader(output).fields["ggtune.merge_seed"].contents() == "77"


def test_wrong_usage_of_export(finished: Path, tmp_path: Path, ggtune) -> None:  # type: ignore[no-untyped-def]
    output = tmp_path / "merged.gguf"
    plain = ["--model-base", MODEL, "--lora", finished / "adapter.gguf"]
    for arguments in (
        [*plain, "--outtype", "auto"],
        [finished, *plain],
        [finished, "--lora", finished / "adapter.gguf"],
        plain[:2],
        plain[2:],
        [],
    ):
        result = ggtune("export-lora", *arguments, "-o", output)
        assert result.exit_code == 2, arguments
    for arguments, said in (
        ([*plain, "--outtype", "nonsense"], "nonsense"),
        ([finished, "--outtype", "nonsense"], "nonsense"),
        ([finished, "--outtype", "iq1_s"], "importance matrix"),
        ([tmp_path], "holds no run"),
    ):
        result = ggtune("export-lora", *arguments, "-o", output)
        assert result.exit_code == 1, arguments
        assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("outtype", ["nonsense", "iq1_s", "q8_1"])
def test_run_checks_the_type_before_it_trains(outtype: str, tmp_path: Path, table, ggtune) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "run"
    result = ggtune("run", table, "--model", MODEL, "--out", out, *LEARN, "--outtype", outtype)
    assert result.exit_code == 1
    assert outtype in result.stderr
    assert not out.exists()


def test_no_merge_has_no_type(tmp_path: Path, table, ggtune) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "run"
    result = ggtune("run", table, "--model", MODEL, "--out", out, *LEARN, "--no-merge", "--outtype", "same")
    assert result.exit_code == 2
    assert not out.exists()


def test_a_run_that_merges_badly_says_so_last(tmp_path: Path, table, ggtune, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from ggtune.evaluate import proof

    monkeypatch.setattr(proof, "GOOD_SHARE", 2.0)  # which no merge reaches
    out = tmp_path / "run"
    options = ["--ctx", 64, "--batch", 2, "--rank", 2, "--lr", 4e-3, "--epochs", 10, "--threads", 1, "--holdout", 0]
    result = ggtune("run", table, "--model", MODEL, "--out", out, *options)
    assert result.exit_code == 1, result.output
    assert "The merged file is NOT good: it keeps " in result.stdout
    assert json.loads((out / "proof.json").read_text())["good"] is False
    assert (out / "Modelfile").exists()


def test_an_adapter_of_another_base_is_refused(finished: Path, tmp_path: Path, files, ggtune) -> None:  # type: ignore[no-untyped-def]
    other, output = tmp_path / "other.gguf", tmp_path / "merged.gguf"
    content = bytearray(MODEL.read_bytes())
    content[-1] ^= 1  # a weight of the last tensor
    other.write_bytes(content)
    arguments = ["export-lora", "--model-base", other, "--lora", finished / "adapter.gguf", "-o", output]
    refused = ggtune(*arguments)
    assert refused.exit_code == 1
    assert "another base" in refused.stderr
    assert "--force" in refused.stderr
    assert not output.exists()
    forced = ggtune(*arguments, "--force")
    assert forced.exit_code == 0, forced.output
    assert "warning: " in forced.output
    proved = ["verify", output, "--base", other, *files[2:], "--threads", 1]
    assert "another base" in ggtune(*proved).stderr
    assert ggtune(*proved, "--force").exit_code == 0


def test_merging_twice_is_warned_of(finished: Path, tmp_path: Path, ggtune) -> None:  # type: ignore[no-untyped-def]
    again = ["--model-base", finished / "model.gguf", "--lora", finished / "adapter.gguf"]
    result = ggtune("export-lora", *again, "-o", tmp_path / "twice.gguf", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "is merged into" in result.output
    assert "it will count twice" in result.output


def test_the_base_is_not_written_over(finished: Path, tmp_path: Path, ggtune) -> None:  # type: ignore[no-untyped-def]
    base = tmp_path / "base.gguf"
    base.write_bytes(MODEL.read_bytes())
    result = ggtune("export-lora", "--model-base", base, "--lora", finished / "adapter.gguf", "-o", base)
    assert result.exit_code == 1
    assert "the base model itself" in result.stderr
    assert base.read_bytes() == MODEL.read_bytes()


def test_run_asks_for_room_for_two_merged_files(tmp_path: Path, table, ggtune, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The one that is taken, and the one that is tried beside it."""
    from ggtune.errors import GgtuneError
    from ggtune.train import session

    needed = []

    def no_room(config: object, outputs: object, n_bytes: int) -> None:
        needed.append(n_bytes)
        raise GgtuneError("no room")

    monkeypatch.setattr(session, "check_disk", no_room)
    for more in ([], ["--no-merge"]):
        result = ggtune("run", table, "--model", MODEL, "--out", tmp_path / "run", *LEARN, *more)
        assert result.exit_code == 1, result.output
        assert "no room" in result.stderr
    assert needed[0] - needed[1] == 2 * MODEL.stat().st_size
