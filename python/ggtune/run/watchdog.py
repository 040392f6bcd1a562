"""What is watched while training beside the loss: memory, loss spikes."""

import psutil

from ggtune.system import format_bytes

MAX_DROPPED_IN_A_ROW = 3
_SETTLED_STEPS = 20
_GROWTH_SHARE = 0.2
_GROWTH_BYTES = 64 << 20


def spike_text(step: int, loss: float, smoothed: float, n_before: int, factor: float) -> str | None:
    """Report a loss over ``factor`` times the smoothed one before it; None where there is nothing to say."""
    if factor <= 0 or n_before < 10 or loss <= factor * smoothed:
        return None
    return f"warning: the loss of step {step} is {loss:.4g}, {loss / smoothed:.1f} times the smoothed {smoothed:.4g}"


def resident_memory() -> int:
    """Bytes of physical memory that the process holds, what it has mapped of files included."""
    return int(psutil.Process().memory_info().rss)


def private_memory() -> int:
    """Bytes of physical memory that are the process's own; the mapped model file is not, where the system tells."""
    info = psutil.Process().memory_info()
    return int(info.rss - getattr(info, "shared", 0))


class MemoryWatch:
    """Tells when memory has grown by a fifth since the run settled, and again with each further fifth."""

    def __init__(self) -> None:
        self._n_steps = 0
        self._settled = 0

    def growth(self) -> str | None:
        """Count a step; the text says how much memory has grown, None where it has not."""
        self._n_steps += 1
        if self._n_steps % _SETTLED_STEPS:
            return None
        now = private_memory()
        if not self._settled:
            self._settled = now
        elif now > self._settled * (1 + _GROWTH_SHARE) + _GROWTH_BYTES:
            before, self._settled = self._settled, now
            return f"warning: memory has grown from {format_bytes(before)} to {format_bytes(now)} during the run"
        return None
