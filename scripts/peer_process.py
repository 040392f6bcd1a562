"""Processes that are measured in turn with the one that starts them: a line in, a step, a line of JSON out."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any


class PeerProcess:
    """Runs ``command`` (``environment`` on top of this process's own), which has to print "ready" before it reads."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Exits with what the process wrote to standard error where it does not get ready."""
        self._name = " ".join(part if "\n" not in part else "..." for part in command)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the process)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        if self._read() != "ready":
            self._fail()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _fail(self) -> None:
        self._process.wait()
        self._errors.seek(0)
        sys.exit(f"{self._name} failed:\n{self._errors.read()[-2000:]}")

    def step(self) -> Any:
        """Let it take a step; returns its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._read()
        if not answer:
            self._fail()
        return json.loads(answer)

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._errors.close()
