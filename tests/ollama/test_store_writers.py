"""Several processes that write to one store at the same time."""

import json
import subprocess
import sys
from pathlib import Path

import gguf_samples
import pytest
from fake_registry import FakeRegistry

from ggtune.ollama.manifest import Manifest
from ggtune.ollama.registry.push import push_model
from ggtune.ollama.registry.reference import Reference
from ggtune.ollama.store import write_model

WRITER = """
import json, sys
from pathlib import Path
from ggtune.ollama.registry.pull import pull_model
from ggtune.ollama.registry.reference import Reference
from ggtune.ollama.store import write_model

store, base, adapter, name, pulled, rounds = json.loads(sys.argv[1])
sys.stdin.read()  # all begin at the same time
for i in range(rounds):
    write_model(Path(store), "me/shared", Path(base), adapter=Path(adapter), system=f"{name} {i}")
    write_model(Path(store), f"me/{name}", Path(base), adapter=Path(adapter), system="The same for all.")
    if pulled:
        pull_model(Path(store), Reference.parse(pulled))
"""
ROUNDS = 12
pytestmark = pytest.mark.usefixtures("own_home")


def manifests(store: Path) -> dict[str, Manifest]:
    paths = store.glob("manifests/*/*/*/*")
    return {path.parent.name: Manifest.parse(path.read_bytes(), str(path)) for path in paths}


def test_writers_and_a_reader(tmp_path: Path, server: FakeRegistry) -> None:
    base = gguf_samples.write_model(tmp_path / "m.gguf", general__name="x" * 200_000)
    adapters = [gguf_samples.write_adapter(tmp_path / f"{kind}.gguf") for kind in ("one", "two")]
    adapters[1].write_bytes(adapters[1].read_bytes()[:-4] + b"\0\0\0\1")
    name = Reference.parse(f"http://{server.host}/me/pulled")
    write_model(tmp_path / "pushed", name.name, base, adapter=adapters[0], system="Pulled.")
    push_model(tmp_path / "pushed", name)

    store = tmp_path / "store"
    writers = []
    for i in range(4):
        arguments = [
            str(store),
            str(base),
            str(adapters[i % 2]),
            f"own{i}",
            f"http://{name.name}" if i < 2 else "",
            ROUNDS,
        ]
        command = [sys.executable, "-c", WRITER, json.dumps(arguments)]
        writers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
        writer.stdin = None
    seen = 0
    while any(writer.poll() is None for writer in writers):
        # what a server would list is whole at any time
        for model, manifest in manifests(store).items():
            seen += 1
            for layer in manifest.blobs():
                blob = store / "blobs" / layer.digest.replace(":", "-")
                assert blob.stat().st_size == layer.size, model
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors
    assert seen > 0

    found = manifests(store)
    assert set(found) == {"shared", "pulled", *(f"own{i}" for i in range(4))}
    blobs = {path.name for path in (store / "blobs").iterdir()}
    # the base, two adapters, texts, and no temporary file
    texts = 4 * ROUNDS + len(["The same for all.", "Pulled."])
    assert len(blobs) == 1 + 2 + texts + len(["config"])
    assert {manifest.layers[0].digest for manifest in found.values()} == {found["shared"].layers[0].digest}
    assert {path.name for path in store.iterdir()} == {"blobs", "manifests"}
    for path in (store / "blobs").iterdir():
        assert path.stat().st_mode & 0o777 == 0o644


def test_two_machines_with_the_same_process_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers that share a volume: their temporary files have names of their own all the same."""
    base = gguf_samples.write_model(tmp_path / "m.gguf")
    names = []
    for store in ("one", "two"):
        monkeypatch.setattr("ggtune.files._numbers", iter(range(99)))
        replace = Path.replace

        def noted(path: Path, target: Path, replace=replace) -> Path:
            names.append(path.name)
            return replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", noted)
            write_model(tmp_path / store, "m", base)
    assert len(names) == len(set(names)) == 6
    assert all(name.startswith("sha256-") for name in names)


def test_a_base_is_stored_once_for_its_adapters(tmp_path: Path) -> None:
    base = gguf_samples.write_model(tmp_path / "m.gguf")
    store = tmp_path / "store"
    for name in ("a", "b", "c"):
        adapter = gguf_samples.write_adapter(tmp_path / f"{name}.gguf")
        adapter.write_bytes(adapter.read_bytes()[:-4] + name.encode() * 4)
        stored = write_model(
            store,
            name,
            base,
            adapter=adapter,
            messages=[("user", f"I am {name}."), ("assistant", "Ä")],
            license=["Free.", "As in beer."],
        )
        kinds = [layer.kind for layer in stored.layers]
        assert kinds == ["model", "adapter", "license", "license", "messages"]
        text = (store / "blobs" / stored.layers[4].digest.replace(":", "-")).read_text()
        assert json.loads(text) == [{"role": "user", "content": f"I am {name}."}, {"role": "assistant", "content": "Ä"}]
    assert stored.written_bytes == stored.layers[1].size + stored.layers[4].size
    assert len(list((store / "blobs").iterdir())) == 1 + 3 + 3 + 2 + 1
