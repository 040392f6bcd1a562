"""Where logins come from, and that nobody gets to see them."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ggtune.errors import GgtuneError
from ggtune.ollama.registry.credentials import Credentials, find_credentials
from ggtune.ollama.registry.headers import parse_challenges

SECRET = "hunter2-secret"


def find(*hosts: str) -> Credentials | None:
    return find_credentials(hosts)


def login(found: Credentials | None) -> tuple[str, str]:
    assert found is not None
    return found.username, found.password


def docker_config(home: Path, **config: Any) -> Path:
    path = home / ".docker" / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(config))
    return path


def encoded(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


@pytest.fixture(autouse=True)
def home(own_home: Path) -> Path:
    return own_home


def test_none() -> None:
    assert find("h:5000") is None


def test_environment(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    docker_config(home, auths={"h:5000": encoded("docker:x")})
    monkeypatch.setenv("GGTUNE_REGISTRY_USERNAME", "me")
    with pytest.raises(GgtuneError, match="USERNAME is set and GGTUNE_REGISTRY_PASSWORD is not"):
        find("h:5000")
    monkeypatch.setenv("GGTUNE_REGISTRY_PASSWORD", SECRET)
    assert login(find("h:5000")) == ("me", SECRET)
    monkeypatch.delenv("GGTUNE_REGISTRY_USERNAME")
    with pytest.raises(GgtuneError, match="PASSWORD is set and GGTUNE_REGISTRY_USERNAME is not"):
        find("h:5000")
    monkeypatch.setenv("GGTUNE_REGISTRY_TOKEN", SECRET)
    assert find("h:5000") == Credentials("GGTUNE_REGISTRY_TOKEN", access_token=SECRET)


def test_docker_config(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    auths = {
        "h:5000": encoded(f"me:{SECRET}:with:colons"),
        "https://index.docker.io/v1/": encoded("hub:x"),
        "http://Capitals:80/v2/": encoded("c:x"),
        "identity": {**encoded("u:p"), "identitytoken": "it"},
        "access": {"registrytoken": "at"},
        "plain": {"username": "p", "password": "q"},
        "helper-has-it": {},
    }
    path = docker_config(home, auths=auths)
    assert login(find("h:5000")) == ("me", f"{SECRET}:with:colons")
    assert login(find("docker.io", "index.docker.io")) == ("hub", "x")
    assert login(find("capitals:80")) == ("c", "x")
    assert login(find("plain")) == ("p", "q")
    assert find("identity") == Credentials(str(path), identity_token="it")
    assert find("access") == Credentials(str(path), access_token="at")
    assert find("helper-has-it") is None
    assert find("h") is None
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nowhere"))
    assert find("h:5000") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f'{{"auths": {{"h": {{"auth": "{SECRET}!"}}}}}}', "the login for h is damaged"),
        ('{"auths": {"h": {"auth": "aHVudGVyMg=="}}}', "the login for h is damaged"),
        (f'{{"{SECRET}', "is no JSON"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_damaged_docker_config(home: Path, content: str, message: str) -> None:
    path = docker_config(home)
    path.write_text(content)
    with pytest.raises(GgtuneError, match=message) as caught:
        find("h")
    assert str(path) in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("content", ["[]", "null", '{"auths": []}', '{"auths": {"h": []}}', '{"credHelpers": 1}'])
def test_docker_config_of_other_kinds(home: Path, content: str) -> None:
    docker_config(home).write_text(content)
    assert find("h") is None


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential helper, a shell script of which tests write the end."""
    path = tmp_path / "bin" / "docker-credential-test"
    path.parent.mkdir()
    path.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return path


def script(path: Path, text: str) -> None:
    path.write_text(f'#!/bin/sh\n[ "$1" = get ] || exit 9\nhost=$(cat)\n{text}\n')


