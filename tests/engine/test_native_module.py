"""What loading the native module does to the process that loads it."""

import os
import subprocess
import sys

import pytest

SHOW = """
import os, sys
before = dict(os.environ)
import ggtune
assert dict(os.environ) == before, "import ggtune"
assert "ggtune._core" not in sys.modules
from ggtune._native import core
assert dict(os.environ) == before, "import ggtune._native"
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libgomp is GNU's")
@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_libgomp_waits_shortly_and_the_environment_stays(given: dict[str, str], expected: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment = inherited | {"OMP_DISPLAY_ENV": "VERBOSE"} | given
    command = [sys.executable, "-c", SHOW]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr
