import io
import json
import logging
import socket
import sys

import hub_stand_in
import pytest
import yaml
from click.testing import CliRunner
from run_folders import STOPS, SYSTEM, TEMPLATE, make_run

from ggtune.cli import cli
from ggtune.errors import GgtuneError
from ggtune.publish import hub

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub (the extra hub)")

from huggingface_hub import close_session, constants

# huggingface_hub's own way of handing a file to its HTTP client
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_a1b2c3d4e5f6g7h8"


@pytest.fixture(autouse=True)
def only_this_machine(tmp_path, monkeypatch):
    """Nothing of the user's login, nothing that goes elsewhere, plain LFS."""
    for name in ("HF_ENDPOINT", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.setenv(name, "")  # so that what the command sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    yield
    close_session()


@pytest.fixture
def server(only_this_machine):
    with hub_stand_in.running(TOKEN) as running:
        yield running
        close_session()


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


def publish(server, *arguments):
    command = ["publish", "hf", *map(str, arguments)]
    if server is not None:
        command += ["--endpoint", server.address]
    result = CliRunner().invoke(cli, command)
    assert TOKEN not in result.output
    assert hub_stand_in.SIGNATURE not in result.output
    return result


def test_every_file_arrives_as_it_is(server, run):
    result = publish(server, run, "me/chem-GGUF")
    assert result.exit_code == 0, result.output
    files = server.files("me/chem-GGUF")
    assert list(files) == [
        "chem-Q8_0.gguf",
        "chem-lora.gguf",
        "template",
        "system",
        "params",
        "loss.png",
        "README.md",
    ]
    assert files["chem-Q8_0.gguf"] == (run / "model.gguf").read_bytes()
    assert files["chem-lora.gguf"] == (run / "adapter.gguf").read_bytes()
    assert files["template"].decode() == TEMPLATE
    assert files["system"].decode() == SYSTEM
    assert json.loads(files["params"]) == {"stop": STOPS}
    _, header, text = files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "apache-2.0"
    assert "ollama run hf.co/me/chem-GGUF:Q8_0" in text
    assert not server.repositories["me/chem-GGUF"]["private"]
    assert f"Published: {server.address}/me/chem-GGUF/commit/abc" in result.output
    assert [path for method, path in server.requests if path.startswith("/verify")]
    assert "%|" not in result.output  # progress bars, where there is no terminal


def test_large_files_go_in_parts(server, run):
    server.part_bytes = 1000
    assert publish(server, run, "me/chem").exit_code == 0
    assert server.files("me/chem")["chem-Q8_0.gguf"] == (run / "model.gguf").read_bytes()
    assert [path for _, path in server.requests if path.startswith("/complete/")]


def test_a_second_upload_sends_only_what_is_new(server, run):
    publish(server, run, "me/chem")
    server.requests.clear()
    (run / "adapter.gguf").write_bytes((run / "adapter.gguf").read_bytes() + bytes(32))
    assert publish(server, run, "me/chem").exit_code == 0
    assert len([request for request in server.requests if request[0] == "PUT"]) == 1
    assert server.files("me/chem")["chem-lora.gguf"] == (run / "adapter.gguf").read_bytes()


def test_a_branch(server, run):
    assert publish(server, run, "me/chem", "--revision", "v2/x").exit_code == 0
    assert server.files("me/chem") == {}
    assert "README.md" in server.files("me/chem", "v2/x")


def test_a_private_repository(server, run):
    assert publish(server, run, "me/chem", "--private").exit_code == 0
    assert server.repositories["me/chem"]["private"]
    assert publish(server, run, "me/chem", "--private").exit_code == 0


def test_private_is_not_taken_for_granted(server, run):
    server.add("me/chem")
    result = publish(server, run, "me/chem", "--private")
    assert result.exit_code == 1
    assert "everybody can read it: nothing was uploaded" in result.output
    assert server.files("me/chem") == {}
    assert server.objects == {}


def test_the_address_and_the_token_of_the_environment(server, run, monkeypatch, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    assert publish(None, run, "me/chem").exit_code == 0
    assert "README.md" in server.files("me/chem")


def test_parts_can_be_left_out(server, run):
    publish(server, run, "me/a", "--no-merged")
    assert list(server.files("me/a")) == ["a-lora.gguf", "loss.png", "README.md"]
    publish(server, run, "me/b", "--no-adapter")
    assert list(server.files("me/b")) == ["b-Q8_0.gguf", "template", "system", "params", "loss.png", "README.md"]
    result = publish(server, run, "me/c", "--no-adapter", "--no-merged")
    assert result.exit_code == 2


def test_an_own_card_and_a_licence_text(server, run, tmp_path):
    card = tmp_path / "card.md"
    card.write_text("---\nlicense: mit\n---\n# Mine\n")
    with (run / "Modelfile").open("a") as file:
        file.write('LICENSE apache-2.0\nLICENSE """Do as you\nlike."""\n')  # the first is the model file's own word
    assert publish(server, run, "me/chem", "--card", card).exit_code == 0
    assert server.files("me/chem")["README.md"] == card.read_bytes()
    assert server.files("me/chem")["LICENSE"] == b"Do as you\nlike."


def test_a_dry_run_asks_nobody(run, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    result = publish(None, run, "me/chem", "--dry-run", "--endpoint", "http://127.0.0.1:9")
    assert result.exit_code == 0, result.output
    assert "# chem\n" in result.output
    assert "chem-Q8_0.gguf" in result.output
    out = tmp_path / "out"
    result = publish(None, run, "me/chem", "--dry-run", "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "loss.png", "params", "system", "template"]
    assert (out / "template").read_text() == TEMPLATE
    result = publish(None, run, "me/chem", "--dry-run", "--out", out)
    assert result.exit_code == 1
    assert "not an empty folder" in result.output


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        ("chem", "names no owner"),
        ("me/che m", "is no repository"),
        ("me/a--b", "is no repository"),
        ("a/b/c", "is no repository"),
        ("-me/chem", "is no repository"),
    ],
)
def test_names_that_no_hub_takes(server, run, repository, message):
    result = CliRunner().invoke(cli, ["publish", "hf", "--endpoint", server.address, "--", str(run), repository])
    assert result.exit_code == 1
    assert message in result.output
    assert server.requests == []


def test_a_wrong_token(server, run, monkeypatch):
    wrong = "hf_wrongwrongwrong"
    monkeypatch.setenv("HF_TOKEN", wrong)
    result = publish(server, run, "me/chem")
    assert result.exit_code == 1
    assert "the token is refused (Invalid credentials" in result.output
    assert wrong not in result.output
    assert server.repositories == {}


def test_no_token(server, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    result = publish(server, run, "me/chem")
    assert result.exit_code == 1
    assert "No token for the hub" in result.output
    assert server.requests == []


def test_no_right_to_write(server, run):
    result = publish(server, run, "others/chem")
    assert result.exit_code == 1
    assert "no right to write to others/chem (" in result.output


def test_a_licence_that_the_hub_does_not_know(server, run):
    result = publish(server, run, "me/chem", "--license", "my-own")
    assert result.exit_code == 1
    assert 'Invalid metadata in README.md. - "license" must be one of' in result.output
    assert server.files("me/chem") == {}
    assert server.objects == {}


def test_no_server(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = publish(None, run, "me/chem", "--endpoint", f"http://{address}")
    assert result.exit_code == 1
    assert f"Error: {address}: does not answer" in result.output


def test_something_else_listens_there(server, run):
    result = publish(None, run, "me/chem", "--endpoint", server.address + "/other")
    assert result.exit_code == 1
    assert "or this is no hub" in result.output


def test_a_server_that_stalls(server, run, monkeypatch):
    monkeypatch.setattr(hub, "_TIMEOUT_S", 0.2)
    server.stalls = True
    result = publish(server, run, "me/chem")
    assert result.exit_code == 1
    assert "has stopped answering" in result.output


@pytest.fixture
def logged():
    """What huggingface_hub writes into its log."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger("huggingface_hub").addHandler(handler)
    yield stream
    logging.getLogger("huggingface_hub").removeHandler(handler)


def test_an_upload_that_is_cut(server, run, monkeypatch, logged):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    (run / "model.gguf").write_bytes((run / "model.gguf").read_bytes() + bytes(8 << 20))
    server.cuts_uploads = True
    result = publish(server, run, "me/chem", "--no-adapter")
    assert result.exit_code == 1
    assert "the connection was cut" in result.output
    assert server.files("me/chem") == {}
    assert hub_stand_in.SIGNATURE not in logged.getvalue()
    server.cuts_uploads = False
    assert publish(server, run, "me/chem").exit_code == 0
    assert len(server.files("me/chem")) == 7


def test_offline(server, run, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = publish(server, run, "me/chem")
    assert result.exit_code == 1
    assert "HF_HUB_OFFLINE" in result.output


def test_without_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = publish(None, run, "me/chem")
    assert result.exit_code == 1
    assert 'pip install "ggtune[hub]"' in result.output


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError(f"bad header Bearer {TOKEN}"), r"hub\.test: bad header Bearer \*\*\*$"),
        (RuntimeError(f"x {TOKEN}"), r"x \*\*\*$"),
        (
            ConnectionError("HTTP status 404 for https://hub.test/api/models/a/b/xet-write-token/main"),
            "HF_HUB_DISABLE_XET=1",
        ),
    ],
)
def test_errors_from_inside_the_library(error, message):
    import huggingface_hub

    with (
        pytest.raises(GgtuneError, match=message) as caught,
        hub._user_errors(huggingface_hub, "https://hub.test", "me/chem", TOKEN),
    ):
        raise error
    assert TOKEN not in str(caught.value)


def test_no_message_holds_what_signs_an_address():
    text = "cut while PUT https://host/a?X-Sig=1&b=2 'https://host/b?c' end"
    assert hub._plain(text) == "cut while PUT https://host/a 'https://host/b' end"
