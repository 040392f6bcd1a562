"""Which model in which registry: ``[http://]host[:port]/namespace/model[:tag]``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ggtune.errors import GgtuneError
from ggtune.ollama.names import ModelName

# what every registry takes: https://distribution.github.io/distribution/spec/api/#overview
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")

_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True)
class Reference:
    """A model's name, and whether the user said that its registry speaks plain HTTP."""

    name: ModelName
    plain_http: bool

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Split and check. Raises :class:`GgtuneError` for a name that Ollama or registries refuse."""
        scheme, separator, rest = text.rpartition("://")
        if "@" in rest.rpartition("/")[0]:
            # not shown: what stands before the @ may be a password
            raise GgtuneError(
                "A model's name has no user and no password in it: they would be seen by everybody on this machine. "
                "Set GGTUNE_REGISTRY_USERNAME and GGTUNE_REGISTRY_PASSWORD, or use docker login or netrc."
            )
        if separator and scheme not in ("http", "https"):
            raise GgtuneError(f'"{text}" is not a model name: there are http:// and https:// only.')
        name = ModelName.parse(rest)
        for part in (name.namespace, name.model):
            if not _COMPONENT.fullmatch(part):
                raise GgtuneError(
                    f'{name}: registries refuse "{part}": a name there is of lower-case letters and digits, with '
                    "single dots, dashes or underscores between them. Choose another name."
                )
        return cls(name, plain_http=scheme == "http")

    @property
    def repository(self) -> str:
        """``namespace/model``."""
        return f"{self.name.namespace}/{self.name.model}"

    @property
    def api_host(self) -> str:
        """Host and port that are spoken to; Docker Hub's differ from its name."""
        return "registry-1.docker.io" if self.name.host in _DOCKER_HUB else self.name.host

    @property
    def login_hosts(self) -> tuple[str, ...]:
        """Under which names a login may be kept."""
        return _DOCKER_HUB if self.name.host in _DOCKER_HUB else (self.name.host,)
