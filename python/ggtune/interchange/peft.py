"""Adapters to and from PEFT's folder format."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from ggtune._native import core
from ggtune.errors import GgtuneError, ModelError
from ggtune.files import making_folder, replace_text, replacing
from ggtune.gguf.adapter_file import AdapterFile, check_fits, is_flipped, read_adapter, write_adapter
from ggtune.gguf.io import gguf_structure
from ggtune.interchange.peft_file import CONFIG, WEIGHTS, FloatArray, PeftAdapter, PeftPair, read_peft
from ggtune.interchange.peft_layout import Heads, Layout, layer_of, layout_of, tensor_of

if TYPE_CHECKING:
    from ggtune._core import Model

_RESERVE_BYTES = 64 << 10
_ROUNDING = 1e-2  # of the largest value: more than two roundings to 16 bits differ by


class _Base:
    """The base model: its header, and what the layout of its architecture asks of it."""

    def __init__(self, path: str) -> None:
        self._structure = gguf_structure(path)
        self.path = path
        self.model: Model = core.Model(path, header_only=True)
        self.layout: Layout = layout_of(self.model.architecture)
        self._heads = self._integers("attention.head_count")
        self._heads_kv = self._integers("attention.head_count_kv") or self._heads

    def _integers(self, name: str) -> list[int]:
        return [int(each) for each in self._structure.numbers(f"{self.model.architecture}.{name}")]

    def heads(self, tensor: str) -> Heads:
        """Heads of a tensor's layer; a key has one value, or one for each layer."""
        layer = layer_of(tensor)
        n, n_kv = (values[layer if len(values) > 1 else 0] for values in (self._heads, self._heads_kv))
        return Heads(n, n_kv)

    def row_order(self, tensor: str, n_rows: int) -> Any:
        """See :meth:`Layout.row_order`."""
        return self.layout.row_order(tensor, n_rows, self.heads(tensor))

    def float_values(self, tensor: str) -> FloatArray | None:
        """Values of a tensor that is not quantized."""
        for each in self._structure.tensors:
            if each.name == tensor and each.type_name in ("F32", "F16", "BF16"):
                data = np.fromfile(self.path, np.uint8, each.n_bytes, offset=each.offset)
                values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[each.type_name])
                return np.asarray(values, dtype=np.float32).reshape(each.shape[::-1])
        return None


def import_peft(folder: Path, base_path: str, output: Path) -> AdapterFile:
    """Write the PEFT adapter in ``folder``, for the GGUF model ``base_path``, as an adapter GGUF file.

    Scales of single modules (``alpha_pattern``, rsLoRA with ``rank_pattern``) are folded into their B. Raises
    :class:`ModelError` that names every module which the base does not have or a GGUF adapter can't hold.
    """
    adapter = read_peft(folder)
    base = _Base(base_path)
    alpha = adapter.alpha or float(adapter.rank)  # llama.cpp takes 0 for no scaling
    tensors: dict[str, FloatArray] = {}
    unknown = []
    for module, pair in adapter.pairs.items():
        tensor = _tensor_of(base, module)
        if tensor is None or tensor + ".lora_a" in tensors or (pair.is_embedding != is_flipped(tensor)):
            unknown.append(module)
            continue
        b = _gguf_rows(base, tensor, pair) * np.float32(pair.scale * pair.a.shape[0] / alpha)
        tensors[tensor + ".lora_a"] = np.ascontiguousarray(pair.a.T) if pair.is_embedding else pair.a
        tensors[tensor + ".lora_b"] = b
    if unknown:
        shown = ", ".join(unknown[:4]) + (f" and {len(unknown) - 4} more" if len(unknown) > 4 else "")
        raise ModelError(
            f"{folder} adapts modules for which {base_path} ({base.model.architecture}) has no weight of its own: "
            + shown
        )
    content = AdapterFile(base.model.architecture, alpha, tensors)
    check_fits(folder, content, base.model)
    _check_copies(folder, adapter, base)
    with making_folder(output.parent):
        write_adapter(output, content)
    return content


def _tensor_of(base: _Base, module: str) -> str | None:
    # models of text and images hold their language model one level deeper
    name = re.sub(r"(^|\.)language_model\.", r"\1", module)
    return tensor_of(base.model.architecture, name, base.model.n_layer)


