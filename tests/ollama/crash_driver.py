"""Run by ``test_store_crashes.py``: ``crash_driver.py kill|fail ARGUMENTS``.

Repeats one write into a copy of a store, each time with another file operation that does not happen.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ggtune.errors import GgtuneError
from ggtune.ollama.names import ModelName
from ggtune.ollama.registry.client import TransferOptions
from ggtune.ollama.registry.pull import pull_model
from ggtune.ollama.registry.reference import Reference
from ggtune.ollama.registry.report import Report
from ggtune.ollama.registry.retry import RetryPolicy
from ggtune.ollama.store import write_model

EVENTS = ("open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "os.utime", "os.truncate")


class Operations:
    """Counts operations on files below a folder; the chosen one does not happen."""

    def __init__(self, fault: str, folder: Path, log: int) -> None:
        self._fault = fault
        self._folder = str(folder)
        self._log = log
        self._left = -1

    def arm(self, number: int) -> None:
        self._left = number

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and any(str(a).startswith(self._folder) for a in arguments if isinstance(a, (str, Path))):
            self.reached(f"{event} {arguments[0]}")

    def reached(self, operation: str) -> None:
        if self._left < 0:
            return
        self._left -= 1
        if self._left >= 0:
            return
        os.write(self._log, operation.encode())
        if self._fault == "kill":
            os._exit(9)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def fsync(self, handle: int) -> None:
        """Not done: it would change nothing for a process that is killed, only take long."""
        self.reached("fsync")


class Watching(Report):
    """Counts each piece that arrived as an operation."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def at(self, done_bytes: int) -> None:
        self._operations.reached("arrival")


def work(arguments: dict[str, Any], store: Path, operations: Operations | None = None) -> None:
    def progress(done: int, total: int) -> None:
        if operations:
            operations.reached("progress")

    if arguments["task"] == "write":
        base, adapter = Path(arguments["base"]), Path(arguments["adapter"])
        write_model(store, "me/chem", base, adapter=adapter, system="The new one.", progress=progress)
    else:
        options = TransferOptions(retry=RetryPolicy(retries=0))
        report = Watching(operations) if operations else Report()
        pull_model(store, Reference.parse(arguments["name"]), options=options, report=report)


def problems(store: Path) -> list[str]:
    """What Ollama would trip over: a manifest that can't be read, a blob that is missing or another."""
    found = []
    for path in store.glob("manifests/*/*/*/*"):
        manifest = json.loads(path.read_bytes())
        ModelName.parse("/".join(path.relative_to(store / "manifests").parts[:3]) + f":{path.name}")
        for layer in [manifest["config"], *manifest["layers"]]:
            blob = store / "blobs" / layer["digest"].replace(":", "-")
            if not blob.is_file():
                found.append(f"{blob.name} is missing")
            elif f"sha256:{hashlib.sha256(blob.read_bytes()).hexdigest()}" != layer["digest"]:
                found.append(f"{blob.name} is damaged")
    if not list(store.glob("manifests/*/*/*/*")):
        found.append("the old model is gone")
    return found


def leftovers(store: Path) -> list[str]:
    """Files that are neither a manifest nor a whole blob."""
    found = []
    for path in store.rglob("*"):
        name = path.relative_to(store)
        if path.is_dir() or (name.parts[0] == "manifests" and len(name.parts) == 5 and path.name == "latest"):
            continue
        if name.name != f"sha256-{hashlib.sha256(path.read_bytes()).hexdigest()}":
            found.append(str(name))
    return found


def new_model_is_there(store: Path) -> bool:
    digest = hashlib.sha256(b"The new one.").hexdigest()
    return any(digest in path.read_text() for path in store.glob("manifests/*/*/*/*"))


def main() -> None:
    fault, arguments = sys.argv[1], json.loads(sys.argv[2])
    store = Path(arguments["work"])
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    operations = Operations(fault, store, writer)
    sys.addaudithook(operations.audit)
    os.fsync = operations.fsync
    number, status = 0, 1
    while True:
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(arguments["start"], store)
        child = os.fork()
        if child == 0:
            operations.arm(number)
            try:
                work(arguments, store, operations)
            except GgtuneError:
                os._exit(1)
            except BaseException as error:
                os.write(writer, f"{type(error).__name__}: {error} ".encode())
                os._exit(3)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            operation = os.read(reader, 4096).decode().replace(str(store), "STORE")
        except BlockingIOError:
            operation = ""
        result = {"operation": operation, "status": status, "problems": problems(store), "leftovers": leftovers(store)}
        try:
            work(arguments, store)
            result["later"] = "; ".join(
                [*problems(store), *([] if new_model_is_there(store) else ["not the new model"])]
            )
        except GgtuneError as error:
            result["later"] = str(error)
        print(json.dumps(result))
        if not operation:
            return
        number += 1


main()