def test_helpers(home: Path, helper: Path) -> None:
    answer = json.dumps({"ServerURL": "h", "Username": "me", "Secret": SECRET})
    script(
        helper, f"[ $host = h:5000 ] && echo '{answer}' || {{ echo credentials not found in native keychain; exit 1; }}"
    )
    docker_config(home, credHelpers={"h:5000": "test"}, credsStore="missing", auths={"h:5000": {}})
    assert login(find("h:5000")) == ("me", SECRET)
    docker_config(home, credsStore="test")
    assert login(find("h:5000")) == ("me", SECRET)
    assert find("other") is None
    docker_config(home, credHelpers={"https://h:5000/v2/": "test"})
    assert login(find("h:5000")) == ("me", SECRET)
    script(helper, f"[ $host = https://index.docker.io/v1/ ] && echo '{answer}' || echo credentials not found")
    docker_config(home, credsStore="test")
    with pytest.raises(GgtuneError, match="an answer that is no login"):
        find("docker.io")
    assert login(find("index.docker.io")) == ("me", SECRET)
    script(helper, f"""echo '{{"ServerURL": "h", "Username": "<token>", "Secret": "{SECRET}"}}'""")
    found = find("h")
    assert found is not None
    assert (found.identity_token, found.password) == (SECRET, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"echo {SECRET}; echo {SECRET} >&2; exit 3", r"docker-credential-test .* failed with status 3"),
        (f"echo {SECRET}", "an answer that is no login"),
        (f"""echo '["{SECRET}"]'""", "an answer that is no login"),
        (f"""echo '{{"Username": 1, "Secret": "{SECRET}"}}'""", "an answer that is no login"),
        ("sleep 5", "gave no answer in 0 s"),
    ],
)
def test_helpers_that_fail(home: Path, helper: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggtune.ollama.registry.credentials._HELPER_TIMEOUT_S", 0.3 if "sleep" in text else 60)
    script(helper, text.replace("sleep", "exec sleep"))
    docker_config(home, credsStore="test")
    with pytest.raises(GgtuneError, match=message) as caught:
        find("h")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["missing", "../bin/test", "test; echo"])
def test_helpers_that_are_none(home: Path, helper: Path, name: str) -> None:
    docker_config(home, credsStore=name)
    with pytest.raises(GgtuneError, match=r"names the credential helper .* which is not installed"):
        find("h")


def test_netrc(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = home / ".netrc"
    path.write_text(
        f"machine h:5000 login port password {SECRET}\nmachine h login host password x\n"
        "default login anybody password y\n"
    )
    assert login(find("h:5000")) == ("port", SECRET)
    assert login(find("h:6000")) == ("host", "x")
    assert find("other") is None
    docker_config(home, auths={"h:5000": encoded("docker:x")})
    assert login(find("h:5000")) == ("docker", "x")
    assert login(find("h:6000")) == ("host", "x")
    other = tmp_path / "netrc"
    other.write_text("machine h login other password z")
    monkeypatch.setenv("NETRC", str(other))
    assert login(find("h:6000")) == ("other", "z")


@pytest.mark.parametrize(
    "content", [f"machine h login me password {SECRET} {SECRET}".encode(), b"machine h login m\xff password x", b"mach"]
)
def test_damaged_netrc(home: Path, content: bytes) -> None:
    (home / ".netrc").write_bytes(content)
    with pytest.raises(GgtuneError, match=r"\.netrc") as caught:
        find("h")
    assert SECRET not in str(caught.value)


def test_a_user_name_with_a_colon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGTUNE_REGISTRY_USERNAME", "a:b")
    monkeypatch.setenv("GGTUNE_REGISTRY_PASSWORD", SECRET)
    with pytest.raises(GgtuneError, match="has a colon in it"):
        find("h")


@pytest.mark.parametrize("end", ["\n", " ", "é", "\udcff"])
def test_a_token_that_no_header_can_hold(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setenv("GGTUNE_REGISTRY_TOKEN", SECRET + end)
    with pytest.raises(GgtuneError, match="a character in it that no token has") as caught:
        find("h")
    assert SECRET not in str(caught.value)


def test_a_password_of_any_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGTUNE_REGISTRY_USERNAME", "ü")
    monkeypatch.setenv("GGTUNE_REGISTRY_PASSWORD", os.fsdecode(b"\xff\n:x"))
    found = find("h")
    assert found is not None
    assert base64.b64decode(found.basic().removeprefix("Basic ")) == "ü:".encode() + b"\xff\n:x"


def test_credentials_do_not_show_themselves() -> None:
    shown = repr(Credentials("x", username="user-name", password=SECRET, identity_token=SECRET, access_token=SECRET))
    assert SECRET not in shown
    assert "user-name" not in shown


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (["Basic"], {"basic": {}}),
        (['Basic realm="a, b=\\"c\\""'], {"basic": {"realm": 'a, b="c"'}}),
        (
            ['Bearer realm="https://a/t?x=1",service="s",scope="repository:a/b:pull,push"'],
            {"bearer": {"realm": "https://a/t?x=1", "service": "s", "scope": "repository:a/b:pull,push"}},
        ),
        (
            ["Basic realm=x, Bearer realm=y , error=z"],
            {"basic": {"realm": "x"}, "bearer": {"realm": "y", "error": "z"}},
        ),
        (["Negotiate, Basic", "bearer  REALM = q"], {"negotiate": {}, "basic": {}, "bearer": {"realm": "q"}}),
        (["Negotiate YWJj=="], {"negotiate": {}}),
        (['"', "", "= =", "Bearer realm="], {"bearer": {}}),
        ([], {}),
    ],
)
def test_challenges(headers: list[str], expected: dict[str, dict[str, str]]) -> None:
    found = parse_challenges(headers)
    assert {scheme: found[scheme] for scheme in found if scheme in ("basic", "bearer", "negotiate")} == expected
