"""Which ggtune this is."""

from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version


@cache
def version() -> str:
    """Return the version of the installed package."""
    try:
        return installed_version("ggtune")
    except PackageNotFoundError:  # run from a source tree
        return "0+unknown"
