"""Show the rooms of the source tree and who uses whom, and what breaks the house's rules.

    python scripts/house.py

Rooms are the folders of cpp/ and the packages and modules of python/ggtune. An arrow is an #include or an import, lazy
ones inside functions and module names in strings ("ggtune.train.session") included. An arrow leads downwards: a room
uses rooms below it alone, and no files use each other in a circle. The exit status is 1 where something is wrong; each
complaint names the line.
"""

import argparse
import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

# Highest first: each room of cpp/, and what it may use.
CPP = {
    "bindings": {"engine", "ops", "files", "base", "dispatch", "kernels", "llama", "ggml"},
    "engine": {"ops", "files", "base", "dispatch", "kernels", "llama", "ggml"},
    "ops": {"base", "kernels", "ggml"},
    "files": {"base", "kernels", "llama", "ggml"},
    "base": {"ggml"},
    "dispatch": {"kernels", "ggml"},
    "kernels": {"ggml"},
}
# llama.cpp's headers with a stable interface; all others are private and change with every pin
PUBLIC_HEADERS = re.compile(r"(llama|llama-cpp|gguf|ggml|ggml-(alloc|backend|blas|cpp|cpu|cuda|metal|opt|vulkan))\.h")
PRIVATE_ROOM = "llama (private)"
LLAMA = ("llama", PRIVATE_ROOM, "ggml")
LLAMA_ACCESS = "cpp/engine/llama_access.cpp"
# implement ggml's interface of a backend
BACKENDS = ("cpp/engine/own_products.cpp", "cpp/engine/simulated_device.cpp")

# Highest first: what stands on one line doesn't use each other.
PYTHON = (
    ("__main__",),
    ("cli",),
    ("demo",),
    ("ggtune",),  # ggtune/__init__.py: the names that `import ggtune` offers
    ("board", "sweep"),
    ("pipeline",),
    ("publish",),
    ("report",),
    ("interchange", "text"),
    ("ollama",),
    ("evaluate",),
    ("train",),
    ("run",),
    ("gguf", "generate"),
    ("data", "scores"),
    ("_native",),
    ("config", "files", "_core"),
    ("extras", "setting_texts", "system"),
    ("setting",),
    ("errors", "version"),
)
NATIVE = "ggtune._core"  # what C++ becomes


class Arrow(NamedTuple):
    """One #include or import: the rooms and files at both ends, and where it stands."""

    room: str
    file: str
    line: int
    text: str
    used_room: str
    used_file: str  # "" where it isn't a file of the tree

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


def cpp_arrows(root: Path) -> list[Arrow]:
    """Every #include below cpp/ (tests too) that leads to another file of ours or to llama.cpp."""
    include = re.compile(r'\s*#\s*include\s*[<"]([^>"]+)[>"]')
    folder = root / "cpp"
    arrows = []
    for path in sorted([*folder.rglob("*.h"), *folder.rglob("*.cpp")]):
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not (match := include.match(text)):
                continue
            name = match[1]
            used = next((file for file in (folder / name, path.parent / name) if file.is_file()), None)
            if used is not None:
                used_room = used.relative_to(folder).parts[0]
            elif re.match(r"(llama|ggml|gguf|simd)\b", Path(name).name):
                public = PUBLIC_HEADERS.fullmatch(name)
                used_room = PRIVATE_ROOM if not public else "llama" if name.startswith("llama") else "ggml"
            else:
                continue
            arrows.append(
                Arrow(
                    path.relative_to(folder).parts[0],
                    path.relative_to(root).as_posix(),
                    number,
                    text.strip(),
                    used_room,
                    used.relative_to(root).as_posix() if used else "",
                )
            )
    return arrows


def python_arrows(root: Path) -> list[Arrow]:
    """Every import below python/ggtune that leads to another module of ours or to the native one."""
    package = root / "python/ggtune"
    modules: dict[str, Path] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if "_vendor" not in parts:
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    arrows = []
    for name, path in modules.items():
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines()
        inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for line, used in _imports(ast.parse(source), inside, {*modules, NATIVE}):
            file = modules.get(used)
            arrows.append(
                Arrow(
                    _python_room(name),
                    path.relative_to(root).as_posix(),
                    line,
                    lines[line - 1].strip(),
                    _python_room(used),
                    file.relative_to(root).as_posix() if file else "",
                )
            )
    return arrows


def _python_room(module: str) -> str:
    return module.split(".")[1] if "." in module else "ggtune"


