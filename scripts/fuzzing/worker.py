"""Inputs are read in child processes, so that one that crashes or hangs is a finding like any other."""

import faulthandler
import json
import os
import resource
import select
import signal
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from ggtune.errors import GgtuneError

LIMIT_S = 10
GRACE_S = 10  # after LIMIT_S a signal is raised; after this the process is ended
MEMORY_BYTES = 4 << 30  # of addresses, beyond those of the parent
FINE = ("refused", "taken")

Reader = Callable[[Path], object]


class TooSlowError(Exception):
    """An input that took longer than :data:`LIMIT_S`."""


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlowError


def check(read: Reader, path: Path) -> str:
    """Read a file; "taken" or "refused" is fine, any other text says what is wrong."""
    signal.signal(signal.SIGALRM, _too_slow)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        read(path)
    except GgtuneError:
        return "refused"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {place.filename}:{place.lineno}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "taken"


def _address_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _serve(read: Reader, inputs: Sequence[bytes], path: Path, log: int, answers: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_address_bytes() + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(log, 2)
    os.environ["GGML_NO_BACKTRACE"] = "1"  # it would start a debugger
    faulthandler.enable()
    for data in inputs:
        os.ftruncate(log, 0)
        os.lseek(log, 0, os.SEEK_SET)
        path.write_bytes(data)
        os.write(answers, json.dumps(check(read, path)).encode() + b"\n")


def _read_answers(answers: int, n_inputs: int) -> tuple[list[str], bool]:
    """Return what was answered before the end or a hang, and whether it was a hang."""
    buffer = b""
    while buffer.count(b"\n") < n_inputs:
        if not select.select([answers], [], [], LIMIT_S + GRACE_S)[0]:
            return buffer.decode().splitlines(), True
        part = os.read(answers, 1 << 16)
        if not part:
            break
        buffer += part
    return buffer.decode().splitlines(), False


def _said(log: int) -> str:
    """First line of an assertion or fault, and the innermost Python line."""
    lines = os.pread(log, 4000, 0).decode("utf-8", "replace").strip().splitlines()
    return " ".join(lines[:1] + [line.strip() for line in lines if line.startswith("  File")][:1])


def _run_batch(read: Reader, inputs: Sequence[bytes], path: Path, log: int) -> list[str]:
    """Outcomes up to and with that of the input that ended the process."""
    answers, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(answers)
            _serve(read, inputs, path, log, writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    lines, hung = _read_answers(answers, len(inputs))
    os.close(answers)
    if hung:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    outcomes = [str(json.loads(line)) for line in lines]
    if len(outcomes) < len(inputs):
        ended = "hangs" if hung else signal.Signals(status).name if os.WIFSIGNALED(status) else f"status {status}"
        outcomes.append(f"process ended: {ended}: {_said(log)}"[:300])
    return outcomes


def run(read: Reader, inputs: Sequence[bytes]) -> list[str]:
    """The outcome of each input, in order."""
    outcomes: list[str] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        log = os.open(Path(folder) / "log", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while len(outcomes) < len(inputs):
                outcomes += _run_batch(read, inputs[len(outcomes) :], Path(folder) / "input", log)
        finally:
            os.close(log)
    return outcomes
