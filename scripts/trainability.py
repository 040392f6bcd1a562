#!/usr/bin/env python3
"""Say of every architecture of the pinned llama.cpp whether it trains, and why not where it doesn't.

    trainability.py [--write]
    trainability.py --tensor-list build/cpp/cpp/tests/tensor_list

The models are the tests' (``tests/architectures``): tiny, with random weights. Their tensors come from a
committed table; with ``--tensor-list``, a program that is built with the C++ tests, that table is made anew, which a
new pin of llama.cpp needs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from architectures import files, verdict  # noqa: E402


def make_table(program: Path) -> int:
    """Ask llama.cpp for the tensors of every model. Returns how many it could not make."""
    sections = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in files.NAMES:
            metadata = files.write_metadata(Path(folder) / "metadata.gguf", name)
            result = subprocess.run([program, metadata], capture_output=True, text=True, check=False)
            if result.returncode != 0:
                print(f"{name}: {result.stderr.strip()[-300:]}", file=sys.stderr)
                continue
            shapes = {}
            for line in result.stdout.splitlines():
                tensor, *shape = line.split()
                while len(shape) > 1 and shape[-1] == "1":
                    shape.pop()
                shapes[tensor] = tuple(map(int, shape))
            sections[name] = files.collapsed(name, shapes)
    files.write_table(sections)
    return len(files.NAMES) - len(sections)


def refusals() -> dict[str, str]:
    """Try every model. Returns why each one can't be trained, nothing where it can."""
    with tempfile.TemporaryDirectory() as folder:
        return {name: verdict.refusal(files.write_model(Path(folder), name)) for name in files.NAMES}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensor-list", type=Path, help="make the table of tensors with this program")
    parser.add_argument(
        "--write", action="store_true", help="write docs/architectures.md and the file that `ggtune models` reads"
    )
    options = parser.parse_args()
    if options.tensor_list is not None:
        return make_table(options.tensor_list)
    found = refusals()
    if options.write:
        verdict.PAGE.write_text(verdict.page(found))
        verdict.DATA.write_text(verdict.data(found), encoding="utf-8")
    else:
        print(verdict.page(found), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
