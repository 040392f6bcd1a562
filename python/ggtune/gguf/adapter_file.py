"""Adapter GGUF files, as llama.cpp's ``--lora`` and Ollama's ``ADAPTER`` read them, with keys of ggtune's own.

The layout is that of llama.cpp's ``convert_lora_to_gguf.py``: ``general.type = "adapter"``, ``adapter.type = "lora"``,
``adapter.lora.alpha``; tensors ``<base tensor name>.lora_a`` of NumPy shape ``(rank, n_in)`` and ``.lora_b`` of
``(n_out, rank)``; of ``token_embd.weight``, whose rows are looked up, ``(n_vocab, rank)`` and ``(n_embd, rank)``; of a
stack of matrices (experts) ``(n_mat, rank, n_in)`` and ``(n_mat, n_out, rank)``, a pair for each. The product is scaled
by alpha / rank.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggtune.errors import GgtuneError, ModelError
from ggtune.gguf.io import KeyValue, gguf_structure, write_gguf

if TYPE_CHECKING:
    from ggtune._core import Adapter, Model

FloatArray = NDArray[np.float32]
_PREFIX = "ggtune."
_BESIDE_LAYERS = ("token_embd.weight", "output.weight")  # where llama.cpp applies a pair too


@dataclass(frozen=True)
class AdapterFile:
    """The content of an adapter file."""

    architecture: str
    alpha: float
    tensors: Mapping[str, FloatArray]
    notes: Mapping[str, str] = field(default_factory=dict)  # the ggtune.* keys, without the prefix

    @property
    def rank(self) -> int:
        """Rank of the first pair."""
        return self.rank_of(self.bases[0])

    def rank_of(self, base: str) -> int:
        """Rank of one pair."""
        return int(self.tensors[base + ".lora_b"].shape[-1])

    def shape_of(self, base: str) -> tuple[int, ...]:
        """Return the ``(n_in, n_out)`` of the base tensor that a pair is for, ``(n_in, n_out, n_mat)`` of a stack."""
        a, b = self.tensors[base + ".lora_a"], self.tensors[base + ".lora_b"]
        return (b.shape[0], a.shape[0]) if is_flipped(base) else (a.shape[-1], b.shape[-2], *a.shape[:-2])

    @property
    def bases(self) -> list[str]:
        """Names of the base tensors."""
        return [name.removesuffix(".lora_a") for name in self.tensors if name.endswith(".lora_a")]


def is_flipped(base: str) -> bool:
    """Whether the pair of a base tensor lies as one of an embedding does."""
    return base.endswith("token_embd.weight")


def adapter_content(adapter: "Adapter", notes: Mapping[str, str]) -> AdapterFile:
    """Copy a live adapter."""
    tensors = {name: adapter.get(name) for name in adapter.tensor_names()}
    return AdapterFile(adapter.architecture, adapter.alpha, tensors, dict(notes))


def write_adapter(path: str | os.PathLike[str], content: AdapterFile) -> None:
    """Write ``path`` whole or not at all. Raises :class:`ggtune.files.WriteError`."""
    keys: dict[str, KeyValue] = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": content.alpha,
        **{_PREFIX + key: value for key, value in content.notes.items()},
    }
    write_gguf(Path(path), content.architecture, keys, content.tensors)


def read_adapter(path: str | os.PathLike[str]) -> AdapterFile:
    """Read an adapter file. Raises :class:`ModelError` where it is none."""
    structure = gguf_structure(path)
    kind = structure.text("general.type")
    if structure.text("ggtune.checkpoint.state"):
        raise ModelError(f"{path} is a checkpoint, not an adapter: make one with `ggtune finetune --only-write-lora`")
    adapter_type = structure.text("adapter.type")
    if (kind, adapter_type) != ("adapter", "lora"):
        found = f"general.type {kind or 'missing'}, adapter.type {adapter_type or 'missing'}"
        raise ModelError(f"{path} is not a LoRA adapter ({found})")
    alpha = structure.number("adapter.lora.alpha")
    if alpha is None:
        raise ModelError(f"{path} has no adapter.lora.alpha")
    tensors = {}
    for t in structure.tensors:
        if t.type_name not in ("F32", "F16"):
            raise ModelError(f"{path}: tensor {t.name} is {t.type_name}; an adapter is F32 or F16")
        tensors[t.name] = _without_stack_of_one(structure.floats(t))
    if not tensors:
        raise ModelError(f"{path} has no tensors")
    notes = structure.ggtune_texts
    return AdapterFile(structure.text("general.architecture"), float(alpha), _pairs(path, tensors), notes)


def _pairs(path: str | os.PathLike[str], tensors: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    for name, values in tensors.items():
        base, _, side = name.rpartition(".")
        other = {"lora_a": f"{base}.lora_b", "lora_b": f"{base}.lora_a"}.get(side)
        if other is None or other not in tensors:
            raise ModelError(f"{path}: tensor {name} is not one of a pair .lora_a and .lora_b")
        a, b = (values, tensors[other]) if side == "lora_a" else (tensors[other], values)
        flipped = is_flipped(base)
        fit = a.ndim == b.ndim and a.shape[:-2] == b.shape[:-2] and a.shape[-1 if flipped else -2] == b.shape[-1]
        if not 2 <= a.ndim <= (2 if flipped else 3) or not fit:
            raise ModelError(f"{path}: {name} and {other} don't fit each other")
    return dict(tensors)


def _without_stack_of_one(values: FloatArray) -> FloatArray:
    """Take off the dimension of a stack that holds one matrix: to ggml it is none."""
    return values[0] if values.ndim == 3 and len(values) == 1 else values


def check_fits(path: str | os.PathLike[str], content: AdapterFile, model: "Model") -> None:
    """Raise :class:`ModelError` naming why an adapter is none of this model's."""
    wrong = []
    if content.architecture != model.architecture:
        wrong.append(f"its architecture is {content.architecture!r}, the model's {model.architecture!r}")
    shapes: dict[str, tuple[int, ...]] = {
        linear.name: (linear.n_in, linear.n_out, linear.n_mat)[: 2 if linear.n_mat == 1 else 3]
        for linear in model.linears()
    }
    all_shapes = {t.name: t.shape for t in model.tensors()}
    shapes |= {name: (shape[1], shape[0]) for name, shape in all_shapes.items() if name in _BESIDE_LAYERS}
    for base in content.bases:
        given = content.shape_of(base)
        if base in _BESIDE_LAYERS and "output.weight" not in shapes:
            # llama.cpp knows the one tensor as token_embd.weight, and would take its pair for both uses
            raise ModelError(
                f"{path} adapts {base}, but embedding and output layer of {model.path} are one and the same tensor: "
                "llama.cpp can't apply that. Train without lm_head and embed_tokens."
            )
        if base not in shapes:
            known = base in all_shapes
            wrong.append(f"llama.cpp applies no adapter to {base}" if known else f"the model has no linear {base}")
        elif given != shapes[base]:
            wrong.append(f"{base} is {shape_text(given)} in it and {shape_text(shapes[base])} in the model")
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ModelError(f"{path} is an adapter of another model than {model.path}: " + "; ".join(wrong[:3]) + more)


