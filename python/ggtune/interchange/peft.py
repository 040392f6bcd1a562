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
from ggtune.interchange.peft_experts import (
    DOWN,
    GATE,
    GATE_UP,
    PARAMETERS,
    UP,
    Stack,
    expert_module,
    from_parameter,
    fused,
    halves,
    layer_of_experts,
    stacked,
    to_parameter,
)
from ggtune.interchange.peft_file import CONFIG, WEIGHTS, FloatArray, PeftAdapter, PeftPair, PeftStack, read_peft
from ggtune.interchange.peft_layout import Heads, Layout, kind_of, layer_of, layout_of, tensor_of

if TYPE_CHECKING:
    from ggtune._core import Model

_RESERVE_BYTES = 64 << 10
_EXPERT_KINDS = frozenset({GATE, UP, DOWN, GATE_UP})
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
    experts = _Experts(folder, adapter, base)
    unknown = [stack.module for stack in adapter.stacks if not experts.add_parameter(stack)]
    for module, pair in adapter.pairs.items():
        if experts.add_module(module, pair):
            continue
        tensor = _tensor_of(base, module)
        if tensor is None or tensor + ".lora_a" in tensors or (pair.is_embedding != is_flipped(tensor)):
            unknown.append(module)
            continue
        b = _gguf_rows(base, tensor, pair) * np.float32(pair.scale * pair.a.shape[0] / alpha)
        tensors[tensor + ".lora_a"] = np.ascontiguousarray(pair.a.T) if pair.is_embedding else pair.a
        tensors[tensor + ".lora_b"] = b
    for tensor, stack in experts.stacks().items():
        a, b = stack.scaled_for(alpha)
        tensors[tensor + ".lora_a"], tensors[tensor + ".lora_b"] = np.ascontiguousarray(a), np.ascontiguousarray(b)
    if unknown:
        unknown = sorted(set(unknown))
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


