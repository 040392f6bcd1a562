"""Check the C++ sources as no compiler does: clang-tidy, and one definition of each class in the whole program.

    python scripts/check_cpp.py               all of it
    python scripts/check_cpp.py columns       what takes no time
    python scripts/check_cpp.py --fix tidy    apply what clang-tidy offers, such as new names, to all files at once

`columns` are lines of more than 120, which clang-format leaves to comments. `tidy` is .clang-tidy over every source
file. `odr` compiles everything but the tests for link-time optimization and links it: GCC then compares the classes of
all files, and two different ones of one name are an error; without GCC it is left out. Needs cmake, ninja, pybind11
and clang-tidy, as `pip install '.[dev]' cmake ninja pybind11` gives them.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MOST_COLUMNS = 120
CHECKS = ["columns", "tidy", "odr"]


def run(command: list[Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """The command's end and its output, both streams together."""
    merged = subprocess.STDOUT
    return subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=merged, text=True, check=False)


def check_columns() -> int:
    """Number of lines that are too long, each named."""
    n_found = 0
    for path in sorted([*ROOT.glob("cpp/**/*.h"), *ROOT.glob("cpp/**/*.cpp")]):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if len(line) > MOST_COLUMNS:
                n_found += 1
                print(f"{path.relative_to(ROOT)}:{number}: {len(line)} columns")
    return n_found


def configure(build: Path) -> list[dict[str, str]]:
    """How each of our files is compiled, once for one CPU: entries of compile_commands.json."""
    build.mkdir(parents=True, exist_ok=True)
    pybind11 = run([sys.executable, "-m", "pybind11", "--cmakedir"], ROOT).stdout.strip()
    options = ["GGTUNE_BUILD_PYTHON=ON", "GGTUNE_BUILD_TESTS=ON", "CMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    options += ["GGTUNE_CPU_FLAGS=-march=native", f"Python_EXECUTABLE={sys.executable}", f"pybind11_DIR={pybind11}"]
    done = run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *(f"-D{option}" for option in options)], ROOT)
    if done.returncode:
        sys.exit(done.stdout)
    sources = ROOT / "cpp"
    entries = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    ours = {entry["file"]: entry for entry in entries if sources in Path(entry["file"]).parents}
    return list(ours.values())


def check_tidy(entries: list[dict[str, str]], build: Path, jobs: int, fix: bool) -> int:
    """Number of findings, each printed once; with ``fix`` their replacements are applied."""
    outputs, found = build / "tidy", set()
    outputs.mkdir(exist_ok=True)
    # last of all: of the compiler's own headers clang-tidy lacks omp.h
    compiler = next(word for word in shlex.split(entries[0]["command"]) if word.endswith(("c++", "g++")))
    own = run([compiler, "-print-file-name=include"], build).stdout.strip()

    command = ["clang-tidy", "--quiet", "-p", build, f"--extra-arg=-idirafter{own}"]

    def tidy(number: int) -> str:
        exported = [f"--export-fixes={outputs / f'{number}.json'}"] if fix else []
        (outputs / f"{number}.json").unlink(missing_ok=True)
        return run([*command, *exported, entries[number]["file"]], ROOT).stdout

    with ThreadPoolExecutor(jobs) as pool:
        for output in pool.map(tidy, range(len(entries))):
            # a finding in a header comes once for each file that includes it
            found.update(line for line in output.splitlines() if ": error: " in line or ": warning: " in line)
    if fix:
        apply_fixes(outputs)
    for line in sorted(found):
        print(line.removeprefix(f"{ROOT}/"))
    return len(found)


def apply_fixes(folder: Path) -> None:
    """Apply the replacements that clang-tidy wrote, each once however many files it was found by."""
    import yaml  # type: ignore[import-untyped,unused-ignore]

    edits: dict[Path, set[tuple[int, int, bytes]]] = {}
    for file in folder.glob("*.json"):
        for finding in yaml.safe_load(file.read_text(encoding="utf-8"))["Diagnostics"]:
            for edit in finding["DiagnosticMessage"]["Replacements"]:
                path = Path(edit["FilePath"])
                if ROOT / "cpp" in path.parents:
                    text = edit["ReplacementText"].encode()
                    edits.setdefault(path, set()).add((edit["Offset"], edit["Length"], text))
    for path, replacements in edits.items():
        content = path.read_bytes()
        for offset, length, text in sorted(replacements, reverse=True):
            content = content[:offset] + text + content[offset + length :]
        path.write_bytes(content)


def check_odr(entries: list[dict[str, str]], build: Path, jobs: int) -> int:
    """1 where classes or functions of one name differ between files (GCC's words are printed), else 0."""
    entries = [entry for entry in entries if ROOT / "cpp/tests" not in Path(entry["file"]).parents]
    compiler = shlex.split(entries[0]["command"])
    while not Path(compiler[0]).name.rstrip("0123456789-").endswith(("c++", "g++")):  # a launcher such as ccache
        compiler.pop(0)
    if "Free Software Foundation" not in run([compiler[0], "--version"], build).stdout:
        print("one definition: left out, which needs GCC")
        return 0
    outputs = build / "odr"
    outputs.mkdir(exist_ok=True)

    def compile_one(number: int) -> tuple[Path, subprocess.CompletedProcess[str]]:
        command = shlex.split(entries[number]["command"])
        command = [word for word in command if not word.startswith(("-O", "-g", "-flto", "-W"))]
        target = command.index("-o") + 1
        command[target] = str(outputs / f"{number}.o")
        return outputs / f"{number}.o", run([*command, "-O0", "-w", "-flto"], Path(entries[number]["directory"]))

    objects = []
    with ThreadPoolExecutor(jobs) as pool:
        for path, done in pool.map(compile_one, range(len(entries))):
            if done.returncode:
                sys.exit(done.stdout)
            objects.append(path)
    checks = [f"-W{error}{check}" for check in ("odr", "lto-type-mismatch") for error in ("", "error=")]
    # -r: nothing is searched for in libraries, and no code is made
    link = [compiler[0], "-r", f"-flto={jobs}", "-flinker-output=rel", *checks, "-o", outputs / "all.o", *objects]
    done = run(link, build)
    if done.returncode:
        print(done.stdout)
    return int(done.returncode != 0)


def main() -> int:
    """Run the checks that are named; the exit status says whether all were clean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="|".join(CHECKS), help="which (default: all)")
    parser.add_argument("--build", type=Path, default=ROOT / "build/check", help="folder for what is made")
    parser.add_argument("--fix", action="store_true", help="change the files as clang-tidy offers (needs PyYAML)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="programs at a time")
    args = parser.parse_args()
    checks = args.checks or CHECKS
    if not {*checks} <= {*CHECKS}:
        parser.error(f"the checks are {', '.join(CHECKS)}")
    findings = check_columns() if "columns" in checks else 0
    compiled = [check for check in checks if check != "columns"]
    build = args.build.resolve()
    entries = configure(build) if compiled else []
    for check in compiled:
        start = time.monotonic()
        if check == "tidy":
            findings += check_tidy(entries, build, args.jobs, args.fix)
        else:
            findings += check_odr(entries, build, args.jobs)
        print(f"{check}: {len(entries)} files in {time.monotonic() - start:.0f} s")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
