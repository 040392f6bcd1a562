"""Several adapters as one, exactly: what an engine that takes a single adapter (Ollama) needs.

The ranks are stacked: of each base tensor the A of all adapters one under the other and their B side by side, so that
B A is the sum of the products. llama.cpp multiplies a pair of rank r by alpha / r, or by 1 where alpha is 0
(``llama_adapter_lora_weight::get_scale``); each adapter's own factor is folded into its B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ggtune.errors import GgtuneError, ModelError
from ggtune.gguf.adapter_file import AdapterFile, FloatArray, is_flipped, read_adapter, shape_text, write_adapter

STACKED = "stacked"
"""Note of a stacked file: the adapters in it with their factors."""


def stack_adapters(adapters: Sequence[tuple[Path, float]], out: Path, *, force: bool = False) -> AdapterFile:
    """Write the sum of ``adapters`` (file, factor) to ``out`` as one adapter, and return it.

    The notes (template, system text, fingerprint of the base) are those of the first. Raises :class:`ModelError` for
    files that are no adapters or not of one base (where they only say so and fit, ``force`` takes them),
    :class:`GgtuneError` for a factor that is no number and for an ``out`` that is one of the files,
    :class:`ggtune.files.WriteError`.
    """
    if out.exists() and any(path.exists() and out.samefile(path) for path, _ in adapters):
        raise GgtuneError(f"{out} is one of the adapters itself: give another file for the sum.")
    content = stacked([(str(path), read_adapter(path), scale) for path, scale in adapters], force=force)
    write_adapter(out, content)
    return content


def stacked(adapters: Sequence[tuple[str, AdapterFile, float]], *, force: bool = False) -> AdapterFile:
    """Sum ``adapters`` (name for messages, content, factor). Raises as :func:`stack_adapters`."""
    if not adapters:
        raise GgtuneError("There is no adapter to stack.")
    first_name, first, _ = adapters[0]
    parts: dict[str, list[tuple[FloatArray, FloatArray]]] = {}
    sizes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, content, scale in adapters:
        if not math.isfinite(scale):
            raise GgtuneError(f"{name}: the factor of an adapter has to be a finite number, not {scale}.")
        if content.architecture != first.architecture:
            raise ModelError(
                f"{name} is an adapter for a {content.architecture} model, {first_name} for a {first.architecture} "
                "model: they can't be stacked."
            )
        trained_on = {each.notes["base_fingerprint"] for each in (first, content) if "base_fingerprint" in each.notes}
        if len(trained_on) > 1 and not force:
            raise ModelError(f"{name} and {first_name} were trained on different models. --force stacks them.")
        for base in content.bases:
            a, b, factor = _pair(content, base)
            size = content.shape_of(base)
            other, expected = sizes.setdefault(base, (name, size))
            if size != expected:
                raise ModelError(
                    f"{base} is {shape_text(size)} in {name}, but {shape_text(expected)} in {other}: they are adapters "
                    "of different models."
                )
            parts.setdefault(base, []).append((a, b * np.float64(scale * factor)))

    ranks = {base: sum(a.shape[-2] for a, _ in pairs) for base, pairs in parts.items()}
    alpha = max(ranks.values())
    tensors: dict[str, FloatArray] = {}
    for base, pairs in parts.items():
        a = np.concatenate([a for a, _ in pairs], axis=-2)
        b = np.concatenate([b for _, b in pairs], axis=-1) * (ranks[base] / alpha)
        tensors[f"{base}.lora_a"] = a if not is_flipped(base) else a.swapaxes(-1, -2)
        tensors[f"{base}.lora_b"] = b.astype(np.float32)
    contents = " + ".join(f"{Path(name).name} * {scale:g}" for name, _, scale in adapters)
    return replace(first, alpha=float(alpha), tensors=tensors, notes={**first.notes, STACKED: contents})


def _pair(content: AdapterFile, base: str) -> tuple[FloatArray, FloatArray, float]:
    """A ``(rank, n_in)``, B ``(n_out, rank)``, stacks of them too, and the factor of their product."""
    a, b = content.tensors[f"{base}.lora_a"], content.tensors[f"{base}.lora_b"]
    factor = content.alpha / b.shape[-1] if content.alpha else 1.0
    return (a.swapaxes(-1, -2) if is_flipped(base) else a), b, factor
