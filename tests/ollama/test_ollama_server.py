import hashlib
import socket

import gguf_samples as samples
import httpx
import ollama_stand_in
import pytest

from ggtune.errors import GgtuneError
from ggtune.ollama import server as ollama_server
from ggtune.ollama.modelfile import Modelfile
from ggtune.ollama.names import ModelName
from ggtune.ollama.server import create_model, server_url

NAME = ModelName.parse("me/chem:v1")


@pytest.fixture
def server():
    with ollama_stand_in.running() as running:
        yield running


@pytest.fixture
def folder(tmp_path):
    samples.write_model(tmp_path / "model.gguf")
    samples.write_adapter(tmp_path / "adapter.gguf")
    return tmp_path


def digest_of(path):
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_server_gets_the_file_and_all_that_the_modelfile_says(server, folder):
    modelfile = Modelfile(
        model="./model.gguf",
        template="{{ .Prompt }}",
        system="Teach.",
        license=["MIT"],
        parameters={"stop": ["[INST]", "x"], "temperature": 1, "num_ctx": 64, "use_mmap": True},
        messages=[("user", "Hi"), ("assistant", "Hello.")],
        requires="0.14.0",
    )
    seen, said = [], []
    create_model(
        modelfile,
        NAME,
        folder,
        host=server.address,
        progress=lambda done, total: seen.append((done, total)),
        say=said.append,
    )
    digest = digest_of(folder / "model.gguf")
    assert server.blobs == {digest: (folder / "model.gguf").read_bytes()}
    assert server.models == {
        "me/chem:v1": {
            "model": "me/chem:v1",
            "stream": True,
            "files": {"model.gguf": digest},
            "template": "{{ .Prompt }}",
            "system": "Teach.",
            "license": ["MIT"],
            "requires": "0.14.0",
            "parameters": {"stop": ["[INST]", "x"], "temperature": 1.0, "num_ctx": 64, "use_mmap": True},
            "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
        }
    }
    size = (folder / "model.gguf").stat().st_size
    assert seen[-1] == (2 * size, 2 * size)
    assert said == ["parsing GGUF", "creating new layer", "writing manifest", "success"]


def test_a_blob_that_is_there_is_not_sent_again(server, folder):
    create_model(Modelfile(model="model.gguf"), NAME, folder, host=server.address)
    server.requests.clear()
    seen = []
    create_model(
        Modelfile(model="model.gguf"), NAME, folder, host=server.address, progress=lambda *counts: seen.append(counts)
    )
    assert [request for request in server.requests if request[0] == "POST"] == [("POST", "/api/create")]
    assert seen[-1][0] == seen[-1][1] == 2 * (folder / "model.gguf").stat().st_size


def test_base_and_adapter_are_sent_apart(server, folder):
    (folder / "out").mkdir()
    modelfile = Modelfile(model="../model.gguf", adapter=str(folder / "adapter.gguf"))
    create_model(modelfile, NAME, folder / "out", host=server.address)
    made = server.models["me/chem:v1"]
    assert made["files"] == {"model.gguf": digest_of(folder / "model.gguf")}
    assert made["adapters"] == {"adapter.gguf": digest_of(folder / "adapter.gguf")}
    assert len(server.blobs) == 2


def test_a_from_that_is_no_file_is_a_model_of_the_server(server, folder):
    create_model(Modelfile(model="llama3:8b", adapter="adapter.gguf"), NAME, folder, host=server.address)
    made = server.models["me/chem:v1"]
    assert made["from"] == "llama3:8b"
    assert "files" not in made


@pytest.mark.parametrize(
    ("modelfile", "message"),
    [
        (Modelfile(model="./gone.gguf"), "gone.gguf: there is no such file"),
        (Modelfile(model="model.gguf", adapter="gone.gguf"), "gone.gguf: there is no such file"),
        (Modelfile(model="."), "a folder"),
        (Modelfile(model="model.gguf", parameters={"colour": 1}), 'no parameter "colour"'),
    ],
)
def test_what_can_be_seen_before_is_said_before(server, folder, modelfile, message):
    with pytest.raises(GgtuneError, match=message):
        create_model(modelfile, NAME, folder, host=server.address)
    assert server.requests == []


def test_a_refused_name(server, folder):
    with pytest.raises(GgtuneError, match=r"did not make refused: invalid model name$"):
        create_model(Modelfile(model="model.gguf"), ModelName.parse("refused"), folder, host=server.address)
    assert server.models == {}