class _Experts:
    """The pairs of experts in an adapter, gathered by layer and projection of the base."""

    def __init__(self, folder: Path, adapter: PeftAdapter, base: _Base) -> None:
        self._folder = folder
        self._adapter = adapter
        self._layout = base.layout
        self._linears = {(each.layer, each.kind): each for each in base.model.linears() if each.routed}
        self._found: dict[tuple[int, str], Stack] = {}
        self._single: dict[tuple[int, str], dict[int, tuple[FloatArray, FloatArray, float]]] = {}

    def add_parameter(self, stack: PeftStack) -> bool:
        """Take the pair of a parameter; False where the base has no experts for it."""
        layer = layer_of_experts(stack.module)
        for kind, parameter in PARAMETERS.items() if layer is not None else ():
            shape = self._shape(layer or 0, kind)
            if shape is None or (stack.a.shape[1], stack.b.shape[0]) != shape[:2]:
                continue
            if (layer or 0, kind) in self._found:
                return False
            rank, scale = self._adapter.rank_and_scale(f"{stack.module}.{parameter}")
            if not stack.a.shape[0] == stack.b.shape[1] == rank * shape[2]:
                raise ModelError(
                    f"{self._folder} has for {stack.module}.{parameter} A {stack.a.shape} and B {stack.b.shape}; by "
                    f"{CONFIG} its rank is {rank}, and {self._base_has(shape[2])}"
                )
            self._found[layer or 0, kind] = Stack(*from_parameter(stack.a, stack.b, shape[2]), scale)
            return True
        return False

    def add_module(self, module: str, pair: PeftPair) -> bool:
        """Take the pair of one expert's module; False where it is none, or the base has no such expert."""
        named = expert_module(module)
        shape = self._shape(named.layer, named.kind) if named else None
        if named is None or shape is None or named.expert >= shape[2]:
            return False
        given = pair.a.shape[1], pair.b.shape[0]
        if given != shape[:2]:
            raise ModelError(
                f"{self._folder} is an adapter of another model: {module} is {given[0]} to {given[1]} in it and "
                f"{shape[0]} to {shape[1]} in the base"
            )
        self._single.setdefault((named.layer, named.kind), {})[named.expert] = (pair.a, pair.b, pair.scale)
        return True

    def stacks(self) -> dict[str, Stack]:
        """Return them by the base's tensors."""
        parts = dict(self._found)
        for (layer, kind), pairs in self._single.items():
            shape = self._shape(layer, kind)
            assert shape is not None
            parts[layer, kind] = stacked(pairs, shape[2])
        interleaved = self._layout.interleaved
        for layer in sorted({layer for layer, _ in parts}):
            is_fused = (layer, GATE_UP) in self._linears
            if not is_fused and (both := parts.pop((layer, GATE_UP), None)):
                parts[layer, GATE], parts[layer, UP] = halves(both, interleaved=interleaved)
            elif is_fused and ((layer, GATE) in parts or (layer, UP) in parts):
                gate, up = parts.pop((layer, GATE), None), parts.pop((layer, UP), None)
                parts[layer, GATE_UP] = fused(gate, up, interleaved=False)
        return {self._linears[key].name: stack for key, stack in parts.items()}

    def _shape(self, layer: int, kind: str) -> tuple[int, int, int] | None:
        """``(n_in, n_out, n_expert)`` of a projection as modules have it, whether the base has it alone or not."""
        if kind in (GATE, UP) and (layer, GATE_UP) in self._linears:
            both = self._linears[layer, GATE_UP]
            return both.n_in, both.n_out // 2, both.n_mat
        if kind == GATE_UP and (layer, UP) in self._linears:
            one = self._linears[layer, UP]
            return one.n_in, 2 * one.n_out, one.n_mat
        linear = self._linears.get((layer, kind))
        return (linear.n_in, linear.n_out, linear.n_mat) if linear else None

    @staticmethod
    def _base_has(n_expert: int) -> str:
        return f"the base has {n_expert} experts"


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
    parameters = _expert_parameters(adapter_path, content, base)
    for tensor in content.bases:
        if kind_of(tensor) in _EXPERT_KINDS:
            continue
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
    by_parameter = {tensor for tensor in modules if kind_of(tensor) in base.layout.parameters}
    ranks = {modules[t] + ".weight" * (t in by_parameter): content.rank_of(t) for t in modules}
    for (module, parameter), stack in parameters.items():
        ranks[f"{module}.{parameter}"] = stack.rank
        # the wrapper of the parameter that is declared last is the outermost
        inner = parameter == PARAMETERS[GATE_UP] and (module, PARAMETERS[DOWN]) in parameters
        prefix = f"base_model.model.{module}" + ".base_layer" * inner
        tensors[prefix + ".lora_A.weight"], tensors[prefix + ".lora_B.weight"] = to_parameter(stack.a, stack.b)
    config = _config(
        content, ranks, _target_modules(base, {modules[t] for t in modules.keys() - by_parameter}), base_name
    )
    if names := [f"{modules[t]}.weight" for t in by_parameter] + [".".join(key) for key in parameters]:
        config["target_parameters"] = sorted(names)
    config["fan_in_fan_out"] = base.layout.fan_in_fan_out
    with making_folder(folder):
        _save_tensors(folder / WEIGHTS, tensors)
        replace_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _expert_parameters(path: str, content: AdapterFile, base: _Base) -> dict[tuple[str, str], Stack]:
    """Make the pairs of the parameters that hold the experts' matrices, by module and parameter.

    Their products are scaled as those of all others: by alpha / rank, or not where alpha is 0.
    """
    found: dict[int, dict[str, Stack]] = {}
    for tensor in content.bases:
        kind = kind_of(tensor)
        if kind in _EXPERT_KINDS:
            a, b = content.tensors[tensor + ".lora_a"], content.tensors[tensor + ".lora_b"]
            scale = content.alpha / a.shape[1] if content.alpha else 1.0
            found.setdefault(layer_of(tensor), {})[kind] = Stack(a, b, scale)
    parameters: dict[tuple[str, str], Stack] = {}
    for layer, parts in found.items():
        module = base.layout.experts_module(layer)
        if module is None:
            raise GgtuneError(
                f"{path} adapts blk.{layer}.{next(iter(parts))}.weight: ggtune doesn't know the experts of "
                f"Hugging Face models of the architecture {base.model.architecture!r}"
            )
        if GATE in parts or UP in parts:
            gate, up = parts.pop(GATE, None), parts.pop(UP, None)
            parts[GATE_UP] = fused(gate, up, interleaved=base.layout.interleaved)
        for kind, stack in parts.items():
            a, b = stack.scaled_for(content.alpha or float(stack.rank))
            parameters[module, PARAMETERS[kind]] = Stack(a, b)
    return parameters


def _config(
    content: AdapterFile, ranks: Mapping[str, int], target_modules: list[str], base_name: str
) -> dict[str, Any]:
    rank = Counter(ranks.values()).most_common(1)[0][0]
    odd_ranks = {re.escape(name): r for name, r in ranks.items() if r != rank}
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
