"""What the machine's matrix instructions reach: NumPy's BLAS in float32, and the bare matrix unit on tiles of bf16."""

from ggtune._native import core as _core
from peer_process import PeerProcess

GEMM_SIZE = 2048
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

# In a process of its own for each number of threads: a BLAS reads the number when it is imported.
PRODUCTS = """
import json, sys, time
import numpy as np
n = int(sys.argv[1])
a = np.random.default_rng(0).standard_normal((n, n), dtype=np.float32)
a @ a
print("ready", flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    a @ a
    print(json.dumps(2 * n**3 / (time.perf_counter() - start)), flush=True)
"""


class MachineRate:
    """Floating point operations per second on a number of threads, the best of all that were measured."""

    def __init__(self, threads: int, python: str) -> None:
        self.threads = threads
        self.f32 = 0.0
        self.matrix_unit: float | None = None
        variables = dict.fromkeys(THREAD_VARIABLES, str(threads))
        self._process = PeerProcess([python, "-c", PRODUCTS, str(GEMM_SIZE)], variables)

    def measure(self) -> None:
        """Measure both once."""
        self.f32 = max(self.f32, self._process.step())
        unit = _core.matrix_unit_rate(threads=self.threads)
        if unit is not None:
            self.matrix_unit = max(self.matrix_unit or 0.0, unit)

    def close(self) -> None:
        """End what it started."""
        self._process.close()
