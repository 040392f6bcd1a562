"""Whether an adapter belongs to a base model, told by fingerprints, names and shapes; no model is loaded.

An adapter file that ggtune has written carries its base's as ``ggtune.base_fingerprint``
(:func:`~ggtune.gguf.io.model_fingerprint`); a merged model has those of the adapters in it as
``ggtune.merged_adapter``, separated by commas. Files of other programs have neither: of them only names and shapes can
be checked.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np

from ggtune.errors import ModelError
from ggtune.gguf.adapter_file import AdapterFile, is_flipped, read_adapter, shape_text
from ggtune.gguf.io import gguf_structure, model_fingerprint

_SHOWN_DIGITS = 8
_SHOWN_REASONS = 3


def adapter_fingerprint(adapter: str | os.PathLike[str] | AdapterFile) -> str:
    """Hash alpha and tensors of an adapter, a file or what was read of one; other keys don't count.

    Raises :class:`ModelError` for a file that is no adapter.
    """
    content = adapter if isinstance(adapter, AdapterFile) else read_adapter(adapter)
    digest = hashlib.sha256(json.dumps(float(np.float32(content.alpha))).encode())
    for name in sorted(content.tensors):
        values = np.ascontiguousarray(content.tensors[name], dtype="<f4")
        digest.update(json.dumps([name, values.shape]).encode())
        digest.update(values.data)
    return digest.hexdigest()


def merged_adapters(base: str | os.PathLike[str]) -> Sequence[str]:
    """Return the fingerprints of the adapters that were merged into a model file."""
    text = gguf_structure(base).ggtune_texts.get("merged_adapter", "")
    return [part for part in text.split(",") if part]


def check_base(
    adapter: str | os.PathLike[str],
    base: str | os.PathLike[str],
    *,
    force: bool = False,
    content: AdapterFile | None = None,
) -> list[str]:
    """Return what the user has to be warned of before an adapter is put on a base model.

    ``content`` is what was read of the file already. Raises :class:`ModelError` for an adapter that was trained on
    another base, if not ``force``; that it was merged into this one already is only warned of.
    """
    content = content or read_adapter(adapter)
    if adapter_fingerprint(content) in merged_adapters(base):
        return [f"warning: {adapter} is merged into {base} already: it will count twice"]
    trained_on = content.notes.get("base_fingerprint", "")
    if not trained_on or trained_on == (found := model_fingerprint(base)):
        return []
    text = (
        f"{adapter} was trained on another base than {base} (fingerprint {trained_on[:_SHOWN_DIGITS]}, not "
        f"{found[:_SHOWN_DIGITS]}; the same model quantized otherwise, or with an adapter merged in, is another base, "
        "too)"
    )
    if not force:
        raise ModelError(f"{text}: give the base that it was trained on, or --force to take this one all the same")
    return [f"warning: {text}: taken all the same, since --force is given"]


def check_pairs(adapter: str | os.PathLike[str], content: AdapterFile, base: str | os.PathLike[str]) -> None:
    """Raise :class:`ModelError` where an adapter's pairs are none of this model's.

    As strict as merging: architecture, names and shapes of all pairs, finite values.
    """
    structure = gguf_structure(base)
    wrong = []
    architecture = structure.text("general.architecture")
    if content.architecture != architecture:
        wrong.append(f"its architecture is {content.architecture!r}, the model's {architecture!r}")
    shapes = {tensor.name: tensor.shape for tensor in structure.tensors}
    wrong += [reason for name in content.bases if (reason := _misfit(content, name, shapes))]
    if wrong:
        more = f" (and {len(wrong) - _SHOWN_REASONS} more)" if len(wrong) > _SHOWN_REASONS else ""
        raise ModelError(
            f"{adapter} is an adapter of another model than {base}: {'; '.join(wrong[:_SHOWN_REASONS])}{more}."
        )
    for name, values in content.tensors.items():
        if not np.isfinite(values).all():
            raise ModelError(f"{adapter}: tensor {name} holds values that are not finite: its training diverged.")


def _misfit(content: AdapterFile, name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Say what is wrong with a pair; "" where it fits. ``shapes`` are ggml's: ``(n_in, n_out)``, with ``n_mat``."""
    shape = shapes.get(name, ())
    while len(shape) > 2 and shape[-1] == 1:  # to ggml they are no dimensions
        shape = shape[:-1]
    if not 2 <= len(shape) <= 3:
        return f"the model has no linear {name}"
    if is_flipped(name) and "output.weight" not in shapes:
        return f"{name} is the output layer too, and llama.cpp can't apply a pair to both"
    given = content.shape_of(name)
    if given != shape:
        return f"{name} is {shape_text(given)} in it and {shape_text(shape)} in the model"
    return ""
