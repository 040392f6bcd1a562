"""The rooms of the tree use each other downwards alone (scripts/house.py); a planted arrow or circle is found."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import house  # noqa: E402


def test_no_arrow_leads_upwards_and_there_is_no_circle() -> None:
    found = house.complaints(ROOT)
    assert not found, "\n".join(["see `python scripts/house.py`", *found])


def test_every_include_of_ours_is_seen() -> None:
    arrows = house.cpp_arrows(ROOT)
    assert {arrow.room for arrow in arrows} >= {"kernels", "dispatch", "base", "files", "engine", "bindings"}
    private = {arrow.file for arrow in arrows if arrow.used_room == house.PRIVATE_ROOM}
    assert private == {house.LLAMA_ACCESS, *house.BACKENDS}
    assert house.picture(ROOT).count("\n") < 60  # one screen


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"cpp/kernels/a.h": '// a\n#include "engine/b.h"\n', "cpp/engine/b.h": ""}, "cpp/kernels/a.h:2"),
        ({"cpp/kernels/a.h": "#include <llama.h>\n"}, "cpp/kernels may not use llama"),
        ({"cpp/base/a.h": '#include "kernels/b.h"\n', "cpp/kernels/b.h": ""}, "cpp/base may not use kernels"),
        ({"cpp/ops/cpu/a.cpp": '#  include "engine/b.h"\n', "cpp/engine/b.h": ""}, "cpp/ops/cpu/a.cpp:1"),
        ({"cpp/ops/a.cpp": '#include "files/b.h"\n', "cpp/files/b.h": ""}, "cpp/ops may not use files"),
        ({"cpp/engine/model.cpp": '#include "llama-model.h"\n'}, "a private header"),
        ({"cpp/tests/model_test.cpp": '#include "../src/llama-model.h"\n'}, "a private header"),
        ({"cpp/attic/a.h": '#include "base/b.h"\n', "cpp/base/b.h": ""}, "attic has no place"),
        ({"cpp/files/a.h": '#include "files/b.h"\n', "cpp/files/b.h": '#include "a.h"\n'}, "a circle:\n"),
        (
            {
                "python/ggtune/data/a.py": "def f():\n    from ggtune.cli import x\n",
                "python/ggtune/cli/__init__.py": "",
            },
            "a.py:2",
        ),
        ({"python/ggtune/data/a.py": "from ..train import loop\n", "python/ggtune/train/loop.py": ""}, "a.py:1"),
        ({"python/ggtune/data/a.py": 'HOME = "ggtune.train.b"\n', "python/ggtune/train/b.py": ""}, "a.py:1"),
        ({"python/ggtune/attic.py": "import ggtune.data.a\n", "python/ggtune/data/a.py": ""}, "attic has no place"),
        (
            {
                "python/ggtune/run/a.py": "import ggtune.run.b\n",
                "python/ggtune/run/b.py": "def f():\n    from ggtune.run import c\n",
                "python/ggtune/run/c.py": "from ggtune.run.a import g\n",
            },
            "b.py:2: from ggtune.run import c",
        ),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, files: dict[str, str], complaint: str) -> None:
    write(tmp_path, files)
    found = house.complaints(tmp_path)
    assert len(found) == 1
    assert complaint in found[0]


def test_arrows_downwards_are_fine(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "cpp/engine/llama_access.cpp": '#include "llama-model.h"\n#include "kernels/a.h"\n#include "engine/b.h"\n',
            "cpp/engine/b.h": "#include <llama.h>\n#include <ggml-cpu.h>\n",
            "cpp/kernels/a.h": "#include <vector>\n",
            "python/ggtune/cli/__init__.py": "import ggtune.train.a\nimport numpy\n",
            "python/ggtune/train/__init__.py": "",
            "python/ggtune/train/a.py": "from ggtune.errors import E\nfrom . import b\n",
            "python/ggtune/train/b.py": "from ggtune._core import Model\n",
            "python/ggtune/errors.py": "",
        },
    )
    assert house.complaints(tmp_path) == []