def test_newer_servers_refuse_adapters(server, folder):
    server.refuses_adapters = True
    with pytest.raises(GgtuneError, match=r"LoRA adapters are no longer supported \(Newer servers .* export-lora"):
        create_model(Modelfile(model="model.gguf", adapter="adapter.gguf"), NAME, folder, host=server.address)


def test_an_error_in_the_stream(server, folder):
    server.fails_with = "template: :1:\n unexpected EOF"
    with pytest.raises(GgtuneError, match=r"did not make me/chem:v1: template: :1: unexpected EOF$"):
        create_model(Modelfile(model="model.gguf"), NAME, folder, host=server.address)
    assert server.models == {}


@pytest.mark.parametrize(("n_lines", "message"), [(0, "was made. Look"), (2, 'its last words: "creating new layer"')])
def test_a_stream_that_ends_too_early(server, folder, n_lines, message):
    server.stops_after = n_lines
    with pytest.raises(GgtuneError, match=message):
        create_model(Modelfile(model="model.gguf"), NAME, folder, host=server.address)


def test_an_upload_that_is_cut(server, folder):
    server.cuts_uploads = True
    big = folder / "big.gguf"
    big.write_bytes(bytes(20 << 20))  # more than the sockets' buffers
    with pytest.raises(GgtuneError, match=rf"connection to the Ollama server at http://{server.address} was cut"):
        create_model(Modelfile(model="big.gguf"), NAME, folder, host=server.address)
    assert server.blobs == {}
    assert server.models == {}


def test_a_server_that_stalls(server, folder, monkeypatch):
    monkeypatch.setattr(ollama_server, "_READ_S", 0.2)
    server.stalls = True
    with pytest.raises(GgtuneError, match=r"has stopped answering \(ReadTimeout\)"):
        create_model(Modelfile(model="model.gguf"), NAME, folder, host=server.address)


def test_a_file_that_changes_meanwhile(server, folder, monkeypatch):
    path = folder / "model.gguf"
    original = ollama_server._send

    def change_then_send(client, file, digest, count):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        original(client, file, digest, count)

    monkeypatch.setattr(ollama_server, "_send", change_then_send)
    with pytest.raises(GgtuneError, match=r"refused .*model.gguf: digest mismatch"):
        create_model(Modelfile(model="model.gguf"), NAME, folder, host=server.address)
    assert server.models == {}


@pytest.mark.parametrize("change", [lambda data: data[:-100], lambda data: data + b"more"])
def test_a_file_whose_size_changes_meanwhile(server, folder, monkeypatch, change):
    path = folder / "model.gguf"
    original = ollama_server._send

    def change_then_send(client, file, digest, count):
        path.write_bytes(change(path.read_bytes()))
        original(client, file, digest, count)

    monkeypatch.setattr(ollama_server, "_send", change_then_send)
    with pytest.raises(GgtuneError, match="changed while it was sent"):
        create_model(Modelfile(model="model.gguf"), NAME, folder, host=server.address)
    assert server.models == {}


def test_no_server(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(GgtuneError, match=rf"No Ollama server answers at http://{address} .*ollama serve"):
            create_model(Modelfile(model="model.gguf"), NAME, folder, host=address)


def test_something_else_listens_there(server, folder, monkeypatch):
    with pytest.raises(GgtuneError, match=r"refused .*: not found$"):
        create_model(Modelfile(model="model.gguf"), NAME, folder, host=f"http://{server.address}/other")


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(server, folder, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("OLLAMA_HOST", server.address)
    create_model(Modelfile(model="model.gguf"), NAME, folder)
    assert "me/chem:v1" in server.models


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("localhost", "http://localhost:11434"),
        (" 'example.com:8080' ", "http://example.com:8080"),
        (":8080", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("[::]:1234", "http://[::1]:1234"),
        ("fe80::1", "http://[fe80::1]:11434"),
        ("http://example.com", "http://example.com:80"),
        ("https://example.com/", "https://example.com:443"),
        ("https://example.com/ollama/", "https://example.com:443/ollama"),
    ],
)
def test_addresses_are_read_as_ollama_reads_them(monkeypatch, text, url):
    monkeypatch.setenv("OLLAMA_HOST", text)
    assert server_url() == url
    assert server_url(text) == url


@pytest.mark.parametrize("text", ["ftp://x", "x:99999", "x:y", "user@host", "a b", "http://h?q=1"])
def test_addresses_that_are_none(text):
    with pytest.raises(GgtuneError, match="Ollama server's address"):
        server_url(text)


def test_the_client_understands_each_address(monkeypatch):
    assert httpx.URL(server_url("fe80::1")).host == "fe80::1"
