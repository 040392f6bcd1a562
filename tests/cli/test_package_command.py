"""``ggtune package`` as a user calls it: on runs, on a base with adapters, on a Modelfile that is there."""

import json
from pathlib import Path

import gguf
import pytest

from ggtune.demo import MODEL
from ggtune.ollama.modelfile import Modelfile

SMALL = ["--ctx", "96", "--batch", "2", "--rank", "2", "--threads", "1", "--max-steps", "1", "--holdout", "0"]


def modelfile(folder: Path) -> Modelfile:
    return Modelfile.parse((folder / "Modelfile").read_text())


def keys(path: Path) -> dict[str, object]:
    reader = gguf.GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items() if key.startswith("ggtune.")}


def ok(result):  # type: ignore[no-untyped-def]
    assert result.exit_code == 0, result.output
    return result


def system_table(tmp_path: Path, *systems: str) -> Path:
    path = tmp_path / "systems.csv"
    rows = [f'"What is {i}?","A number.","{system}"\n' for i, system in enumerate(systems)]
    path.write_text("question,answer,system\n" + "".join(rows))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an adapter alone, trained with chatml and a column of system texts."""
    from click.testing import CliRunner

    from ggtune.cli import cli

    folder = tmp_path_factory.mktemp("trained")
    table = system_table(folder, "Count.", "Count.")
    arguments = ["train", "--model", MODEL, "--data", table, "--out", folder / "run", "--template", "chatml", *SMALL]
    ok(CliRunner().invoke(cli, [*(str(each) for each in arguments), "--system", "No sample has this."]))
    return folder / "run"


def test_a_run_without_a_merged_model(ggtune, tmp_path, trained) -> None:  # type: ignore[no-untyped-def]
    ok(ggtune("package", trained, "--name", "m", "--store", tmp_path / "store", "--out", tmp_path))
    written = modelfile(tmp_path)
    assert (tmp_path / written.model).samefile(MODEL)
    assert written.adapter is not None
    assert (tmp_path / written.adapter).samefile(trained / "adapter.gguf")
    assert written.system == "Count."
    assert written.template is not None
    assert "<|im_start|>user" in written.template  # though the base has a chat template of its own
    manifest = json.loads((tmp_path / "store/manifests/registry.ollama.ai/library/m/latest").read_text())
    kinds = [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]]
    assert kinds == ["model", "adapter", "template", "system", "license", "params"]


def test_the_step_of_a_run(ggtune, tmp_path, table, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from ggtune.train import loop

    losses = iter([5.0, 4.0, 4.5])
    monkeypatch.setattr(loop.Loop, "_evaluate", lambda self: next(losses))
    run, out = tmp_path / "run", tmp_path / "out"
    options = [*SMALL[: SMALL.index("--max-steps")], "--holdout", 1, "--epochs", 2, "--save-every", 0]
    ok(ggtune("train", "--data", table, "--model", MODEL, "--out", run, *options))
    package = ["package", run, "--name", "m", "--no-store", "--out", out]
    for more, name, said in [
        ([], "adapter-best.gguf", "step 3, the best held-out loss"),
        (["--which", "last"], "adapter.gguf", "step 6, the last"),
    ]:
        assert f"Adapter: {run / name}: {said}" in ok(ggtune(*package, *more)).stdout
        assert modelfile(out).adapter == f"../run/{name}"
    (run / "model.gguf").write_bytes(MODEL.read_bytes())  # a merged model is preferred, but not to a step that is named
    ok(ggtune(*package))
    assert (modelfile(out).model, modelfile(out).adapter) == ("../run/model.gguf", None)
    ok(ggtune(*package, "--which", "best"))
    assert modelfile(out).adapter == "../run/adapter-best.gguf"
    # checkpoints take more room than the adapter, and may be gone
    for checkpoint in run.glob("checkpoint-*"):
        checkpoint.unlink()
    ok(ggtune(*package, "--which", "best"))
    assert modelfile(out).adapter == "../run/adapter-best.gguf"
    ok(ggtune(*package, "--which", "last"))
    assert modelfile(out).adapter == "../run/adapter.gguf"


def test_base_and_adapter(ggtune, tmp_path, trained) -> None:  # type: ignore[no-untyped-def]
    adapter = trained / "adapter.gguf"
    for option in ("--lora", "--adapter"):
        out = tmp_path / option
        ok(ggtune("package", "--model", MODEL, option, adapter, "--name", "m", "--no-store", "--out", out))
        assert modelfile(out).system == "Count."
    arguments = ["--lora", adapter, "--lora-scaled", adapter, "0.5", "--name", "m", "--no-store"]
    ok(ggtune("package", MODEL, *arguments, "--out", tmp_path / "two"))
    assert modelfile(tmp_path / "two").adapter == "./stacked-adapter.gguf"
    # beside the adapter where nothing else is said
    alone = tmp_path / "alone" / "adapter.gguf"
    alone.parent.mkdir()
    alone.write_bytes(adapter.read_bytes())
    ok(ggtune("package", MODEL, "--lora", alone, "--name", "m", "--no-store"))
    assert modelfile(alone.parent).adapter == "./adapter.gguf"


def test_ask_takes_the_system_text_of_the_column(ggtune, trained) -> None:  # type: ignore[no-untyped-def]
    ask = ["ask", "--model", MODEL, "--lora", trained / "adapter.gguf", "What is 1?", "--max-tokens", 12]
    answers = [ok(ggtune(*ask, *more)).stdout for more in ([], ["--system", "Count."], ["--system", ""])]
    assert answers[0] == answers[1] != answers[2]


def test_system_text_that_convert_wrote(ggtune, tmp_path, table) -> None:  # type: ignore[no-untyped-def]
    text, adapter = tmp_path / "train.txt", tmp_path / "lora.gguf"
    ok(ggtune("convert", table, "-o", text, "--template", "llama2", "--system", "Be brief."))
    checkpoints = ["--checkpoint-out", tmp_path / "c-ITERATION.gguf", "--sample-start", "<SFT>"]
    old = ["--model-base", MODEL, "--train-data", text, "--lora-out", adapter, *checkpoints]
    ok(ggtune("finetune", *old, "--ctx", 96, "--batch", 2, "--adam-iter", 1, "--threads", 1))
    merged = tmp_path / "merged.gguf"
    ok(ggtune("export-lora", "--model-base", MODEL, "--lora", adapter, "--model-out", merged))
    for source in (["--model", MODEL, "--lora", adapter], [merged]):
        ok(ggtune("package", *source, "--name", "m", "--no-store", "--out", tmp_path))
        assert modelfile(tmp_path).system == "Be brief."


@pytest.mark.parametrize(("systems", "said"), [(("A.", "B."), True), (("", ""), False)])
def test_system_texts_that_differ_or_are_none(ggtune, tmp_path, systems, said) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "run"
    result = ok(ggtune("run", system_table(tmp_path, *systems), "--model", MODEL, "--out", out, *SMALL))
    assert modelfile(out).system is None
    assert ("No SYSTEM was written" in result.stdout) == said
    assert ("different system texts" in result.stdout) == said
    for name in ("adapter.gguf", "model.gguf"):
        assert keys(out / name)["ggtune.system"] == ""
        assert keys(out / name)["ggtune.system_differs"] == ("true" if said else "false")
    again = ok(ggtune("package", out, "--name", "m", "--no-store"))
    assert ("No SYSTEM was written" in again.stdout) == said
    assert modelfile(out).model == "./model.gguf"


def test_run_without_merging(ggtune, tmp_path, table) -> None:  # type: ignore[no-untyped-def]
    out, store = tmp_path / "run", tmp_path / "store"
    options = ["--no-merge", "--template", "chatml", "--system", "Count.", "--store", store, "--name", "count"]
    result = ok(ggtune("run", table, "--model", MODEL, "--out", out, *SMALL, *options))

    def check(result) -> list[dict[str, str]]:  # type: ignore[no-untyped-def]
        assert not (out / "model.gguf").exists()
        written = modelfile(out)
        assert (out / written.model).samefile(MODEL)
        assert (written.adapter, written.system) == ("./adapter.gguf", "Count.")
        assert written.template is not None
        assert "<|im_start|>" in written.template
        assert f"--lora {out}/adapter.gguf" in result.stdout
        manifest = json.loads((store / "manifests/registry.ollama.ai/library/count/latest").read_text())
        kinds = {layer["mediaType"].rpartition(".")[2]: layer["digest"] for layer in manifest["layers"]}
        for kind, path in [("model", MODEL), ("adapter", out / "adapter.gguf")]:
            assert (store / "blobs" / kinds[kind].replace(":", "-")).read_bytes() == path.read_bytes()
        return manifest["layers"]  # type: ignore[no-any-return]

    first = check(result)
    # the run's own way, not what resume would do by itself
    assert check(ok(ggtune("resume", out, "--max-steps", 2))) != first
    both = ggtune("run", table, "--model", MODEL, "--out", tmp_path / "o", "--no-merge", "--outtype", "f16")
    assert both.exit_code == 2
    assert "leave it out with --no-merge" in both.stderr


def test_run_asks_before_it_trains_whether_it_can_package(ggtune, tmp_path, table) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "run"
    (tmp_path / "store").write_text("a file")
    for options, message in [
        (["--store", tmp_path / "store"], "this Ollama store"),
        (["--template", "gemma", "--system", "S."], "no place for a system text"),
    ]:
        result = ggtune("run", table, "--model", MODEL, "--out", out, *SMALL, *options)
        assert result.exit_code == 1
        assert message in result.stderr
        assert not out.exists()


def test_folders_without_a_run(ggtune, tmp_path, trained) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    run.mkdir()

    def refused(*arguments: object) -> str:
        result = ggtune("package", run, "--name", "m", "--no-store", *arguments)
        assert result.exit_code == 1
        assert not (run / "Modelfile").exists()
        return str(result.stderr)

    assert "neither model.gguf nor adapter.gguf" in refused()
    (run / "adapter.gguf").write_bytes((trained / "adapter.gguf").read_bytes())
    assert "can't read" in refused()
    (run / "config.json").write_text(json.dumps({"model": "gone.gguf"}))
    assert "gone.gguf: there is no such file" in refused()
    # started elsewhere, with a relative path
    (run / "config.json").write_text(json.dumps({"model": MODEL.name}))
    (run / "status.json").write_text(json.dumps({"working_folder": str(MODEL.parent)}))
    ok(ggtune("package", run, "--name", "m", "--no-store"))
    assert (run / modelfile(run).model).samefile(MODEL)


def test_what_is_given_comes_into_the_users_modelfile(ggtune, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "LICENSE").write_text("Free.\n")
    (tmp_path / "NOTICE").write_text("Mind this.\n")
    (tmp_path / "Modelfile").write_text("# mine\nFROM x\nPARAMETER temperature 0.3\n")
    arguments = ["--license", tmp_path / "LICENSE", "--license", tmp_path / "NOTICE", "--param", "top_k", "5"]
    arguments += ["--message", "user", "Hi", "--message", "assistant", "Yes?", "--param", "stop", "END"]
    result = ok(ggtune("package", MODEL, "--name", "m", "--no-store", "--out", tmp_path, *arguments))
    assert "Kept from" in result.stdout
    written = modelfile(tmp_path)
    assert written.license == ["Free.\n", "Mind this.\n"]
    assert written.messages == [("user", "Hi"), ("assistant", "Yes?")]
    assert (written.parameters["temperature"], written.parameters["top_k"]) == (0.3, 5)
    assert "END" in written.parameters["stop"]  # type: ignore[operator]
    other = ok(
        ggtune(
            "package",
            MODEL,
            "--name",
            "m",
            "--no-store",
            "--out",
            tmp_path / "o",
            "--modelfile",
            tmp_path / "Modelfile",
        )
    )
    assert modelfile(tmp_path / "o").license == ["Free.\n", "Mind this.\n"]
    assert "Kept from" in other.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "m"], "Give the model once"),
        ([MODEL, "--model", MODEL, "--name", "m"], "Give the model once"),
        ([MODEL, "--name", "m", "--no-store", "--store", "s"], "exclude each other"),
        ([MODEL, "--name", "m", "--which", "best"], "--which goes with the folder of a run"),
        ([MODEL, "--name", "m", "--which", "last", "--lora", "a.gguf"], "--which takes an adapter of a run"),
        ([MODEL, "--name", "m", "--host", "h"], "--host goes with --create"),
    ],
)
def test_wrong_usage(ggtune, arguments, message) -> None:  # type: ignore[no-untyped-def]
    result = ggtune("package", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
