"""A model made by a running Ollama, through its HTTP API: what ``ollama create`` does with a Modelfile.

The requests are those of Ollama 0.5.5 and later (``docs/api.md`` of Ollama, "Create a model"): each file is offered to
``/api/blobs/<digest>``, and ``/api/create`` names the files by their digests and answers with one JSON object per line.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ggtune.errors import GgtuneError
from ggtune.ollama.modelfile import Modelfile
from ggtune.ollama.names import ModelName
from ggtune.ollama.parameters import plain_parameters
from ggtune.ollama.store import Progress

if TYPE_CHECKING:
    import httpx

_DEFAULT_PORT = 11434
_SCHEME_PORTS = {"http": 80, "https": 443}
_CHUNK_BYTES = 1 << 20
_CONNECT_S, _WRITE_S = 10.0, 60.0
_READ_S = 300.0  # the server reads the whole model between two of its lines

# names under which the request lists the files: a server refuses paths that are absolute or have a colon
_MODEL_FILE, _ADAPTER_FILE = "model.gguf", "adapter.gguf"


def server_url(host: str | None = None) -> str:
    """Address of the server: ``host``, else ``$OLLAMA_HOST``, else this machine, as Ollama's client reads them.

    Without a scheme it is ``http`` and port 11434; with one the scheme's own port. Raises :class:`GgtuneError`.
    """
    text = (host if host is not None else os.environ.get("OLLAMA_HOST", "")).strip().strip("\"'").strip()
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    where = f'The Ollama server\'s address "{text}"'
    if scheme not in _SCHEME_PORTS:
        raise GgtuneError(f"{where} must start with http:// or https://, or name just HOST:PORT.")
    default_port = _SCHEME_PORTS[scheme] if separator else _DEFAULT_PORT
    if rest.count(":") > 1 and not rest.startswith("["):
        rest = f"[{rest}]"  # a bare IPv6 address
    try:
        parts = urlsplit(f"//{rest}")
        name, port = parts.hostname or "127.0.0.1", parts.port
        if parts.username or parts.query or parts.fragment or re.search(r"[\s%\\]", rest):
            raise ValueError
    except ValueError:
        raise GgtuneError(f"{where} is not of the form HOST:PORT.") from None
    # what a server listens on is not always what a client can connect to
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)
    name = f"[{name}]" if ":" in name else name
    return f"{scheme}://{name}:{default_port if port is None else port}{parts.path.rstrip('/')}"


def create_model(
    modelfile: Modelfile,
    name: ModelName,
    folder: Path,
    *,
    host: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Let the server at ``host`` (see :func:`server_url`) make the model ``name`` of a Modelfile.

    FROM and ADAPTER are paths relative to ``folder``; a FROM that is no file names a model that the server has.
    ``progress`` counts each byte twice: hashed, and sent or found to be there; ``say`` gets the server's own lines.
    Raises :class:`GgtuneError` for a file that can't be read, a server that does not answer, and whatever it refuses.
    """
    import httpx

    url = server_url(host)
    request = _request(modelfile, name)
    files = _files(modelfile, folder)
    if not any(file.role == "files" for file in files):
        request["from"] = modelfile.model
    done, total = 0, 2 * sum(file.size for file in files)

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress is not None:
            progress(done, total)

    for file in files:
        digest = _digest(file.path, count)
        request[file.role] = {file.name: digest}
    timeout = httpx.Timeout(_READ_S, connect=_CONNECT_S, write=_WRITE_S)
    # as Ollama's own client, no proxy stands between this machine and itself
    with _user_errors(url), httpx.Client(base_url=url, timeout=timeout, trust_env=not _is_loopback(url)) as client:
        for file in files:
            _send(client, file, request[file.role][file.name], count)
        _create(client, request, say)


@dataclass(frozen=True)
class _File:
    role: str  # key of the request: files, adapters
    name: str
    path: Path
    size: int


def _files(modelfile: Modelfile, folder: Path) -> list[_File]:
    found = []
    for role, name, value in (("files", _MODEL_FILE, modelfile.model), ("adapters", _ADAPTER_FILE, modelfile.adapter)):
        if value is None:
            continue
        path = folder / Path(value).expanduser()
        if path.is_file():
            found.append(_File(role, name, path, path.stat().st_size))
        elif path.is_dir():
            raise GgtuneError(f"{path}: a folder. The Modelfile must name one GGUF file.")
        elif role == "adapters" or value.startswith((".", "/", "~")):
            raise GgtuneError(f"{path}: there is no such file, but the Modelfile names it.")
    return found


