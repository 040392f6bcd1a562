"""Plant each fault of ``mutations.toml`` alone in a copy of the tree, and see whether a test dies of it.

    python scripts/mutate.py                       all of them; writes docs/mutations.md
    python scripts/mutate.py --only "clip never"   one or more by name, or "python" or "cpp"; writes nothing
    python scripts/mutate.py --jobs 2              Python faults side by side

A fault is a text that occurs exactly once in the files that it names, and what is put in its place. It is killed where
one of its tests fails. One whose text is not there any more, or there twice, or whose tests are not there, is an error:
the list has to follow the code. So is a test that fails without any fault.

The copies lie in ``build/mutate`` (or ``--work``): one for each job, and one with a build folder for the C++ faults,
which are compiled for this machine's CPU alone; that folder is kept, and only what a fault touches is compiled again.
Python faults run with the native module of this tree or else the installed one. Everything that the tests need has to
be installed, and for C++ cmake, ninja and pybind11. The exit status is 1 where a fault has survived, 2 for an error.
"""

import argparse
import concurrent.futures
import importlib.util
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("mutations.toml")
PAGE = ROOT / "docs" / "mutations.md"
_LIMIT_S = 1200
_CTEST = "ctest:"
_MAKES_RUN = "tests/wiring/test_export_options.py::test_a_proof_of_a_run"
# An editable install's finder would give the tests the tree that it was made from. Python runs this module at its
# start, in the processes that tests start as well.
_SITE = 'import sys\nsys.meta_path[:] = [f for f in sys.meta_path if "editable" not in type(f).__module__]\n'

Outcome = Literal["killed", "survived", "error"]


class MutationError(Exception):
    """The list, the tests or the build are not as they should be."""


@dataclass(frozen=True)
class Fault:
    """One planted fault."""

    name: str
    file: str  # a path or glob from the root of the tree
    find: str
    replace: str
    tests: tuple[str, ...]  # pytest's node ids, or "ctest:" and a name of ctest's
    after_training: bool = False  # it touches nothing of a training: the run that tests ask and merge is made once

    @property
    def is_cpp(self) -> bool:
        """Whether the native module has to be built."""
        return self.file.startswith("cpp/")

    def place(self, root: Path) -> Path:
        """Find the file that holds the text. Raises :class:`MutationError` where that is not a single place."""
        counts = {path: path.read_text(encoding="utf-8").count(self.find) for path in root.glob(self.file)}
        if sum(counts.values()) != 1:
            raise MutationError(f"{self.name}: its text is {sum(counts.values())} times in {self.file}")
        return next(path for path, count in counts.items() if count)


@dataclass(frozen=True)
class Verdict:
    """What became of a fault."""

    name: str
    outcome: Outcome
    file: str
    by: str  # the first test that failed; for an error what is wrong


