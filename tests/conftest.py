"""What tests of several folders share."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from browser import Browser, open_browser

os.environ["GGTUNE_CACHE"] = "off"  # nothing is kept in, or found in, the folder of who runs the tests

import ggtune._native  # noqa: F401  before what imports ggtune._core itself: threads then wait as in the program
from ggtune.system import available_threads

# Tests take a few hundred MB in each process, and many start programs that have to answer in time.
_MOST_PROCESSES = 4

# A shell ignores SIGINT for what it starts in the background, and children inherit that. Here, and so in the processes
# that tests start, it has to work as in a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Tell in how many processes whole folders of tests run; 0 is this one, for tests that are named or print."""
    named = config.option.keyword or not all(Path(argument).is_dir() for argument in config.args)
    return 0 if named or config.option.capture == "no" else min(available_threads(), _MOST_PROCESSES)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium (``tests/browser.py``); skips the test where there is none."""
    with open_browser() as opened:
        yield opened


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a file system of the given size ("8m"); skips the test where that is not allowed."""
    mounted = []

    def make(size: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a tmpfs")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