def _imports(tree: ast.AST, package: str, modules: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Line and name of each module of ours that code inside ``package`` names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.lineno, alias.name) for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                # "from package import module" uses the module, "from module import name" the module before it
                used = f"{base}.{alias.name}"
                used = used if used in modules else base
                if used in modules:
                    yield alias.lineno, used
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value in modules
            and node.value != "ggtune"  # a mere name, mostly
        ):
            yield node.lineno, node.value


def complaints(root: Path) -> list[str]:
    """What breaks the rules, each with the line that does; empty where the house is in order."""
    cpp = cpp_arrows(root)
    python = python_arrows(root)
    found = []
    for arrow in cpp:
        if arrow.used_room == PRIVATE_ROOM:
            if arrow.file not in (LLAMA_ACCESS, *BACKENDS):
                found.append(f"{arrow}\n    a private header of llama.cpp: {LLAMA_ACCESS} alone may include them")
        elif arrow.room != "tests" and arrow.used_room != arrow.room and arrow.used_room not in CPP.get(arrow.room, ()):
            found.append(
                f"{arrow}\n    {_stranger(arrow, [*CPP, *LLAMA]) or f'cpp/{arrow.room} may not use {arrow.used_room}'}"
            )
    levels = {room: level for level, rooms in enumerate(reversed(PYTHON)) for room in rooms}
    for arrow in python:
        if arrow.room == arrow.used_room:
            continue
        unknown = _stranger(arrow, levels)
        if unknown or levels[arrow.used_room] >= levels[arrow.room]:
            found.append(f"{arrow}\n    {unknown or f'{arrow.used_room} is not below {arrow.room}'}")
    for arrows in (cpp, python):
        for circle in circles(arrows):
            found.append("a circle:\n" + "\n".join(f"    {arrow}" for arrow in circle))
    return found


def _stranger(arrow: Arrow, known: Iterable[str]) -> str:
    """A complaint where scripts/house.py doesn't know one of the arrow's rooms; else nothing."""
    strangers = [room for room in (arrow.room, arrow.used_room) if room not in known]
    return f"{strangers[0]} has no place in scripts/house.py" if strangers else ""


def circles(arrows: list[Arrow]) -> list[list[Arrow]]:
    """The shortest circle through each arrow that is on one, each circle once."""
    outgoing: dict[str, list[Arrow]] = {}
    for arrow in arrows:
        if arrow.used_file and arrow.used_file != arrow.file:
            outgoing.setdefault(arrow.file, []).append(arrow)
    found: dict[frozenset[str], list[Arrow]] = {}
    for first in (arrow for group in outgoing.values() for arrow in group):
        came_by = {first.used_file: first}
        queue = [first.used_file]
        while queue and first.file not in came_by:
            for arrow in outgoing.get(queue.pop(0), []):
                if arrow.used_file not in came_by:
                    came_by[arrow.used_file] = arrow
                    queue.append(arrow.used_file)
        if first.file in came_by:
            circle = [came_by[first.file]]
            while circle[-1] is not first:
                circle.append(came_by[circle[-1].file])
            found.setdefault(frozenset(arrow.file for arrow in circle), circle[::-1])
    return list(found.values())


def picture(root: Path) -> str:
    """The rooms from top to bottom, each with the rooms that it uses and how often."""
    lines = []
    cpp = [arrow for arrow in cpp_arrows(root) if arrow.room != "tests"]
    below = {room: number for number, room in enumerate([*CPP, *LLAMA])}
    python = python_arrows(root)
    order = {room: number for number, room in enumerate(room for rooms in PYTHON for room in rooms)}
    for title, arrows, place in (("cpp/", cpp, below), ("python/ggtune/", python, order)):
        lines.append(f"{title:<16} uses (number of {'#includes' if arrows is cpp else 'imports'})")
        rooms = {room for arrow in arrows for room in (arrow.room, arrow.used_room)}
        for room in sorted(rooms, key=lambda room: place.get(room, -1)):
            used = Counter(arrow.used_room for arrow in arrows if arrow.room == room != arrow.used_room)
            names = [f"{name} {used[name]}" for name in sorted(used, key=lambda name: place.get(name, -1))]
            lines.append(f"  {room:<14} {', '.join(names)}".rstrip())
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Print the house, then what is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="the source tree (default: this one)")
    root = parser.parse_args().root
    print(picture(root))
    found = complaints(root)
    print("\n".join(found) if found else "No arrow leads upwards, and there is no circle.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
