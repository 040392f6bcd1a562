"""HTTP with one registry: its API's addresses, redirects, and errors as text for the user."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import quote

import httpx

from ggtune.errors import GgtuneError
from ggtune.ollama.keypair import KeyPairAuth
from ggtune.ollama.manifest import INDEX_TYPES, MANIFEST_TYPE, OCI_MANIFEST_TYPE
from ggtune.ollama.registry.auth import RegistryAuth
from ggtune.ollama.registry.errors import DigestRefusedError, RegistryError, SessionLostError, TransientError
from ggtune.ollama.registry.headers import origin, parse_url
from ggtune.ollama.registry.reference import Reference
from ggtune.ollama.registry.retry import TRANSIENT_STATUSES, Retries, RetryPolicy, retry_after_s

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_CONNECT_TIMEOUT_S = 15.0
_LARGEST_TEXT_BYTES = 4 << 20  # of a manifest, as registries limit it, or an error
_SESSION_CODES = ("BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "RANGE_INVALID")


@dataclass(frozen=True)
class TransferOptions:
    """How to speak to a registry."""

    insecure: bool = False  # plain HTTP instead of TLS
    timeout_s: float = 60.0  # how long a server may be silent
    chunk_bytes: int = 8 << 20  # sent at a time: what an interruption costs at most
    retry: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True)
class Answer:
    """A response that was read."""

    status: int
    url: httpx.URL
    headers: httpx.Headers
    content: bytes


class RegistryClient:
    """Requests for one repository. A context manager.

    Every method raises :class:`TransientError` for what may go well the next time, and :class:`RegistryError` for the
    rest; no message holds credentials, nor an address's query, which may be a signature.
    """

    def __init__(
        self,
        reference: Reference,
        options: TransferOptions,
        note: Callable[[str], None],
        auth: KeyPairAuth | None = None,
    ) -> None:
        self.options = options
        self.host = reference.api_host
        self._note = note
        scheme = "http" if options.insecure or reference.plain_http else "https"
        base = parse_url(f"{scheme}://{self.host}/v2/{reference.repository}/")
        if base is None:
            raise RegistryError(f"{self.host} is no host that can be connected to.")
        self._base = base
        self._auth: RegistryAuth | KeyPairAuth = auth or RegistryAuth(self._base, reference.login_hosts)
        try:
            self._http = httpx.Client(timeout=options.timeout_s, headers={"User-Agent": "ggtune"})
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise GgtuneError(f"The certificates that SSL_CERT_FILE names can't be read: {reason}.") from None
        except (ValueError, ImportError, httpx.InvalidURL):  # whose text may hold the proxy's password
            raise GgtuneError("The proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY can't be used.") from None

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def retries(self) -> Retries:
        """Make a counter for one piece of work."""
        return Retries(self.options.retry, self._note)

    def url(self, path: str) -> httpx.URL:
        """Resolve an address below the repository's."""
        return self._base.join(path)

    @staticmethod
    def with_digest(url: httpx.URL, digest: str) -> httpx.URL:
        """Add the query that ends an upload; the rest of it is the registry's and stays as it is."""
        query = url.query.decode("ascii")
        digest_query = f"digest={quote(digest, safe='')}"
        return url.copy_with(query=(f"{query}&{digest_query}" if query else digest_query).encode("ascii"))

    def request(
        self,
        method: str,
        url: httpx.URL,
        *,
        ok: Collection[int],
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
        timeout_s: float | None = None,
        retry: bool = True,
    ) -> Answer:
        """Send, again where that fails for now (``retry``), and read the answer, at most 4 MiB."""
        retries = self.retries()
        while True:
            try:
                with self.stream(method, url, ok=ok, headers=headers, content=content, timeout_s=timeout_s) as response:
                    return Answer(response.status_code, response.url, response.headers, _read(response))
            except TransientError as error:
                if not retry:
                    raise
                retries.wait(error)

    @contextmanager
    def stream(
        self,
        method: str,
        url: httpx.URL,
        *,
        ok: Collection[int],
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[httpx.Response]:
        """Send once, follow redirects, and leave the answer to be read inside the block.

        ``content`` has to begin anew whenever it is iterated over.
        """
        limit_s = self.options.timeout_s
        timeout = httpx.Timeout(limit_s, connect=min(limit_s, _CONNECT_TIMEOUT_S), read=timeout_s or limit_s)
        all_headers = {"Accept-Encoding": "identity", **(headers or {})}
        try:
            for _ in range(_MOST_REDIRECTS + 1):
                request = self._http.build_request(method, url, headers=all_headers, content=content, timeout=timeout)
                response = self._http.send(request, auth=self._auth, stream=True, follow_redirects=False)
                try:
                    if response.status_code not in _REDIRECTS:
                        self._check(response, ok)
                        yield response
                        return
                    url = self.target(response.url, response.headers)
                finally:
                    response.close()
            raise RegistryError(f"{self.host} redirects in a circle.")
        except httpx.RequestError as error:
            raise self._network_error(error, url) from None

    def target(self, url: httpx.URL, headers: httpx.Headers) -> httpx.URL:
        """Where an answer from ``url`` says to go on."""
        location = headers.get("location", "")
        try:
            target = parse_url(str(url.join(location)))
        except (httpx.InvalidURL, UnicodeError):
            target = None
        if not location or location == "#" or target is None:
            raise RegistryError(f"{url.host} did not say at what address to go on.")
        if target.scheme == "http" and url.scheme == "https":
            if target.host != self._base.host:
                raise RegistryError(f"{self.host} redirects to {target.host} without encryption. That is refused.")
            # a registry behind a proxy that does the TLS for it does not know its own address
            target = target.copy_with(scheme="https", port=self._base.port)
        return target

    def _check(self, response: httpx.Response, ok: Collection[int]) -> None:
        status = response.status_code
        if status in ok:
            return
        if status == 401 and origin(response.url) == origin(self._base):
            raise self._auth.refused()
        content = _read(response)
        codes, text = _registry_errors(content)
        who = f"{response.url.host} answered {status}" + (f" ({self._shown(text)})" if text else "")
        if status in TRANSIENT_STATUSES:
            raise TransientError(f"{who}.", retry_after_s(response.headers.get("retry-after")))
        if status in (400, 404, 416) and any(code in _SESSION_CODES for code in codes):
            raise SessionLostError(f"{who}.")
        if status == 400 and "DIGEST_INVALID" in codes:
            raise DigestRefusedError(f"{who}: other bytes arrived than were sent.")
        if status == 400 and b"HTTP request to an HTTPS server" in content:
            raise RegistryError(f"{self.host} speaks TLS: leave out --insecure.")
        if status == 403:
            raise RegistryError(f"{who}: this login has no right to do that.")
        raise RegistryError(f"{who}.", status=status)

    def _network_error(self, error: httpx.RequestError, url: httpx.URL) -> RegistryError:
        host = url.netloc.decode("ascii", "replace")
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return RegistryError(
                    f"{host}: its certificate is not trusted ({cause.verify_message}). Where it has a CA of its own, "
                    "name the CA's PEM file in SSL_CERT_FILE."
                )
            if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
                return RegistryError(f"{host} does not speak TLS. For plain HTTP give --insecure.")
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, httpx.TimeoutException):
            limit_s = self.options.timeout_s
            if isinstance(error, httpx.ConnectTimeout):
                limit_s = min(limit_s, _CONNECT_TIMEOUT_S)
            return TransientError(f"{host} was silent for {limit_s:g} s.")
        if isinstance(error, (httpx.DecodingError, httpx.UnsupportedProtocol)):
            return RegistryError(f"{host} gave an answer that can't be read.")
        what = "can't be reached" if isinstance(error, httpx.ConnectError) else "broke off the connection"
        return TransientError(f"{host} {what}: {self._shown(str(error)) or type(error).__name__}.")

    def _shown(self, text: str) -> str:
        """Make a server's text fit to be printed: no secret that it sends back, no control characters."""
        for secret in self._auth.secrets:
            text = text.replace(secret, "***")
        text = "".join(character if character.isprintable() else " " for character in text)
        return text[:300].strip().rstrip(".")


MANIFEST_ACCEPT = ", ".join((MANIFEST_TYPE, OCI_MANIFEST_TYPE, *INDEX_TYPES))
"""What is asked for: the other kinds too, so that they can be named where they are refused."""


def _read(response: httpx.Response) -> bytes:
    """Like ``Response.read``, within bounds."""
    content = bytearray()
    for chunk in response.iter_bytes(1 << 16):
        content += chunk
        if len(content) > _LARGEST_TEXT_BYTES:
            raise RegistryError(f"{response.url.host} gave an answer of more than 4 MiB where a short one belongs.")
    return bytes(content)


def _registry_errors(content: bytes) -> tuple[list[str], str]:
    """Codes and text of a registry's error: https://distribution.github.io/distribution/spec/api/#errors."""
    try:
        entries = [entry for entry in json.loads(content)["errors"] if isinstance(entry, dict)]
    except (ValueError, TypeError, KeyError, RecursionError):
        return [], ""
    codes = [str(entry.get("code", "")) for entry in entries]
    texts = [str(entry.get("message") or entry.get("code") or "") for entry in entries]
    return codes, "; ".join(text for text in texts if text)
