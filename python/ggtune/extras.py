"""Packages of the extras, imported where they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from ggtune.errors import GgtuneError


def need(package: str, extra: str, purpose: str) -> ModuleType:
    """Import a package of an extra, or a module of one.

    Raises :class:`GgtuneError` that names the pip command where it is missing.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        package = package.partition(".")[0]
        if (error.name or package).partition(".")[0] != package:  # it is there, and something that it needs is not
            raise GgtuneError(
                f"{package} can't be loaded ({error}). Install it again: pip install {package}"
            ) from error
        raise GgtuneError(f'{purpose} needs {package}: pip install "ggtune[{extra}]"') from error
