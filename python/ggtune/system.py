"""What this process may use of the machine: processors and memory, as affinity and control groups allow."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 1 << 60  # version 1 groups write "no limit" as a number near 2**63


def _groups(controller: str, proc: Path, root: Path) -> Iterator[tuple[int, Path]]:
    """(version, directory) of the control groups that hold this process, the innermost first."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, names, path = line.split(":", 2)
        if number == "0" and not names:
            version, base = 2, root
        elif controller in names.split(","):
            version, base = 1, root / controller
        else:
            continue
        inner = Path(path.lstrip("/"))
        for group in [inner, *inner.parents]:  # ends with ".", the root of what is mounted here
            yield version, base / group


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _processor_quota(proc: Path, root: Path) -> float | None:
    quotas = []
    for version, group in _groups("cpu", proc, root):
        if version == 2:
            try:
                limit, period = (group / "cpu.max").read_text().split()
            except (OSError, ValueError):
                continue
            if limit != "max":
                quotas.append(int(limit) / int(period))
        else:
            limit_us, period_us = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
            if limit_us and period_us and limit_us > 0:
                quotas.append(limit_us / period_us)
    return min(quotas, default=None)


def available_threads(*, proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Processors that the process may use: its affinity, within the control group's quota rounded down, at least 1."""
    try:
        n = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        n = os.cpu_count() or 1
    quota = _processor_quota(proc, root)
    return max(1, min(n, int(quota)) if quota else n)


def resolved_threads(asked: int) -> int:
    """Return how many threads compute: as many as are asked for, or for 0 all that are available."""
    return asked or available_threads()


def available_memory(*, proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be taken without swapping: what the machine has free, within the control groups' limits.

    Page cache counts as free, in the machine's figure and in the groups': it gives way.
    """
    import psutil

    free = int(psutil.virtual_memory().available)
    for version, group in _groups("memory", proc, root):
        limit = _number(group / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        used = _number(group / ("memory.current" if version == 2 else "memory.usage_in_bytes"))
        if limit is None or used is None or limit >= _UNLIMITED:
            continue
        cache = 0
        try:
            for line in (group / "memory.stat").read_text().splitlines():
                key, value = line.split()
                if key in ("inactive_file", "active_file"):
                    cache += int(value)
        except (OSError, ValueError):
            pass
        free = min(free, limit - used + cache)
    return max(0, free)


def peak_memory() -> int:
    """Most bytes of physical memory that the process has held so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def format_bytes(n: float) -> str:
    """``1536`` as ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"