def shape_text(shape: tuple[int, ...]) -> str:
    """``64 to 128``, or ``8 times 64 to 128`` of a stack."""
    n_in, n_out, *n_mat = shape
    return "".join(f"{n} times " for n in n_mat) + f"{n_in} to {n_out}"


def pairs_beside_layers(content: AdapterFile, model: "Model") -> list[str]:
    """Return what is adapted beside the layers' linears: embedding and output layer, of a fitting adapter."""
    linears = {linear.name for linear in model.linears()}
    return [base for base in content.bases if base not in linears]


def load_adapter(path: str | os.PathLike[str], model: "Model") -> "Adapter":
    """Make a live adapter of a file. Raises :class:`ModelError` where it doesn't fit the model."""
    from ggtune._native import core

    content = read_adapter(path)
    check_fits(path, content, model)
    if others := pairs_beside_layers(content, model):
        raise GgtuneError(
            f"{path} adapts {', '.join(others)} beside the layers, which ggtune does only in a merged model: merge it "
            "(`ggtune export-lora`) and use that"
        )
    ranks = {content.rank_of(base) for base in content.bases}
    if len(ranks) != 1:
        raise GgtuneError(
            f"{path} has pairs of different rank ({', '.join(map(str, sorted(ranks)))}): merge it instead"
        )
    kinds = sorted({linear.kind for linear in model.linears() if linear.name in content.bases})
    adapter = core.Adapter(model, rank=content.rank, alpha=content.alpha, targets=kinds)
    for name in adapter.tensor_names():
        # a linear that the file leaves out keeps B = 0: no effect
        if name in content.tensors:
            adapter.set(name, content.tensors[name])
    return adapter
