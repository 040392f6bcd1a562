"""Ollama's own authentication at a registry: token requests signed with the key pair in ``~/.ollama``.

A registry answers 401 with ``WWW-Authenticate: Bearer realm=...,service=...,scope=...``. The client asks the realm for
a token: a GET with service, scope, time and a nonce in the query, and ``Authorization: <public key>:<signature>`` (no
scheme), both in base64. The public key is the SSH wire form that a ``.pub`` file holds; signed is
``GET,<url>,<base64 of the hex SHA-256 of the empty body>``. Source: Ollama's ``auth/auth.go`` and ``server/auth.go``.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

import httpx

from ggtune.errors import GgtuneError
from ggtune.ollama.registry.headers import parse_challenges

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# a registry may leave the tokens to another host only where that is known: a signature is good at any registry
_TOKEN_HOSTS = {"registry.ollama.ai": frozenset({"ollama.com"})}

# where Ollama's Linux installer puts the home of the user that its service runs as
_SERVICE_KEY = Path("/usr/share/ollama/.ollama/id_ed25519")


def default_key() -> Path:
    """Where Ollama keeps its private key: in the user's home; the service on Linux has one of its own."""
    own = Path.home() / ".ollama" / "id_ed25519"
    return own if own.exists() or not _SERVICE_KEY.exists() else _SERVICE_KEY


def sign_token_request(key_path: Path, method: str, url: str) -> str:
    """Return the Authorization header for a request without a body. Raises :class:`GgtuneError` for an unusable key."""
    return _sign(_read_key(key_path), method, url)


def public_key(key_path: Path) -> str:
    """Return the public half as ``ssh-ed25519 AAAA...``, to be added to an account. Raises :class:`GgtuneError`."""
    return _public_text(_read_key(key_path))


class KeyPairAuth(httpx.Auth):
    """Signs in with a key pair where a registry asks for a Bearer token; the registry is who gets the first request.

    The key is read at once: a missing or unusable one raises :class:`GgtuneError` before the first request. A request
    raises it where the registry names a token server that it has no claim on, or where that refuses the key, and
    ``httpx.ReadError`` where the token server is busy. A body has to begin anew when it is iterated over again.
    """

    requires_response_body = True

    def __init__(self, key_path: Path | None = None) -> None:
        self._path = key_path or default_key()
        self._key = _read_key(self._path)
        self._origin: tuple[str, bytes] | None = None  # of the registry
        self._token: str | None = None  # the newest
        self.secrets: list[str] = []  # what no message may hold

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request, with a token where one is known, and once more with a new one where that is refused."""
        origin = request.url.scheme, request.url.netloc
        self._origin = self._origin or origin
        if origin != self._origin:  # where the registry redirects to
            yield request
            return
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        response = yield request
        challenge = parse_challenges(response.headers.get_list("www-authenticate")).get("bearer")
        if response.status_code != 401 or challenge is None:
            return
        answer = yield self._token_request(request, challenge)
        self._token = self._read_token(answer)
        self.secrets.append(self._token)
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request

    def refused(self) -> GgtuneError:
        """Say why the registry's answer is still 401."""
        return GgtuneError(
            f"The key {self._path} opens nothing here. Add its public half ({self._path}.pub) to the account that owns "
            "the namespace, and use that account's namespace in the name."
        )

    def _token_request(self, refused: httpx.Request, challenge: Mapping[str, str]) -> httpx.Request:
        registry = refused.url
        host = registry.netloc.decode()
        try:
            realm = httpx.URL(challenge.get("realm", ""))
        except httpx.InvalidURL:
            realm = httpx.URL("")
        token_host = realm.netloc.decode()
        if realm.userinfo or (token_host != host and token_host not in _TOKEN_HOSTS.get(host, ())):
            raise GgtuneError(
                f'The registry {host} asks to sign in at "{token_host}", which is not its own. A signature that is '
                "sent there could be used elsewhere: nothing was sent."
            )
        if realm.scheme != "https" and realm.scheme != registry.scheme:
            raise GgtuneError(f"The registry {host} asks to sign in without TLS: nothing was sent.")
        query = [
            *parse_qsl(realm.query.decode("ascii"), keep_blank_values=True),
            ("service", challenge.get("service", "")),
            *(("scope", scope) for scope in challenge.get("scope", "").split(" ")),
            ("ts", str(int(time.time()))),
            ("nonce", secrets.token_urlsafe(16)),
        ]
        # in the order of Go's url.Values.Encode
        encoded = urlencode(sorted(query, key=lambda pair: pair[0])).encode("ascii")
        # without the extensions it would have no limits on its time
        request = httpx.Request("GET", realm.copy_with(query=encoded, fragment=None), extensions=refused.extensions)
        request.headers["Authorization"] = _sign(self._key, "GET", str(request.url))
        return request

    def _read_token(self, answer: httpx.Response) -> str:
        where = answer.request.url.netloc.decode()
        if answer.status_code == 429 or answer.status_code >= 500:
            raise httpx.ReadError(f"{where} answered {answer.status_code} instead of a token", request=answer.request)
        if answer.status_code >= 400:
            raise GgtuneError(
                f"{where} gives no token for the key {self._path} (HTTP status {answer.status_code}: "
                f"{' '.join(answer.text.split())[:300]}). Add its public half to your account there: {self._path}.pub."
            )
        try:
            body = answer.json()
        except ValueError:
            body = None
        token = body.get("token") if isinstance(body, dict) else None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
            raise GgtuneError(f"{where} answered the request for a token without one.")
        return token


def _read_key(path: Path) -> Ed25519PrivateKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    except ImportError as error:
        raise GgtuneError('Signing in with a key pair needs cryptography: pip install "ggtune[hub]"') from error
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise GgtuneError(
            f"{path}: there is no such key. Ollama makes one when its server starts; any Ed25519 key of OpenSSH does "
            f"(ssh-keygen -t ed25519 -N '' -f {path})."
        ) from None
    except OSError as error:
        raise GgtuneError(f"{path}: can't read the key: {error.strerror}.") from error
    try:
        key = load_ssh_private_key(data, password=None)
    except TypeError:  # it has a passphrase
        raise GgtuneError(f"{path}: the key has a passphrase; Ollama's has none. Name another key.") from None
    except (ValueError, UnsupportedAlgorithm):
        # the reason could quote the file
        raise GgtuneError(f"{path}: not a private key in OpenSSH's format.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise GgtuneError(f"{path}: not an Ed25519 key, which Ollama's registry asks for.")
    return key


def _public_text(key: Ed25519PrivateKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def _sign(key: Ed25519PrivateKey, method: str, url: str) -> str:
    empty = base64.b64encode(hashlib.sha256(b"").hexdigest().encode()).decode()
    signature = key.sign(f"{method},{url},{empty}".encode())
    return f"{_public_text(key).split(' ')[1]}:{base64.b64encode(signature).decode()}"
