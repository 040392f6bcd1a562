"""What servers say of themselves in addresses and headers, read with care: any of it may be anything."""

from __future__ import annotations

import re
from collections.abc import Sequence

import httpx

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?=\s|,|$)(?!\s*=)")
_PARAMETER = re.compile(rf'[\s,]*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"=][^\s,"]*))')


def origin(url: httpx.URL) -> tuple[str, str, int | None]:
    """Scheme, host and port: what credentials are bound to."""
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def byte_count(headers: httpx.Headers, name: str) -> int | None:
    """Read a header that is a number; None where it is none, or larger than any file."""
    text = headers.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def parse_url(text: str) -> httpx.URL | None:
    """Read an absolute address; None for one that can't be spoken to by HTTP."""
    try:
        url = httpx.URL(text)
        url.host.encode("idna")  # as the resolver does
    except (httpx.InvalidURL, UnicodeError):
        return None
    usable = url.scheme in ("http", "https") and url.host and (url.port is None or 0 < url.port < 1 << 16)
    return url if usable else None


def parse_challenges(headers: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read WWW-Authenticate headers (RFC 9110, 11.6.1): scheme in lower case to its parameters."""
    challenges: dict[str, dict[str, str]] = {}
    for header in headers:
        position = 0
        current: dict[str, str] | None = None
        while position < len(header):
            if current is not None and (match := _PARAMETER.match(header, position)):
                name, quoted, bare = match.groups()
                current[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare
            elif match := _SCHEME.match(header, position):
                current = challenges.setdefault(match[1].lower(), {})
            else:
                break
            position = match.end()
    return challenges