def read_list(path: Path = LIST) -> list[Fault]:
    """Read the faults. Raises :class:`MutationError` for two of one name."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["fault"]
    faults = [Fault(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]
    if twice := {fault.name for fault in faults if sum(other.name == fault.name for other in faults) > 1}:
        raise MutationError(f"two faults are called {', '.join(sorted(twice))}")
    return faults


class Tree:
    """A copy of what git knows or does not ignore, in which faults are planted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split("\0")
        wanted = {name for name in names if name and (ROOT / name).is_file()}
        for top in {name.split("/")[0] for name in wanted if "/" in name} - {"vendor"}:
            for path in sorted((folder / top).rglob("*")):
                if path.suffix in (".py", ".h", ".cpp") and str(path.relative_to(folder)) not in wanted:
                    path.unlink()
        for name in wanted:
            write_if_changed(folder / name, (ROOT / name).read_bytes())
        vendor = folder / "vendor" / "llama.cpp"
        if not vendor.exists():
            vendor.symlink_to((ROOT / "vendor" / "llama.cpp").resolve())
        write_if_changed(folder / "build" / "site" / "sitecustomize.py", _SITE.encode())
        self.learned_run = folder / "build" / "learned"
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (folder / "build" / "site", folder / "python"))),
            "PYTHONDONTWRITEBYTECODE": "1",  # a fault of the same size in the same second would not be seen
        }

    def put_module(self, module: Path) -> None:
        """Take a native module, and see to it that Python imports all from here."""
        for old in (self.folder / "python" / "ggtune").glob("_core*.so"):
            old.unlink()
        shutil.copy2(module, self.folder / "python" / "ggtune")
        code = "import ggtune._core; print(ggtune.__file__); print(ggtune._core.__file__)"
        found = self.run([sys.executable, "-c", code]).stdout.split()
        if len(found) != 2 or not all(Path(name).is_relative_to(self.folder) for name in found):
            raise MutationError(f"Python does not import the copy of the tree, but {found}")

    def run(self, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        """Run a command here; one that takes too long ends with the status of ``timeout``."""
        try:
            return subprocess.run(
                command,
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", "")

    def keep_run(self) -> None:
        """Make the trained run that the tests of faults after the training take. Raises :class:`MutationError`."""
        shutil.rmtree(self.learned_run, ignore_errors=True)
        if failed := self.first_failure([_MAKES_RUN], kept_run=True):
            raise MutationError(f"{failed} fails without any fault")

    def first_failure(self, tests: Iterable[str], *, kept_run: bool = False) -> str:
        """Run tests until one fails, and name it; "" where all pass. Raises :class:`MutationError` for none."""
        self.environment["GGTUNE_LEARNED_RUN"] = str(self.learned_run)
        if not kept_run:
            del self.environment["GGTUNE_LEARNED_RUN"]
        of_pytest = [test for test in tests if not test.startswith(_CTEST)]
        of_ctest = [test.removeprefix(_CTEST) for test in tests if test.startswith(_CTEST)]
        for name in of_ctest:
            ran = self.run(["ctest", "--test-dir", "build/cpp", "-R", f"^{name}$", "--no-tests=error"])
            if "No tests were found" in ran.stdout + ran.stderr:
                raise MutationError(f"ctest has no test {name}")
            if ran.returncode:
                return f"{name} of ctest"
        if not of_pytest:
            return ""
        options = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
        ran = self.run([sys.executable, "-m", "pytest", *options, *of_pytest])
        if ran.returncode in (4, 5):
            raise MutationError(f"pytest has no such tests: {' '.join(of_pytest)}\n{ran.stdout[-1500:]}{ran.stderr}")
        if ran.returncode == 0:
            return ""
        if ran.returncode == 124:
            return f"a test that takes more than {_LIMIT_S} s"
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", ran.stdout, re.MULTILINE)
        return failed[1] if failed else f"{of_pytest[0]} (exit status {ran.returncode})"


class CppTree(Tree):
    """A copy of the tree with a build folder."""

    def build(self, tests: Iterable[str]) -> None:
        """Build what the tests need: the native module, programs of ctest. Raises :class:`MutationError`."""
        folder = "build/cpp"
        if not (self.folder / folder / "build.ninja").exists():
            pybind11 = self.run([sys.executable, "-m", "pybind11", "--cmakedir"]).stdout.strip()
            options = ["-DGGTUNE_BUILD_PYTHON=ON", "-DGGTUNE_BUILD_TESTS=ON", "-DGGTUNE_CPU_FLAGS=-march=native"]
            options += ["-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF"]  # or each link takes as long as all the rest
            options += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}"]
            self._checked(["cmake", "-S", ".", "-B", folder, "-G", "Ninja", *options])
        jobs = str(len(os.sched_getaffinity(0)))
        targets = {f"{test.removeprefix(_CTEST)}_test" if test.startswith(_CTEST) else "_core" for test in tests}
        self._checked(["cmake", "--build", folder, "-j", jobs, "--target", *sorted(targets)])
        if "_core" in targets:
            (module,) = (self.folder / folder).rglob("_core*.so")
            self.put_module(module)

    def _checked(self, command: Sequence[str]) -> None:
        ran = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise MutationError(f"{' '.join(command)} failed:\n{(ran.stdout + ran.stderr)[-3000:]}")


def write_if_changed(path: Path, content: bytes) -> None:
    """Leave a file alone that is as it should be: it would be compiled again."""
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def try_out(tree: Tree, fault: Fault) -> Verdict:
    """Plant a fault, run its tests, take it out again."""
    file = fault.file
    try:
        path = fault.place(tree.folder)
        file = str(path.relative_to(tree.folder))
        original = path.read_bytes()
        try:
            path.write_bytes(original.replace(fault.find.encode(), fault.replace.encode()))
            if isinstance(tree, CppTree):
                tree.build(fault.tests)
            by = tree.first_failure(fault.tests, kept_run=fault.after_training)
        finally:
            path.write_bytes(original)
    except MutationError as error:
        return Verdict(fault.name, "error", file, str(error))
    return Verdict(fault.name, "killed" if by else "survived", file, by)


def check_tests(tree: Tree, faults: Sequence[Fault]) -> None:
    """Run the tests of all faults without any. Raises :class:`MutationError` where one fails."""
    tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
    if failed := tree.first_failure(tests):
        raise MutationError(f"{failed} fails without any fault")


def native_module() -> Path:
    """Return the module of this tree, else the installed one."""
    if own := sorted((ROOT / "python" / "ggtune").glob("_core*.so")):
        return own[0]
    found = importlib.util.find_spec("ggtune._core")
    if found is None or found.origin is None:
        raise MutationError("there is no native module: build it (docs/development.md)")
    return Path(found.origin)


def run_all(
    faults: Sequence[Fault], work: Path, n_jobs: int, done: Callable[[Verdict, float], None], *, check: bool = True
) -> None:
    """Try all of them; ``done`` is told of each with its seconds. ``check`` runs their tests without a fault before."""
    of_python = [fault for fault in faults if not fault.is_cpp]
    of_cpp = sorted((fault for fault in faults if fault.is_cpp), key=lambda fault: fault.file)

    def timed(tree: Tree, fault: Fault) -> None:
        started = time.monotonic()
        verdict = try_out(tree, fault)
        done(verdict, time.monotonic() - started)

    if of_python:
        free: queue.Queue[Tree] = queue.Queue()
        for i in range(min(n_jobs, len(of_python))):
            tree = Tree(work / f"python-{i}")
            tree.put_module(native_module())
            if any(fault.after_training for fault in of_python):
                tree.keep_run()
            free.put(tree)
        if check:
            check_tests(tree, of_python)

        def take_tree(fault: Fault) -> None:
            tree = free.get()
            try:
                timed(tree, fault)
            finally:
                free.put(tree)

        with concurrent.futures.ThreadPoolExecutor(n_jobs) as pool:
            list(pool.map(take_tree, of_python))
    if of_cpp:
        cpp = CppTree(work / "cpp")
        cpp.build(test for fault in of_cpp for test in fault.tests)
        if check:
            check_tests(cpp, of_cpp)
        for fault in of_cpp:
            timed(cpp, fault)


def page(faults: Sequence[Fault], verdicts: Sequence[Verdict]) -> str:
    """Write the result as Markdown."""
    n_killed = sum(verdict.outcome == "killed" for verdict in verdicts)
    n_cpp = sum(fault.is_cpp for fault in faults)
    lines = [
        "# Planted faults",
        "",
        "Written by `python scripts/mutate.py`, which plants each fault of `scripts/mutations.toml` alone in a copy of "
        "the tree",
        "and runs a few tests that should notice. A fault that survives is a hole in the tests: write the test first.",
        "",
        f"{n_killed} of {len(verdicts)} faults were killed; {n_cpp} of them are in C++.",
        "",
        "| fault | file | killed by |",
        "|---|---|---|",
    ]
    by_name = {verdict.name: verdict for verdict in verdicts}
    for fault in faults:
        verdict = by_name[fault.name]
        by = f"`{verdict.by}`" if verdict.outcome == "killed" else f"**{verdict.outcome}**"
        lines.append(f"| {fault.name} | `{verdict.file}` | {by} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="a fault, or python or cpp for all of these")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="Python faults at a time (default 1)")
    parser.add_argument("--resume", action="store_true", help="take what an interrupted run has found killed")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "mutate", metavar="FOLDER", help="for the copies")
    parser.add_argument("--unchecked", action="store_true", help="do not run the tests without a fault before")
    options = parser.parse_args()
    try:
        return _main(options)
    except MutationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _main(options: argparse.Namespace) -> int:
    faults = read_list()
    if options.only:
        kinds = {"cpp": True, "python": False}
        chosen = [f for f in faults if f.name in options.only or any(kinds.get(o) is f.is_cpp for o in options.only)]
        if missing := set(options.only) - {fault.name for fault in chosen} - set(kinds):
            raise MutationError(f"there is no fault {', '.join(sorted(missing))}")
    else:
        chosen = faults
    for fault in chosen:
        fault.place(ROOT)
    work = options.work.resolve()
    kept = work / "verdicts.json"
    before: dict[str, Verdict] = {}
    if options.resume and kept.exists():
        found = [Verdict(**entry) for entry in json.loads(kept.read_text())]
        before = {v.name: v for v in found if v.outcome == "killed" and v.name in {fault.name for fault in faults}}
    left = [fault for fault in chosen if fault.name not in before]

    def done(verdict: Verdict, seconds: float) -> None:
        before[verdict.name] = verdict
        work.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps([asdict(each) for each in before.values()], indent=1))
        print(f"{verdict.outcome:9} {seconds:6.1f} s  {verdict.name}  ({verdict.by})", flush=True)

    run_all(left, work, options.jobs, done, check=not options.unchecked)
    verdicts = [before[fault.name] for fault in chosen]
    if not options.only:
        PAGE.write_text(page(faults, verdicts), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")
    counts = {name: sum(verdict.outcome == name for verdict in verdicts) for name in ("killed", "survived", "error")}
    print(", ".join(f"{n} {name}" for name, n in counts.items()))
    return 2 if counts["error"] else 1 if counts["survived"] else 0


if __name__ == "__main__":
    sys.exit(main())
