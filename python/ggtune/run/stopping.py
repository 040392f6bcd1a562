"""Telling a run to end."""

from pathlib import Path

import psutil

from ggtune.errors import GgtuneError
from ggtune.run.status import read_status


def ask_to_stop(folder: Path) -> int:
    """Send the process of the run in ``folder`` SIGTERM, at which it saves its last whole step; return its number.

    Raises :class:`GgtuneError` where no run is going on there, or it is another user's.
    """
    status = read_status(folder)
    if status.pid is None:
        reason = f" ({status.reason})" if status.reason else ""
        raise GgtuneError(f"no run is going on in {folder}: {status.state}  step {status.step}{reason}")
    try:
        psutil.Process(status.pid).terminate()
    except psutil.NoSuchProcess:
        pass  # it has ended meanwhile
    except psutil.AccessDenied as error:
        raise GgtuneError(f"the run in {folder} is another user's: process {status.pid}") from error
    return status.pid
