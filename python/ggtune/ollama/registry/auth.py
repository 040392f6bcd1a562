"""Basic and Bearer authentication as Docker registries ask for it.

https://distribution.github.io/distribution/spec/auth/token/ and https://distribution.github.io/distribution/spec/auth/oauth/
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from typing import Any

import httpx

from ggtune.ollama.registry.credentials import (
    PASSWORD_VARIABLE,
    USERNAME_VARIABLE,
    Credentials,
    find_credentials,
)
from ggtune.ollama.registry.errors import LoginError, RegistryError, TransientError
from ggtune.ollama.registry.headers import byte_count, origin, parse_challenges, parse_url
from ggtune.ollama.registry.retry import TRANSIENT_STATUSES, retry_after_s

_LARGEST_ANSWER_BYTES = 1 << 20

_Flow = Generator[httpx.Request, httpx.Response, str | None]


class RegistryAuth(httpx.Auth):
    """Logs in where the registry at ``base`` asks for it, and nowhere else: other hosts never see a header of it.

    Credentials are looked for at the first question. Raises :class:`LoginError` out of the request.
    """

    def __init__(self, base: httpx.URL, login_hosts: Sequence[str]) -> None:
        self.secrets: list[str] = []  # what no message may hold
        self._base = base
        self._host = login_hosts[0]
        self._login_hosts = login_hosts
        self._looked = False
        self._credentials: Credentials | None = None
        self._header: str | None = None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send; where that is answered by a question, answer it and send again."""
        if origin(request.url) != origin(self._base):
            yield request
            return
        if self._header is not None:
            request.headers["Authorization"] = self._header
        response = yield request
        if response.status_code != 401:
            return
        header = yield from self._answer(response, request.extensions)
        if header is not None:
            self._header = request.headers["Authorization"] = header
            yield request

    def refused(self) -> LoginError:
        """Say why the registry's last answer is still 401."""
        if self._credentials is None:
            return LoginError(
                f"{self._host} asks for a login, and there is none. Set {USERNAME_VARIABLE} and {PASSWORD_VARIABLE}, "
                f"run docker login {self._host}, or add the machine to ~/.netrc."
            )
        kind = "token" if self._credentials.access_token else "user name or password"
        return LoginError(f"{self._host} refuses the {kind} from {self._credentials.source}.")

    def _answer(self, response: httpx.Response, extensions: dict[str, Any]) -> _Flow:
        if not self._looked:
            self._credentials = find_credentials(self._login_hosts)
            self._looked = True
            if self._credentials is not None:
                self.secrets += self._credentials.secrets()
        credentials = self._credentials
        challenges = parse_challenges(response.headers.get_list("www-authenticate"))
        if credentials is not None and credentials.access_token:
            header = f"Bearer {credentials.access_token}"
        elif "bearer" in challenges:
            header = yield from self._bearer(challenges["bearer"], extensions)
        elif "basic" in challenges:
            if credentials is None or not credentials.username:
                raise self.refused()
            header = credentials.basic()
        else:
            known = ", ".join(sorted(challenges)) or "none"
            raise LoginError(f"{self._host} asks for a login of another kind than Basic and Bearer: {known!a}.")
        # the same once more would be refused once more
        return header if header != self._header else None

    def _bearer(self, challenge: dict[str, str], extensions: dict[str, Any]) -> Generator[Any, Any, str]:
        """Get an access token from the server that the challenge names."""
        request = self._token_request(challenge, extensions)
        response: httpx.Response = yield request
        who = f"{request.url.host} (which gives out the tokens for {self._host})"
        status = response.status_code
        if status in TRANSIENT_STATUSES:
            raise TransientError(f"{who} answered {status}.", retry_after_s(response.headers.get("retry-after")))
        if status in (400, 401, 403):
            raise self.refused()
        if status != 200 or (byte_count(response.headers, "content-length") or 0) > _LARGEST_ANSWER_BYTES:
            raise RegistryError(f"{who} answered {status} instead of a token.")
        response.read()
        try:
            answer = response.json()
            token = answer.get("token") or answer.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise RegistryError(f"{who} gave an answer without a token.")
        self.secrets.append(token)
        return f"Bearer {token}"

    def _token_request(self, challenge: dict[str, str], extensions: dict[str, Any]) -> httpx.Request:
        url = parse_url(challenge.get("realm", ""))
        if url is None:
            raise RegistryError(f"{self._host} names no server that gives out tokens.")
        if url.scheme == "http" and self._base.scheme == "https":
            raise RegistryError(f"{self._host} wants the password to go to {url.host} unencrypted. That is refused.")
        asked = {name: challenge[name] for name in ("service", "scope") if challenge.get(name)}
        credentials = self._credentials
        # a request of this kind has no limits on its time but the ones that it is given
        if credentials is not None and credentials.identity_token:
            form = {"grant_type": "refresh_token", "client_id": "ggtune", "refresh_token": credentials.identity_token}
            return httpx.Request("POST", url, data={**form, **asked}, extensions=extensions)
        request = httpx.Request("GET", url.copy_merge_params(asked), extensions=extensions)
        if credentials is not None:
            request.headers["Authorization"] = credentials.basic()
        return request
