import base64
import time
from urllib.parse import parse_qs, urlsplit

import fake_registry
import pytest
from click.testing import CliRunner

from ggtune.cli import cli
from ggtune.ollama.keypair import public_key

pytest.importorskip("cryptography", reason="needs cryptography (the extra hub)")

from ssh_keys import verify, write_key


class KeyHandler(fake_registry.Handler):
    """Gives out tokens for signed requests of one key, as Ollama's registry does."""

    def give_token(self):
        registry = self.registry
        query = parse_qs(urlsplit(self.path).query)
        try:
            public = verify(self.headers["Authorization"], "GET", f"{registry.url}{self.path}")
        except Exception:
            public = ""
        fresh = (
            abs(int(query["ts"][0]) - time.time()) < 60
            and len(base64.urlsafe_b64decode(query["nonce"][0] + "==")) == 16
        )
        if public != registry.public or not fresh:
            self.error(401, "UNAUTHORIZED", "key not known")
            return
        token = f"secret-token-{len(registry.tokens)}"
        registry.tokens[token] = query["scope"][0]
        self.answer(200, {}, f'{{"token": "{token}"}}'.encode())


@pytest.fixture
def key(tmp_path):
    return write_key(tmp_path / "id_ed25519")


@pytest.fixture
def signed_server(server, key):
    server._server.RequestHandlerClass = type("Bound", (KeyHandler,), {"registry": server})
    server.users = {"nobody": "knows"}
    server.bearer = True
    server.public = public_key(key).split()[1]
    return server


def publish(*arguments):
    result = CliRunner().invoke(cli, ["publish", "ollama", *map(str, arguments)])
    assert "secret-token" not in result.output
    return result


def test_every_blob_arrives(signed_server, store, name, key, model):
    result = publish(f"http://{name.name}", "--store", store, "--key", key)
    assert result.exit_code == 0, result.output
    manifest = store / "manifests" / name.name.manifest_path()
    assert signed_server.manifests == {"me/chem:v1": manifest.read_bytes()}
    assert model.read_bytes() in signed_server.blobs.values()
    assert len(signed_server.blobs) == len(list((store / "blobs").iterdir()))
    assert set(signed_server.tokens.values()) == {"repository:me/chem:pull", "repository:me/chem:pull,push"}


def test_a_token_that_runs_out_during_a_blob(signed_server, store, name, key, model):
    def forget(handler):
        signed_server.tokens.clear()
        handler.serve()

    signed_server.fault("PATCH", "uploads", forget)
    result = publish(f"http://{name.name}", "--store", store, "--key", key)
    assert result.exit_code == 0, result.output
    assert model.read_bytes() in signed_server.blobs.values()


def test_a_key_that_is_not_known(signed_server, store, name, tmp_path):
    result = publish(f"http://{name.name}", "--store", store, "--key", write_key(tmp_path / "other"))
    assert result.exit_code == 1
    assert "gives no token for the key" in result.output
    assert signed_server.blobs == {}


def test_the_namespace_has_to_be_given(store, key):
    result = publish("chem", "--store", store, "--key", key)
    assert result.exit_code == 1
    assert "NAMESPACE/chem" in result.output


def test_no_key(store, name, tmp_path):
    result = publish(f"http://{name.name}", "--store", store, "--key", tmp_path / "gone")
    assert result.exit_code == 1
    assert "there is no such key" in result.output
