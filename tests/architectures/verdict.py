"""Whether a model trains, and the page that says so for each architecture."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ggtune._core import Adapter, Model, Trainer
from ggtune.errors import GgtuneError

_ROOT = Path(__file__).resolve().parents[2]
PAGE = _ROOT / "docs" / "architectures.md"
DATA = _ROOT / "python" / "ggtune" / "gguf" / "architectures.json"  # what `ggtune models` reads

_HEAD = """\
# Which architectures train

Every architecture that the pinned llama.cpp can load, tried on a tiny model with random weights; made by
`scripts/trainability.py --write`, checked by `tests/engine/test_architectures.py`. For each one that trains the tests
show that its gradients are the loss's slope and do not depend on how many layers are computed again. A `+` marks a
variant of an architecture: `+experts` has a mixture of experts, `+grouped` fewer heads of keys than of queries,
`+shared-kv` layers that share keys and values.
"""
_ROW = re.compile(r"\| `(\S+)` \| (yes|no) \| (.*?) ?\|$", re.MULTILINE)


def make_trainer(
    model: Model, *, precision: str = "auto", dropout: float = 0.0, context: int = 64, seed: int = 0, **options: Any
) -> Trainer:
    """A trainer of a LoRA on all linears of a model, of rank 2 and with a random B."""
    kinds = sorted({linear.kind for linear in model.linears()})
    adapter = Adapter(model, rank=2, alpha=2.0, targets=kinds, seed=seed)
    rng = np.random.default_rng(seed)
    for name in adapter.tensor_names():
        if name.endswith(".lora_b"):
            adapter.set(name, rng.normal(0, 0.3, adapter.get(name).shape).astype(np.float32))
    return Trainer(adapter, context=context, threads=1, precision=precision, dropout=dropout, seed=seed, **options)


def refusal(path: Path) -> str:
    """Why the model of that file can't be trained, as the page says it; empty where it can."""
    try:
        make_trainer(Model(str(path)))
    except GgtuneError as error:
        text = str(error).removeprefix(f"{path}: ")
        text = re.sub(r"^this model of the architecture \S+ can't be trained: ", "", text)
        text = text.removesuffix(" (docs/architectures.md lists those that can)")
        return re.sub(r"\S+\.(c|cpp|h):\d+: ", "", text)  # where an assertion of llama.cpp stands
    return ""


def page(refusals: Mapping[str, str]) -> str:
    """The text of docs/architectures.md for what :func:`refusal` said of each model."""
    n_yes = len({name.split("+")[0] for name, why in refusals.items() if not why})
    n_all = len({name.split("+")[0] for name in refusals})
    rows = [f"| `{name}` | {'no' if why else 'yes'} | {why} |" for name, why in sorted(refusals.items())]
    lines = [
        _HEAD,
        f"{n_yes} of {n_all} architectures train.\n",
        "| architecture | trains | why not |",
        "|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def data(refusals: Mapping[str, str]) -> str:
    """The text of the file that `ggtune models` reads."""
    return json.dumps(dict(sorted(refusals.items())), indent=0, ensure_ascii=False) + "\n"


def read_page() -> dict[str, str]:
    """What the committed page says: by model, why it is refused; empty for those that train."""
    return {name: why for name, _, why in _ROW.findall(PAGE.read_text())}
