"""The rate of the CPU's matrix unit, which benchmarks hold kernels against."""

from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("ggml_type", ["Q4_K", "Q6_K", "Q8_0", "IQ4_XS"])
def test_product(ggml_type: str, gradient: bool) -> None:
    """Within the rounding of both operands to bf16, without bias; the same bits for any number of threads."""
    rng = np.random.default_rng(0)
    n_in, n_out, n_tokens = 768, 352, 70
    weight = _core.quantize(ggml_type, rng.standard_normal((n_out, n_in), dtype=np.float32))
    w = _core.dequantize(ggml_type, weight, n_in).reshape(n_out, n_in).astype(np.float64)
    x = rng.standard_normal((n_tokens, n_out if gradient else n_in), dtype=np.float32)
    expected = x @ (w if gradient else w.T)
    results = [_core.bf16_product(ggml_type, weight, x, n_in, gradient=gradient, threads=n)[0] for n in (1, 2, 3, 8)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    error = results[0] - expected
    assert np.linalg.norm(error) < 2.6e-3 * np.linalg.norm(expected)
    assert abs(error.mean()) < 4 * error.std() / error.size**0.5


def test_product_wrong_shapes() -> None:
    weight = _core.quantize("Q8_0", np.ones((4, 32), np.float32))
    with pytest.raises(GgtuneError, match="rows of n_in values"):
        _core.bf16_product("Q8_0", weight, np.ones((2, 31), np.float32), 32)