def _request(modelfile: Modelfile, name: ModelName) -> dict[str, Any]:
    texts = ("template", "system", "license", "renderer", "parser", "requires")
    request: dict[str, Any] = {"model": str(name), "stream": True}
    request |= {key: value for key in texts if (value := getattr(modelfile, key))}
    if modelfile.parameters:
        request["parameters"] = plain_parameters(modelfile.parameters)
    if modelfile.messages:
        request["messages"] = [{"role": role, "content": text} for role, text in modelfile.messages]
    return request


def _digest(path: Path, count: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
        count(len(chunk))
    return f"sha256:{digest.hexdigest()}"


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise GgtuneError(f"{path}: can't be read: {error.strerror}.") from error


def _send(client: httpx.Client, file: _File, digest: str, count: Callable[[int], None]) -> None:
    found = client.head(f"/api/blobs/{digest}")
    if found.status_code == 200:
        count(file.size)
        return
    if found.status_code != 404:
        raise GgtuneError(f"{_where(client)} does not say whether it has {file.path.name}: {_refusal(found)}")

    def content() -> Iterator[bytes]:
        left = file.size
        for chunk in _chunks(file.path):
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
            count(len(chunk))
        if left:
            raise GgtuneError(f"{file.path}: changed while it was sent. Try again when nothing writes to it.")

    answer = client.post(f"/api/blobs/{digest}", content=content(), headers={"Content-Length": str(file.size)})
    if answer.status_code not in (200, 201):
        raise GgtuneError(f"{_where(client)} refused {file.path}: {_refusal(answer)}")


def _create(client: httpx.Client, request: dict[str, Any], say: Callable[[str], None] | None) -> None:
    status = ""
    with client.stream("POST", "/api/create", json=request) as answer:
        if answer.status_code != 200:
            answer.read()
            raise GgtuneError(f"{_where(client)} did not make {request['model']}: {_refusal(answer)}{_hint(request)}")
        for line in answer.iter_lines():
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise GgtuneError(f"{_where(client)} answered with something else than JSON objects: is it Ollama?")
            if "error" in record:
                raise GgtuneError(
                    f"{_where(client)} did not make {request['model']}: {_one_line(record['error'])}{_hint(request)}"
                )
            status = str(record.get("status", ""))
            if say is not None and status:
                say(status)
    if status != "success":
        last = f' (its last words: "{status}")' if status else ""
        raise GgtuneError(f"{_where(client)} stopped before {request['model']} was made{last}. Look at its log.")


def _hint(request: dict[str, Any]) -> str:
    if "adapters" not in request:
        return ""
    return " (Newer servers take no ADAPTER: merge it with ggtune export-lora, and package the merged model.)"


def _refusal(answer: httpx.Response) -> str:
    """Take the server's message, or the HTTP status where it sent none."""
    text = f"HTTP status {answer.status_code} {answer.reason_phrase}".rstrip()
    try:
        body = answer.json()
    except ValueError:
        return text + ("; is it an Ollama server?" if answer.status_code in (404, 405) else "")
    return _one_line(body["error"]) if isinstance(body, dict) and body.get("error") else text


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:500]


def _where(client: httpx.Client) -> str:
    return f"The Ollama server at {str(client.base_url).rstrip('/')}"


def _is_loopback(url: str) -> bool:
    name = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


@contextmanager
def _user_errors(url: str) -> Iterator[None]:
    import httpx

    try:
        yield
    except httpx.ConnectError as error:
        raise GgtuneError(
            f"No Ollama server answers at {url} ({error}). Start it with `ollama serve`, or name another one in "
            "OLLAMA_HOST."
        ) from error
    except httpx.TimeoutException as error:
        raise GgtuneError(
            f"The Ollama server at {url} has stopped answering ({type(error).__name__}). Look at its log, and try "
            "again."
        ) from error
    except httpx.HTTPError as error:
        raise GgtuneError(
            f"The connection to the Ollama server at {url} was cut ({error or type(error).__name__}). Nothing was made "
            "of it; try again."
        ) from error
