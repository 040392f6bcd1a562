"""A process that is killed between any two file operations leaves a store that is valid, and so does one that fails.

A helper process forks a child for each operation of a write; the child ends itself, or has that operation fail, when it
comes to it.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf_samples
import pytest
from fake_registry import FakeRegistry

from ggtune.ollama.registry.push import push_model
from ggtune.ollama.registry.reference import Reference
from ggtune.ollama.store import write_model

pytestmark = pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs os.fork")

DRIVER = Path(__file__).parent / "crash_driver.py"


def drive(fault: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry for each operation: what it was, what the store looked like after it did not happen."""
    command = [sys.executable, str(DRIVER), fault, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(results: list[dict[str, Any]], fault: str) -> None:
    *failed, whole = results
    assert whole["status"] == 0
    names = {result["operation"].partition(" ")[0] for result in failed}
    assert {"open", "os.mkdir", "os.rename", "os.chmod", "fsync"} <= names, names
    for result in results:
        where = f"{fault} at {result['operation']}"
        assert result["problems"] == [], where
        for name in result["leftovers"]:
            # what Ollama deletes at its start: a file among the blobs that is none
            assert re.fullmatch(r"blobs/sha256-[0-9a-z-]+(\.tmp)?", name), where
        assert result["later"] == "", where
    if fault == "kill":
        assert any(result["leftovers"] for result in failed)
        assert all(result["status"] == 9 for result in failed)
    else:
        # an operation that tidies up or keeps a note may fail without harm
        assert all(result["status"] in (0, 1) for result in failed)
        assert sum(result["status"] for result in failed) > len(failed) // 2
        left = [result for result in failed if result["leftovers"]]
        assert left == [], left


@pytest.mark.parametrize("fault", ["kill", "fail"])
def test_write_model(tmp_path: Path, fault: str) -> None:
    """Base and adapter, over an older model of the same name."""
    base = gguf_samples.write_model(tmp_path / "m.gguf")
    adapter = gguf_samples.write_adapter(tmp_path / "a.gguf")
    start = tmp_path / "start"
    write_model(start, "me/chem", base, system="The old one.")
    arguments = {"start": str(start), "base": str(base), "adapter": str(adapter), "work": str(tmp_path / "work")}
    check(drive(fault, {"task": "write", **arguments}), fault)


@pytest.mark.parametrize("fault", ["kill", "fail"])
def test_pull_model(tmp_path: Path, fault: str, server: FakeRegistry, own_home: Path) -> None:
    base = gguf_samples.write_model(tmp_path / "m.gguf")
    adapter = gguf_samples.write_adapter(tmp_path / "a.gguf")
    name = Reference.parse(f"http://{server.host}/me/chem")
    start = tmp_path / "start"
    write_model(start, name.name, base, system="The old one.")
    write_model(tmp_path / "new", name.name, base, adapter=adapter, system="The new one.")
    push_model(tmp_path / "new", name)
    arguments = {"start": str(start), "name": f"http://{name.name}", "work": str(tmp_path / "work")}
    check(drive(fault, {"task": "pull", **arguments}), fault)
