"""Who may ask the board for what: hosts, origins, the token; and what its pages may do."""

import hmac
import ipaddress
import logging
import secrets
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    # nothing from elsewhere, nothing inline, in no frame
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_log = logging.getLogger(__name__)
TOKEN_HEADER = "x-ggtune-token"


class Guard:
    """Wraps an application: refuses hosts that are not the board's, and gives each response the headers above.

    A page of another site can make a name of its own lead to this machine (DNS rebinding), and then reads what is
    answered here; its name is in the Host header. An address in numbers can't be led elsewhere.
    """

    def __init__(self, app: "ASGIApp", names: Iterable[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return

        is_begun = False

        async def send_with_headers(message: "Message") -> None:
            nonlocal is_begun
            is_begun = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        hosts = Headers(scope=scope).getlist("host")
        if len(hosts) == 1 and self.allows(hosts[0]):
            try:
                await self._app(scope, receive, send_with_headers)
            except Exception as error:  # one answer that fails is not the board's end
                _log.warning("no answer for %s: %s: %s", scope["path"], type(error).__name__, error)
                if not is_begun:
                    await PlainTextResponse("Internal Server Error\n", 500)(scope, receive, send_with_headers)
            return
        text = "The board is not known by this name. Open it by the address that `ggtune board` has printed.\n"
        await PlainTextResponse(text, 421)(scope, receive, send_with_headers)

    def allows(self, host: str) -> bool:
        """Say whether a Host header names the board. The port may be another one: that of a tunnel."""
        name = host_name(host)
        return name in self._names or _is_address(name)


def host_name(host: str) -> str:
    """Take the port off a Host header."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def names_of(host: str) -> set[str]:
    """Return the names by which a board that listens at ``host`` may be asked for, beside addresses in numbers."""
    names = {"localhost", host}
    if not is_loopback(host):
        names |= {socket.gethostname(), f"{socket.gethostname()}.local"}
    return names - {""}


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches what listens at ``host``."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    """Draw a token that nobody guesses."""
    return secrets.token_urlsafe(32)


def may_stop(request: "Request", token: str | None) -> str:
    """Say why a request must not stop a run, "" where it may: it needs the token, and to come from the board's page."""
    if token is None:
        return "This board only shows: `ggtune board --allow-stop` makes one that can stop runs."
    host, origin = request.headers.get("host", ""), request.headers.get("origin", "")
    if origin not in (f"http://{host}", f"https://{host}"):
        return "Runs are stopped from the board's own page alone."
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return "Runs are stopped from the board's own page alone."
    given = request.headers.get(TOKEN_HEADER, "")
    if not hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()):
        return "The token is missing or wrong: open the address that `ggtune board --allow-stop` has printed."
    return ""
