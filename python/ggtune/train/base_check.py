"""Is an adapter one of this base model? Asked of the files alone: no model is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ggtune.errors import ModelError
from ggtune.train.adapter_file import AdapterFile, is_flipped
from ggtune.train.files import model_fingerprint, open_gguf, read_text_field

_SHOWN = 3


def check_pairs(path: Path, content: AdapterFile, base: Path) -> None:
    """Raise :class:`ModelError` where an adapter's pairs are none of this model's.

    As strict as merging: architecture, names and shapes of all pairs, finite values.
    """
    reader = open_gguf(base)
    wrong = []
    architecture = read_text_field(reader, "general.architecture")
    if content.architecture != architecture:
        wrong.append(f"its architecture is {content.architecture!r}, the model's {architecture!r}")
    shapes = {tensor.name: tuple(int(n) for n in tensor.shape) for tensor in reader.tensors}
    wrong += [reason for name in content.bases if (reason := _misfit(content, name, shapes))]
    if wrong:
        more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
        raise ModelError(f"{path} is an adapter of another model than {base}: {'; '.join(wrong[:_SHOWN])}{more}.")
    for name, values in content.tensors.items():
        if not np.isfinite(values).all():
            raise ModelError(f"{path}: tensor {name} holds values that are not finite: its training diverged.")


def check_base(path: Path, base: Path, *, content: AdapterFile, force: bool = False) -> list[str]:
    """Return what the user has to know before an adapter is put on a base model.

    Where the adapter says which file it was trained on (:func:`~ggtune.train.files.model_fingerprint`), it has to be
    this one, or ``force``. Raises :class:`ModelError`.
    """
    trained_on = content.notes.get("base_fingerprint")
    if not trained_on or trained_on == model_fingerprint(base):
        return []
    text = f"{path} was trained on another model than {base}"
    if not force:
        raise ModelError(
            f"{text} (the same one quantized otherwise, or with an adapter merged in, is another one too). "
            "Give the one that it was trained on; --force takes this one all the same."
        )
    return [f"{text}: taken all the same (--force)."]


def _misfit(content: AdapterFile, name: str, shapes: dict[str, tuple[int, ...]]) -> str:
    """Say what is wrong with a pair; "" where it fits. ``shapes`` are ggml's: ``(n_in, n_out, ...)``."""
    shape = shapes.get(name)
    if shape is None or len(shape) < 2:
        return f"the model has no linear {name}"
    a, b = content.tensors[f"{name}.lora_a"].shape, content.tensors[f"{name}.lora_b"].shape
    if is_flipped(name) and "output.weight" not in shapes:
        return f"{name} is the output layer too, and llama.cpp can't apply a pair to both"
    if is_flipped(name):
        given, expected = (b[-2], a[-2]), shape[:2]
    else:
        given, expected = (a[-1], b[-2]), shape[:2]
    if given != expected or a[:-2] != shape[:1:-1] or b[:-2] != shape[:1:-1]:
        return f"{name} is {given[0]} to {given[1]} in it and {expected[0]} to {expected[1]} in the model"
    return ""
