"""Where a registry's user name and password come from: the environment, Docker's configuration, netrc; in this order.

They are looked for when a registry asks, and no message ever holds them.

Docker's file: https://docs.docker.com/reference/cli/docker/login/ ; its helpers:
https://github.com/docker/docker-credential-helpers
"""

from __future__ import annotations

import base64
import binascii
import json
import netrc
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggtune.errors import GgtuneError

USERNAME_VARIABLE = "GGTUNE_REGISTRY_USERNAME"
PASSWORD_VARIABLE = "GGTUNE_REGISTRY_PASSWORD"
TOKEN_VARIABLE = "GGTUNE_REGISTRY_TOKEN"

_HELPER_TIMEOUT_S = 120.0  # some ask the user
_HELPERS_NAMES = {"index.docker.io": "https://index.docker.io/v1/"}  # where docker login keeps another name
_TOKEN_USER = "<token>"  # a helper's user name for an identity token


@dataclass(frozen=True)
class Credentials:
    """One of: user name and password, an identity token to get access tokens by, an access token."""

    source: str  # for messages: "the environment", a file's path, ...
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    access_token: str = field(default="", repr=False)

    def basic(self) -> str:
        """Value of an Authorization header, RFC 7617."""
        text = f"{self.username}:{self.password}".encode(
            "utf-8", "surrogateescape"
        )  # bytes of the environment as they are
        return "Basic " + base64.b64encode(text).decode("ascii")

    def secrets(self) -> list[str]:
        """Everything that must not be shown."""
        basic = self.basic().removeprefix("Basic ") if self.password else ""
        return [text for text in (self.password, basic, self.identity_token, self.access_token) if text]


def find_credentials(hosts: Sequence[str]) -> Credentials | None:
    """Look for a login under each of a registry's names, ``host[:port]``; None where there is none.

    Raises :class:`GgtuneError` for half a login, a file that can't be read, a helper that fails.
    """
    found = _from_environment()
    for look in (_from_docker, _from_netrc):
        for host in hosts:
            found = found or look(host)
    if found is not None and ":" in found.username:
        raise GgtuneError(f"The user name from {found.source} has a colon in it, which HTTP does not allow.")
    if found is not None and not re.fullmatch(r"[\x21-\x7e]*", found.access_token + found.identity_token):
        raise GgtuneError(
            f"The token from {found.source} has a character in it that no token has, perhaps a line's end."
        )
    return found


def _from_environment() -> Credentials | None:
    token = os.environ.get(TOKEN_VARIABLE, "")
    username, password = os.environ.get(USERNAME_VARIABLE, ""), os.environ.get(PASSWORD_VARIABLE, "")
    if token:
        return Credentials(TOKEN_VARIABLE, access_token=token)
    if bool(username) != bool(password):
        given, other = (USERNAME_VARIABLE, PASSWORD_VARIABLE) if username else (PASSWORD_VARIABLE, USERNAME_VARIABLE)
        raise GgtuneError(f"{given} is set and {other} is not: set both or neither.")
    if not username:
        return None
    return Credentials(f"{USERNAME_VARIABLE} and {PASSWORD_VARIABLE}", username=username, password=password)


def _from_docker(host: str) -> Credentials | None:
    folder = os.environ.get("DOCKER_CONFIG", "")
    path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise GgtuneError(f"{path}: can't be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise GgtuneError(f"{path}: is no JSON.") from None
    helpers = {_host_of(key): helper for key, helper in _mapping(_mapping(config).get("credHelpers")).items()}
    helper = helpers.get(host.lower()) or _mapping(config).get("credsStore")
    if helper:
        return _from_helper(str(helper), host, path)
    for key, entry in _mapping(_mapping(config).get("auths")).items():
        if _host_of(key) == host.lower():
            return _from_auth(_mapping(entry), path, host)
    return None


def _from_auth(entry: dict[str, Any], path: Path, host: str) -> Credentials | None:
    source = str(path)
    tokens = {"identity_token": entry.get("identitytoken"), "access_token": entry.get("registrytoken")}
    for kind, token in tokens.items():
        if isinstance(token, str) and token:
            return Credentials(source, **{kind: token})
    username, password = entry.get("username"), entry.get("password")
    encoded = entry.get("auth")
    if isinstance(encoded, str) and encoded:
        try:
            username, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            colon = ""
        if not colon:
            raise GgtuneError(f"{path}: the login for {host} is damaged. Run docker login {host} again.")
    if not (isinstance(username, str) and isinstance(password, str) and username):
        return None
    return Credentials(source, username=username, password=password.rstrip("\0"))


def _from_helper(name: str, host: str, path: Path) -> Credentials | None:
    program = f"docker-credential-{name}"
    source = f"{program} ({path})"
    # the name comes from a file and becomes a program's
    found = shutil.which(program) if re.fullmatch(r"[A-Za-z0-9_.-]+", name) else None
    if found is None:
        raise GgtuneError(f"{path} names the credential helper {program!a}, which is not installed.")
    try:
        done = subprocess.run(
            [found, "get"],
            input=_HELPERS_NAMES.get(host, host).encode(),
            capture_output=True,
            check=False,
            timeout=_HELPER_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise GgtuneError(f"{source} gave no answer in {_HELPER_TIMEOUT_S:.0f} s.") from None
    except OSError as error:
        raise GgtuneError(f"{source} can't be run: {error.strerror}.") from None
    if done.returncode:
        if b"credentials not found" in done.stdout + done.stderr:
            return None
        # what it printed may hold a secret
        raise GgtuneError(f"{source} failed with status {done.returncode}. See why: echo {host} | {program} get")
    try:
        answer = _mapping(json.loads(done.stdout))
    except (ValueError, RecursionError):
        answer = {}
    username, secret = answer.get("Username"), answer.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str):
        raise GgtuneError(f"{source} gave an answer that is no login.")
    if username == _TOKEN_USER:
        return Credentials(source, identity_token=secret)
    return Credentials(source, username=username, password=secret) if username and secret else None


def _from_netrc(host: str) -> Credentials | None:
    """Only an entry for this very host counts: a default one is meant for anything but this."""
    configured = os.environ.get("NETRC", "")
    path = Path(configured) if configured else Path.home() / ".netrc"
    if not path.is_file():
        return None
    try:
        hosts = netrc.netrc(path).hosts
    except netrc.NetrcParseError as error:  # whose text quotes the file
        raise GgtuneError(f"{path}, line {error.lineno}: not as a netrc file is written.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise GgtuneError(f"{path}: can't be read: {reason}.") from None
    for machine in (host, host.partition(":")[0]):
        if machine in hosts:
            login, _, password = hosts[machine]
            return Credentials(str(path), username=login or "", password=password or "")
    return None


def _host_of(key: str) -> str:
    """``https://index.docker.io/v1/`` as ``index.docker.io``."""
    return key.rpartition("://")[2].partition("/")[0].lower()


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
