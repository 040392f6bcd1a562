"""A lock that keeps two jobs out of one folder, and that a dead process cannot hold."""

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil

from ggtune.errors import GgtuneError
from ggtune.system import format_bytes

try:
    import fcntl
except ImportError:  # Windows: the process's number and start time have to do
    fcntl = None  # type: ignore[assignment,unused-ignore]

_CLOCK_S = 1.0  # start times are rounded to clock ticks


@dataclass(frozen=True)
class ProcessId:
    """A process that a number used anew is not mistaken for."""

    pid: int
    started: float  # seconds since 1970
    host: str

    @classmethod
    def own(cls) -> "ProcessId":
        """Of this process."""
        return cls(os.getpid(), psutil.Process().create_time(), socket.gethostname())

    def process(self) -> psutil.Process | None:
        """Return the process where it lives on this machine."""
        if self.host != socket.gethostname() or self.pid <= 0:
            return None
        try:
            process = psutil.Process(self.pid)
            alive = abs(process.create_time() - self.started) < _CLOCK_S and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OverflowError):
            return None
        return process if alive else None


def read_process_id(text: str) -> ProcessId | None:
    """Undo what a lock or status file holds of a process; None where it is none."""
    try:
        values = json.loads(text)
        return ProcessId(int(values["pid"]), float(values["started"]), str(values["host"]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


class Lock:
    """Context manager. Raises :class:`GgtuneError` that names the job which is at it.

    The file names the process that holds it; where there is ``flock``, the kernel frees the lock when that one dies.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def __enter__(self) -> "Lock":
        text = json.dumps(asdict(ProcessId.own())).encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            while self._handle is None:
                self._handle = self._open()
            os.ftruncate(self._handle, 0)
            os.lseek(self._handle, 0, os.SEEK_SET)
            os.write(self._handle, text)
        except OSError as error:
            if self._handle is not None:
                with suppress(OSError):
                    self._path.unlink(missing_ok=True)
            self._close()
            reason = f"{error.strerror or error} ({format_bytes(len(text))} needed)"
            raise GgtuneError(f"can't write {self._path}: {reason}") from error
        return self

    def _open(self) -> int | None:
        """Open and take it; None where its holder removed it meanwhile."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = try_flock(handle)
            holder = read_process_id(os.read(handle, 4096).decode("utf-8", "replace"))
            if locked is False or (locked is None and holder is not None and holder.process() is not None):
                raise GgtuneError(_taken(self._path, holder))
            if os.path.samestat(os.fstat(handle), self._path.stat()):
                kept, handle = handle, -1
                return kept
        except FileNotFoundError:
            pass
        finally:
            if handle >= 0:
                os.close(handle)
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def try_flock(handle: int) -> bool | None:
    """Take the kernel's lock: False where another process has it, None where the file system has no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def holder_of(path: Path) -> ProcessId | None:
    """Return the living process that holds the lock, None where nobody does."""
    try:
        holder = read_process_id(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return holder if holder is not None and holder.process() is not None else None


def check_free(path: Path) -> None:
    """Raise :class:`GgtuneError` where a living process holds the lock."""
    holder = holder_of(path)
    if holder is not None:
        raise GgtuneError(_taken(path, holder))


def _taken(path: Path, holder: ProcessId | None) -> str:
    who = f"process {holder.pid} on {holder.host}" if holder else "another process"
    return f"a run is going on in {path.parent} ({who}): follow it by `ggtune watch`, or end it by `ggtune stop`"