def _gguf_rows(base: _Base, tensor: str, pair: PeftPair) -> FloatArray:
    if pair.is_embedding:
        return pair.b
    try:
        order = base.row_order(tensor, pair.b.shape[0])
    except ValueError:  # no multiple of the heads: check_fits says how it differs from the base
        order = None
    return pair.b if order is None else pair.b[order]


def _check_copies(folder: Path, adapter: PeftAdapter, base: _Base) -> None:
    """PEFT saves an adapted embedding's own weight along; it has to be the base's."""
    for module, copy in adapter.copies.items():
        tensor = _tensor_of(base, module)
        values = base.float_values(tensor) if tensor else None
        if values is None:
            continue
        if values.shape != copy.shape or np.abs(values - copy).max() > _ROUNDING * np.abs(copy).max():
            raise ModelError(f"{folder}: {module} was changed beside its adapter (new tokens?); a GGUF can't hold that")


def export_peft(adapter_path: str, base_path: str, folder: Path, *, base_name: str = "") -> None:
    """Write an adapter GGUF file for the model ``base_path`` as a PEFT folder.

    ``base_name`` is what PEFT loads as the base model: a name on the hub or a folder. Raises :class:`ModelError` where
    the adapter doesn't fit the base, :class:`GgtuneError` where the architecture is not known.
    """
    content = read_adapter(adapter_path)
    base = _Base(base_path)
    check_fits(adapter_path, content, base.model)
    tensors: dict[str, FloatArray] = {}
    modules: dict[str, str] = {}
    for tensor in content.bases:
        module = base.layout.module(tensor)
        if module is None:
            raise GgtuneError(
                f"{adapter_path} adapts {tensor}, for which a Hugging Face model has no module of its own"
            )
        modules[tensor] = module
        a, b = content.tensors[tensor + ".lora_a"], content.tensors[tensor + ".lora_b"]
        if is_flipped(tensor):
            tensors[f"base_model.model.{module}.lora_embedding_A"] = np.ascontiguousarray(a.T)
            tensors[f"base_model.model.{module}.lora_embedding_B"] = b
            continue
        order = base.row_order(tensor, b.shape[0])
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b if order is None else b[np.argsort(order)]
    config = _config(content, modules, _target_modules(base, set(modules.values())), base_name)
    config["fan_in_fan_out"] = base.layout.fan_in_fan_out
    with making_folder(folder):
        _save_tensors(folder / WEIGHTS, tensors)
        replace_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _config(
    content: AdapterFile, modules: Mapping[str, str], target_modules: list[str], base_name: str
) -> dict[str, Any]:
    ranks = {modules[tensor]: content.rank_of(tensor) for tensor in content.bases}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    odd_ranks = {re.escape(module): r for module, r in ranks.items() if r != rank}
    alpha = content.alpha or rank  # llama.cpp takes 0 for no scaling: of each pair, that is its own rank
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": target_modules,
        "modules_to_save": None,
        "rank_pattern": odd_ranks,
        "alpha_pattern": {} if content.alpha else odd_ranks,
        "use_rslora": False,  # the alpha of a GGUF adapter has the root of the rank in it
        "use_dora": False,
        "init_lora_weights": True,
    }


def _target_modules(base: _Base, adapted: set[str]) -> list[str]:
    """Last parts of names, as people write them, where all modules with such a name are adapted; else whole names."""
    everything = {module for tensor in base.model.tensors() if (module := base.layout.module(tensor.name)) is not None}
    short = {name.rpartition(".")[2] for name in adapted}
    short -= {name.rpartition(".")[2] for name in everything - adapted}
    return sorted(short | {name for name in adapted if name.rpartition(".")[2] not in short})


def _save_tensors(path: Path, tensors: Mapping[str, FloatArray]) -> None:
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(values) for name, values in sorted(tensors.items())}
    n_bytes = sum(values.nbytes for values in contiguous.values()) + _RESERVE_BYTES
    with replacing(path, needed_bytes=n_bytes) as temporary:
        save_file(contiguous, temporary, metadata={"format": "pt"})
