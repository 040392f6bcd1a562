import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggtune import _core


def in_variant(name: str, program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GGTUNE_CPU": name}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


# a product by the kernel and by the plain loop, and which variant computed it
PRODUCT = """
import numpy as np
from ggtune._native import core
rng = np.random.default_rng(0)
weight = core.quantize("Q4_K", rng.standard_normal((96, 512), dtype=np.float32))
dy = rng.standard_normal((40, 96), dtype=np.float32)
fast, plain = (core.weight_gradient_input("Q4_K", weight, dy, 512, reference=r) for r in (False, True))
print(core.build_info()["cpu_variant"], np.linalg.norm(fast - plain) < 1e-5 * np.linalg.norm(plain))
"""


@pytest.mark.parametrize("name", _core.cpu_variants())
def test_forced_variant(name: str) -> None:
    result = in_variant(name, PRODUCT)
    assert result.stdout == f"{name} True\n", result.stderr


def test_fastest_variant_is_chosen() -> None:
    assert in_variant("", PRODUCT).stdout == f"{_core.cpu_variants()[-1]} True\n"


def test_variant_that_is_not_there() -> None:
    result = in_variant("quantum", "import ggtune; ggtune.Model")
    assert result.returncode != 0
    assert "GgtuneError: the environment variable GGTUNE_CPU is quantum" in result.stderr
    assert result.stderr.rstrip().endswith(" ".join(_core.cpu_variants()))


def test_command_line(tmp_path: Path) -> None:
    result = in_variant("quantum", f"from ggtune.cli import cli; cli(['demo', '--out', {str(tmp_path / 'demo')!r}])")
    assert result.returncode == 1
    assert "Error: the environment variable GGTUNE_CPU is quantum" in result.stderr
    assert "Traceback" not in result.stderr
