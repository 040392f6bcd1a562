import errno
import hashlib
import json
import os
import shutil
import struct
import time
from types import SimpleNamespace

import gguf_samples as samples
import pytest

from ggtune.errors import GgtuneError
from ggtune.gguf.header import read_header
from ggtune.ollama.store import default_store, parameter_count, write_model

MODEL_LAYER = "application/vnd.ollama.image.model"


@pytest.fixture
def model(tmp_path):
    return samples.write_model(tmp_path / "m.gguf")


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def blob_of(store, layer):
    return store / "blobs" / layer["digest"].replace(":", "-")


def test_store_read_back_as_ollama_would(tmp_path, model):
    store = tmp_path / "store"
    adapter = samples.write_adapter(tmp_path / "a.gguf")
    stored = write_model(
        store,
        "me/chem:v1",
        model,
        template="{{ .Prompt }}{{ .Response }}",
        system="Schön\u200d kurz.",
        license="Free.",
        params={"stop": ["</s>"], "num_ctx": 64},
        adapter=adapter,
    )
    path = store / "manifests/registry.ollama.ai/me/chem/v1"
    assert stored.manifest == path
    manifest = json.loads(path.read_bytes())
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert manifest["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    kinds = [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]]
    assert kinds == ["model", "adapter", "template", "system", "license", "params"]

    for layer in [manifest["config"], *manifest["layers"]]:
        assert set(layer) == {"mediaType", "digest", "size"}
        blob = blob_of(store, layer)
        content = blob.read_bytes()
        assert hashlib.sha256(content).hexdigest() == layer["digest"].removeprefix("sha256:")
        assert len(content) == layer["size"]
        assert blob.stat().st_mode & 0o777 == 0o644
    assert path.stat().st_mode & 0o777 == 0o644
    contents = [blob_of(store, layer).read_bytes() for layer in manifest["layers"]]
    assert contents[:2] == [model.read_bytes(), adapter.read_bytes()]
    assert contents[2:5] == [b"{{ .Prompt }}{{ .Response }}", "Schön\u200d kurz.".encode(), b"Free."]
    assert json.loads(contents[5]) == {"stop": ["</s>"], "num_ctx": 64}
    assert json.loads(blob_of(store, manifest["config"]).read_bytes()) == {
        "model_format": "gguf",
        "model_family": "llama",
        "model_families": ["llama"],
        "model_type": "1K",  # 4 x 32 + 32 x 32
        "file_type": "Q8_0",
        "architecture": "amd64",
        "os": "linux",
    }
    # nothing else: no temporary file that a server would list or keep
    assert len(files_below(store)) == 1 + 7


def test_texts_that_are_not_given_have_no_layer(tmp_path, model):
    stored = write_model(tmp_path / "s", "m", model, system="", params={})
    assert [layer.media_type for layer in stored.layers] == [MODEL_LAYER]


def test_same_text_in_two_layers_is_one_blob(tmp_path, model):
    store = tmp_path / "s"
    stored = write_model(store, "m", model, template="x", system="x")
    assert len(list((store / "blobs").iterdir())) == 3
    assert stored.written_bytes == stored.config.size + model.stat().st_size + 1


def test_second_write_copies_nothing_and_touches(tmp_path, model):
    store = tmp_path / "s"
    first = write_model(store, "m", model, system="one")
    blob = store / "blobs" / first.layers[0].digest.replace(":", "-")
    os.utime(blob, (1, 1))
    second = write_model(store, "m", model, system="other")
    assert second.written_bytes == len("other")
    assert blob.stat().st_mtime > 1
    assert json.loads(second.manifest.read_bytes())["layers"][1]["size"] == len("other")


def test_corrupted_blob_is_replaced(tmp_path, model):
    store = tmp_path / "s"
    blob = store / "blobs" / write_model(store, "m", model).layers[0].digest.replace(":", "-")
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    assert write_model(store, "m", model).repaired == (blob,)
    assert blob.read_bytes() == model.read_bytes()


def test_progress_ends_at_the_total(tmp_path, model):
    calls = []
    write_model(tmp_path / "s", "m", model, progress=lambda done, total: calls.append((done, total)))
    total = 2 * model.stat().st_size
    assert calls == sorted(calls)
    assert calls[-1] == (total, total)


def test_blob_deleted_meanwhile_is_written_again(tmp_path, model, monkeypatch):
    """A server that starts between the blobs and the manifest deletes what no manifest names."""
    store = tmp_path / "s"
    mkdir = type(store).mkdir

    def mkdir_then_prune(path, *args, **kwargs):
        mkdir(path, *args, **kwargs)
        if "manifests" in path.parts:
            for blob in (store / "blobs").iterdir():
                blob.unlink()

    monkeypatch.setattr(type(store), "mkdir", mkdir_then_prune)
    write_model(store, "m", model)
    assert len(list((store / "blobs").iterdir())) == 2


def test_too_little_space_is_seen_before_anything_is_written(tmp_path, model, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(GgtuneError, match=r"s: .* too little room: 16\.0 MiB needed .*, 1000 B free"):
        write_model(tmp_path / "s", "m", model)
    assert not (tmp_path / "s").exists()


def test_disk_that_fills_up_leaves_no_half_file(tmp_path, model, monkeypatch):
    store = tmp_path / "s"

    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(GgtuneError, match="No space left on device"):
        write_model(store, "m", model)
    assert files_below(store) == []


def test_old_model_stays_where_the_new_one_fails(tmp_path, model, monkeypatch):
    store = tmp_path / "s"
    manifest = write_model(store, "m", model, system="old").manifest
    before = manifest.read_bytes()

    def interrupt(done, total):
        raise KeyboardInterrupt

    other = samples.write_model(tmp_path / "other.gguf", general__name="other")
    with pytest.raises(KeyboardInterrupt):
        write_model(store, "m", other, progress=interrupt)
    assert manifest.read_bytes() == before
    assert len(files_below(store)) == 4


def test_model_that_changes_while_it_is_copied(tmp_path, model):
    size = model.stat().st_size

    def grow(done, total):
        if done == total and model.stat().st_size == size:
            with model.open("ab") as file:
                file.write(b"more")

    with pytest.raises(GgtuneError, match="changed while it was copied"):
        write_model(tmp_path / "s", "m", model, progress=grow)
    assert files_below(tmp_path / "s") == []


def test_store_that_is_a_file(tmp_path, model):
    (tmp_path / "s").write_text("x")
    with pytest.raises(GgtuneError, match="can't write to this Ollama store"):
        write_model(tmp_path / "s", "m", model)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_store_without_write_permission(tmp_path, model):
    (tmp_path / "s").mkdir(mode=0o500)
    with pytest.raises(GgtuneError, match="Permission denied"):
        write_model(tmp_path / "s", "m", model)


@pytest.mark.parametrize("cut", [0, 3, 20, 100, -8])
def test_truncated_model(tmp_path, model, cut):
    model.write_bytes(model.read_bytes()[:cut])
    with pytest.raises(GgtuneError, match=r"m\.gguf: (not a GGUF file|the GGUF file is truncated)"):
        write_model(tmp_path / "s", "m", model)
    assert not (tmp_path / "s").exists()


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(GgtuneError, match="no such file"):
        write_model(tmp_path / "s", "m", tmp_path / "none.gguf")
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(GgtuneError, match="not a GGUF file"):
        write_model(tmp_path / "s", "m", tmp_path / "x.gguf")


def test_split_model(tmp_path):
    with pytest.raises(GgtuneError, match="split"):
        write_model(tmp_path / "s", "m", samples.write_model(tmp_path / "part.gguf", split_count=2))


def test_a_large_vocabulary_takes_no_time(tmp_path):
    """With gguf-py's reader it would be ten seconds."""
    n = 500_000
    token = "\u2581word".encode()
    tokens = (struct.pack("<Q", len(token)) + token) * n
    texts = {"general.architecture": "llama", "tokenizer.ggml.model": "llama"}
    keys = b"".join(_text(key) + struct.pack("<I", 8) + _text(text) for key, text in texts.items())
    keys += _text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, n) + tokens
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 3) + keys)
    start = time.process_time()
    header = read_header(path)
    assert header.special_tokens.bos == token.decode()
    assert time.process_time() - start < 3


def _text(text):
    return struct.pack("<Q", len(text)) + text.encode()


def test_adapters_are_checked(tmp_path, model):
    other = samples.write_adapter(tmp_path / "q.gguf", architecture="qwen2")
    with pytest.raises(GgtuneError, match=r"qwen2 model, but .* llama"):
        write_model(tmp_path / "s", "m", model, adapter=other)
    with pytest.raises(GgtuneError, match="not a LoRA adapter"):
        write_model(tmp_path / "s", "m", model, adapter=model)
    with pytest.raises(GgtuneError, match="not a LoRA adapter"):
        write_model(tmp_path / "s", "m", model, adapter=samples.write_adapter(tmp_path / "v.gguf", kind="other"))
    with pytest.raises(GgtuneError, match="Merge it first"):
        write_model(tmp_path / "s", "m", other)


def test_default_store(monkeypatch, tmp_path):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    assert default_store() == tmp_path
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_store() == tmp_path / "home/.ollama/models"


@pytest.mark.parametrize(
    ("n_params", "text"),
    [(13_015_864_320, "13.0B"), (271_000_000, "271M"), (10_488_064, "10.5M"), (11_200, "11K"), (12, "12")],
)
def test_parameter_count(n_params, text):
    assert parameter_count(n_params) == text
