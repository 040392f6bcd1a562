"""``ggtune package --create``: the server is told what the Modelfile and a store would say."""

import hashlib

import gguf_samples as samples
import ollama_stand_in
import pytest
from click.testing import CliRunner

from ggtune.cli import cli


@pytest.fixture
def server():
    with ollama_stand_in.running() as running:
        yield running


@pytest.fixture(autouse=True)
def models_without_a_vocabulary_answer(monkeypatch):
    """The models here are stand-ins."""
    monkeypatch.setattr("ggtune.cli.package._check_answers", lambda model: None)


def package(*arguments):
    return CliRunner().invoke(cli, ["package", *(str(each) for each in arguments)])


def digest_of(path):
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_running_ollama_makes_the_model(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "no store"))
    base = samples.write_model(tmp_path / "m.gguf", chat_template=samples.JINJA["llama2"][0])
    folder = tmp_path / "adapter"
    folder.mkdir()
    adapter = samples.write_adapter(folder / "a.gguf")
    (folder / "Modelfile").write_text("FROM x\nSYSTEM Mine.\n")
    said = ["--message", "user", "Hi", "--param", "top_k", "3", "--create", "--host", server.address]
    result = package(base, "--lora", adapter, "--name", "me/m", *said)
    assert result.exit_code == 0, result.output
    (request,) = server.models.values()
    assert request["system"] == "Mine."
    assert request["messages"] == [{"role": "user", "content": "Hi"}]
    assert request["parameters"]["top_k"] == 3
    assert list(request["files"].values()) == [digest_of(base)]
    assert list(request["adapters"].values()) == [digest_of(adapter)]
    assert "[INST]" in request["template"]
    assert not (tmp_path / "no store").exists()  # the server has one of its own
    assert "Ollama has made" in result.stdout


def test_a_server_that_refuses(server, tmp_path):
    server.refuses_adapters = True
    base = samples.write_model(tmp_path / "m.gguf")
    adapter = samples.write_adapter(tmp_path / "a.gguf")
    result = package(base, "--lora", adapter, "--name", "m", "--create", "--host", server.address)
    assert result.exit_code == 1
    assert "no longer supported" in result.stderr
    assert "Ollama has made" not in result.stdout
