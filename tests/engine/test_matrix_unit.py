"""The rate of the CPU's matrix unit, which benchmarks hold kernels against."""

from pathlib import Path

import pytest

from ggtune import _core
from ggtune.errors import GgtuneError

CPU_INFO = Path("/proc/cpuinfo")


def test_matrix_unit_rate() -> None:
    rate = _core.matrix_unit_rate(threads=2, seconds=0.01)
    assert rate is None or 1e9 < rate < 1e15
    flags = CPU_INFO.read_text(encoding="utf-8") if CPU_INFO.exists() else ""
    if "flags" in flags and "amx_bf16" not in flags:  # x86 on Linux
        assert rate is None


@pytest.mark.parametrize(("threads", "seconds"), [(0, 0.01), (1, 0.0), (1, float("nan"))])
def test_matrix_unit_rate_wrong_arguments(threads: int, seconds: float) -> None:
    with pytest.raises(GgtuneError, match="more than 0"):
        _core.matrix_unit_rate(threads=threads, seconds=seconds)
