"""Every option of ``package``: by the Modelfile and the store that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from learned import SYSTEM, LearnedRun

from ggtune.cli import cli
from ggtune.cli.package import command
from ggtune.demo import MODEL
from ggtune.gguf.adapter_file import read_adapter
from ggtune.ollama.modelfile import Modelfile

# the test of each
OPTIONS = {
    "model": "test_model_and_folder",
    "model_option": "test_model_and_folder",
    "out": "test_model_and_folder",
    "name": "test_store_and_name",
    "store": "test_store_and_name",
    "no_store": "test_store_and_name",
    "loras": "test_adapters",
    "lora_scaled": "test_adapters",
    "create": "test_create",
    "host": "test_create",
    "template": "test_texts",
    "system": "test_texts",
    "given": "test_texts",
    "licenses": "test_texts",
    "said": "test_texts",
    "which": "test_step",
    "modelfile": "test_modelfile_to_extend",
    "force": "test_another_base",
}


def package(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["package", *map(str, arguments)])


def packaged(out: Path, *arguments: object, store: bool = False) -> Modelfile:
    result = package("--name", "m", "--out", out, *([] if store else ["--no-store"]), *arguments)
    assert result.exit_code == 0, result.output
    return Modelfile.parse((out / "Modelfile").read_text())


def manifest(store: Path, *name: str) -> dict[str, Any]:
    path = store.joinpath("manifests", "registry.ollama.ai", *name)
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def blob(store: Path, content: dict[str, Any], kind: str) -> bytes:
    (layer,) = [layer for layer in content["layers"] if layer["mediaType"].endswith("." + kind)]
    return (store / "blobs" / layer["digest"].replace(":", "-")).read_bytes()


def test_every_option_has_a_test() -> None:
    assert {parameter.name for parameter in command.params if isinstance(parameter, click.Parameter)} == set(OPTIONS)
    assert set(OPTIONS.values()) <= set(globals())


def test_model_and_folder(tmp_path: Path, learned_run: LearnedRun) -> None:
    for i, given in enumerate(([learned_run.merged], ["-m", learned_run.merged], ["--model", learned_run.folder])):
        out = tmp_path / str(i)
        assert (out / packaged(out, *given).model).samefile(learned_run.merged)
    base = tmp_path / "base"
    assert (base / packaged(base, MODEL).model).samefile(MODEL)
    # without --out beside the model
    copy = tmp_path / "copy" / "model.gguf"
    copy.parent.mkdir()
    copy.write_bytes(learned_run.merged.read_bytes())
    assert package(copy, "--name", "m", "--no-store").exit_code == 0
    assert (copy.parent / "Modelfile").is_file()


def test_store_and_name(tmp_path: Path, learned_run: LearnedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    given, default = tmp_path / "given", tmp_path / "default"
    monkeypatch.setenv("OLLAMA_MODELS", str(default))
    arguments = [learned_run.merged, "--out", tmp_path / "out"]
    assert package(*arguments, "--name", "facts:v2", "--store", given).exit_code == 0
    content = manifest(given, "library", "facts", "v2")
    assert blob(given, content, "model") == learned_run.merged.read_bytes()
    assert blob(given, content, "system").decode() == SYSTEM
    assert not default.exists()
    assert package(*arguments, "--name", "me/facts", "--no-store").exit_code == 0
    assert not default.exists()
    assert package(*arguments, "--name", "me/facts").exit_code == 0
    assert manifest(default, "me", "facts", "latest")


def test_adapters(tmp_path: Path, learned_run: LearnedRun, wiring_files: Path) -> None:
    one, two = learned_run.adapter, wiring_files / "adapter.gguf"
    for flag in ("-l", "--lora", "--adapter"):
        written = packaged(tmp_path / flag, MODEL, flag, one)
        assert written.adapter is not None
        assert (tmp_path / flag / written.adapter).samefile(one)
    packaged(tmp_path / "sum", MODEL, "--lora", one, "--lora-scaled", two, -0.5)
    content = read_adapter(tmp_path / "sum" / "stacked-adapter.gguf")
    first, second = read_adapter(one), read_adapter(two)

    def product(adapter: Any, base: str) -> Any:
        a, b = adapter.tensors[base + ".lora_a"], adapter.tensors[base + ".lora_b"]
        return adapter.alpha / adapter.rank_of(base) * (b @ a)

    for base in content.bases:
        expected = product(first, base) - 0.5 * product(second, base)
        np.testing.assert_allclose(product(content, base), expected, rtol=0, atol=1e-6)


def test_texts(tmp_path: Path, learned_run: LearnedRun) -> None:
    plain = packaged(tmp_path / "plain", learned_run.merged)
    assert plain.system == SYSTEM  # that of the training, and so is the template
    assert plain.template is not None
    assert "<|im_start|>user" in plain.template
    assert plain.messages == []
    licence = tmp_path / "licence.txt"
    licence.write_text("Free to use.")
    changed = {
        "system": (["--system", "Rhyme."], "Rhyme."),
        "license": (["--license", licence], ["Free to use."]),
        "messages": (["--message", "user", "Hi!", "--message", "assistant", "Ho!"], None),
        "template": (["--template", "alpaca"], None),
        "parameters": (["--param", "temperature", "0.25", "--param", "num_ctx", "77", "--param", "stop", "END"], None),
    }
    for name, (given, expected) in changed.items():
        written = packaged(tmp_path / name, learned_run.merged, *given)
        if expected is not None:
            assert getattr(written, name) == expected
        # nothing else is another, but for the stop texts of another template
        same = {"system", "license", "messages", "template", "parameters"} - {name}
        for other in same - ({"parameters"} if name == "template" else set()):
            assert getattr(written, other) == getattr(plain, other)
    messages = Modelfile.parse((tmp_path / "messages" / "Modelfile").read_text()).messages
    assert messages == [("user", "Hi!"), ("assistant", "Ho!")]
    template = Modelfile.parse((tmp_path / "template" / "Modelfile").read_text())
    assert template.template is not None
    assert "### Instruction:" in template.template
    assert "<|im_start|>" not in template.template
    assert template.parameters["stop"] == ["### Instruction:", "### Response", "</s>"]
    parameters = dict(Modelfile.parse((tmp_path / "parameters" / "Modelfile").read_text()).parameters)
    stops = plain.parameters["stop"]
    assert isinstance(stops, list)
    assert parameters == {**plain.parameters, "temperature": 0.25, "num_ctx": 77, "stop": [*stops, "END"]}


def test_step(tmp_path: Path, run_of_two_epochs: Path) -> None:
    for which, name in (("auto", "adapter-best.gguf"), ("best", "adapter-best.gguf"), ("last", "adapter.gguf")):
        written = packaged(tmp_path / which, run_of_two_epochs, "--which", which)
        assert written.adapter is not None
        assert (tmp_path / which / written.adapter).samefile(run_of_two_epochs / name)


def test_modelfile_to_extend(tmp_path: Path, learned_run: LearnedRun) -> None:
    mine = tmp_path / "Mine"
    mine.write_text('FROM elsewhere\nPARAMETER top_k 7\nMESSAGE user "Who are you?"\n')
    written = packaged(tmp_path / "out", learned_run.merged, "--modelfile", mine)
    assert written.parameters["top_k"] == 7
    assert written.messages == [("user", "Who are you?")]
    assert (tmp_path / "out" / written.model).samefile(learned_run.merged)
    assert "top_k" not in packaged(tmp_path / "without", learned_run.merged).parameters


def test_another_base(tmp_path: Path, learned_run: LearnedRun, wiring_files: Path) -> None:
    given = [wiring_files / "other.gguf", "--lora", learned_run.adapter]
    refused = package("--name", "m", "--out", tmp_path / "out", "--no-store", *given)
    assert refused.exit_code == 1
    assert "was trained on another base" in refused.stderr
    assert not (tmp_path / "out" / "Modelfile").exists()
    assert packaged(tmp_path / "out", *given, "--force").adapter is not None


def test_create(tmp_path: Path, learned_run: LearnedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []

    def create_model(content: Modelfile, name: object, folder: Path, *, host: str | None = None, say: Any) -> None:
        made.append((content.system, str(name), folder, host))

    monkeypatch.setattr("ggtune.ollama.server.create_model", create_model)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "default"))
    arguments = [learned_run.merged, "--out", tmp_path, "--name", "facts"]
    assert package(*arguments, "--no-store").exit_code == 0
    assert not made
    assert package(*arguments, "--create").exit_code == 0
    assert package(*arguments, "--create", "--host", "there:1").exit_code == 0
    name = made[0][1]
    assert "facts" in name
    assert made == [(SYSTEM, name, tmp_path, None), (SYSTEM, name, tmp_path, "there:1")]
    assert not (tmp_path / "default").exists()  # the server has a store of its own
    assert package(*arguments, "--host", "there:1").exit_code == 2
