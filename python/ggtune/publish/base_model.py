"""What a GGUF file says of its licence and of where it comes from.

The keys are those of llama.cpp's ``gguf-py/gguf/constants.py`` (``general.license``, ``general.repo_url``,
``general.base_model.<n>.*`` and so on), which its converter fills from a model's card.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ggtune.errors import GgtuneError
from ggtune.gguf.io import gguf_structure
from ggtune.gguf.structure import Structure

_HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# identifiers of the hub and of SPDX; a whole text or a name with blanks is none
_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+_-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class License:
    """A licence as a model card names it: an identifier, or ``other`` with a name and an address."""

    id: str
    name: str = ""
    link: str = ""

    @classmethod
    def parse(cls, text: str, name: str = "", link: str = "") -> License:
        """Take what a user or a file says. A text that is no identifier becomes the name of an ``other`` licence.

        Raises :class:`GgtuneError` for ``other`` without a name.
        """
        text, name, link = text.strip(), name.strip(), link.strip()
        found = text.lower()
        if not _LICENSE_ID.fullmatch(found):
            found, name = "other", name or text.splitlines()[0][:80].strip()
        if found == "other" and not name:
            raise GgtuneError("A licence that is called other needs a name: --license-name, and --license-link.")
        return cls(found, name, link)

    @property
    def slug(self) -> str:
        """The name as a card's ``license_name`` takes it: lower case, without blanks."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-.")


@dataclass(frozen=True)
class BaseModel:
    """The model that was trained on."""

    name: str  # "" where nothing tells it
    license: License | None
    repositories: tuple[str, ...]  # on the hub, as owner/name
    file_name: str


def read_base(path: Path) -> BaseModel:
    """Read a base model's file. Raises :class:`ggtune.errors.ModelError` where it is no GGUF file."""
    structure = gguf_structure(path)
    own = [structure.text(key) for key in ("general.source.huggingface.repository", *_URLS)]
    repositories = _repositories(own) or _repositories(_base_urls(structure))
    name = structure.text("general.name") or path.stem
    return BaseModel(name, _license(structure), repositories, path.name)


def read_base_of_merged(path: Path, file_name: str) -> BaseModel:
    """Take the same from a merged file, which keeps its base's licence. Raises as :func:`read_base`."""
    structure = gguf_structure(path)
    name = structure.text("general.base_model.0.name") or Path(file_name).stem
    return BaseModel(name, _license(structure), _repositories(_base_urls(structure)), file_name)


_URLS = ("general.source.repo_url", "general.repo_url", "general.source.url", "general.url")


def _base_urls(structure: Structure) -> list[str]:
    count = int(structure.number("general.base_model.count") or 0)
    return [structure.text(f"general.base_model.{i}.repo_url") for i in range(min(count, 16))]


def _repositories(texts: list[str]) -> tuple[str, ...]:
    found = []
    for text in texts:
        parts = urlsplit(text)
        if parts.scheme in ("http", "https"):
            path = "/".join(parts.path.strip("/").split("/")[:2]) if parts.hostname in _HUB_HOSTS else ""
        else:
            path = text
        if _REPOSITORY.fullmatch(path):
            found.append(path)
    return tuple(dict.fromkeys(found))


def _license(structure: Structure) -> License | None:
    text = structure.text("general.license").strip()
    name = structure.text("general.license.name").strip()
    if not text and not name:
        return None
    if not text or (text.lower() == "other" and not name):
        text, name = "other", name or "unnamed"
    return License.parse(text, name, structure.text("general.license.link"))
