import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import gguf_samples
import pytest
from fake_registry import FakeRegistry

from ggtune.ollama.registry.reference import Reference
from ggtune.ollama.store import write_model


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without logins, no proxy between the tests and the loopback device, no long list of certificates."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("XDG_STATE_HOME", "DOCKER_CONFIG", "NETRC", "OLLAMA_MODELS", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(home))
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"GGTUNE_REGISTRY_{name}", raising=False)
    return home


@pytest.fixture
def start_registry(own_home: Path) -> Iterator[Callable[[], FakeRegistry]]:
    """Start small registries that misbehave as they are told."""
    started = []

    def start() -> FakeRegistry:
        started.append(FakeRegistry())
        return started[-1]

    yield start
    for registry in started:
        registry.stop()


@pytest.fixture
def server(start_registry: Callable[[], FakeRegistry]) -> FakeRegistry:
    return start_registry()


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(gguf_samples.write_model(tmp_path / "m.gguf"))


@pytest.fixture
def store(tmp_path: Path, model: Path, server: FakeRegistry) -> Path:
    """An Ollama store that holds the model of :func:`name`, with a text of one byte."""
    folder = tmp_path / "store"
    write_model(folder, f"{server.host}/me/chem:v1", model, template="{{ .Prompt }}", system="x")
    return folder


@pytest.fixture
def name(server: FakeRegistry) -> Reference:
    return Reference.parse(f"http://{server.host}/me/chem:v1")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Take the time out of waiting before another try, and note how long it would have been."""
    seconds: list[float] = []
    monkeypatch.setattr("ggtune.ollama.registry.retry.time", SimpleNamespace(sleep=seconds.append))
    return seconds
