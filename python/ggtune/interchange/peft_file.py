"""PEFT's adapter folder: ``adapter_config.json`` and ``adapter_model.safetensors``, read and checked.

The format is what ``PeftModel.save_pretrained`` of huggingface/peft writes (``tuners/lora/config.py``,
``utils/save_and_load.py``).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggtune.errors import ModelError

FloatArray = NDArray[np.float32]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_BASE_LAYER = ".base_layer"
_PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.default)?(\.weight)?")

# Settings that make of an adapter more than the product of two matrices; only these values leave it one.
_PLAIN = {
    "use_dora": "is a DoRA adapter, which scales each column of the weights",
    "layer_replication": "repeats layers of the model",
    "trainable_token_indices": "has trained the embeddings of single tokens",
    "alora_invocation_tokens": "is an activated LoRA, which works from certain tokens on only",
    "use_qalora": "is a QALoRA adapter, which pools the inputs",
    "use_bdlora": "is a block-diagonal LoRA",
    "arrow_config": "is a router of several adapters",
    "velora_config": "is a VeLoRA adapter",
    "monteclora_config": "is a MonteCLoRA adapter",
    "kasa_config": "is a KaSA adapter",
}
# Ways to begin that take the first A and B out of the base's weights: the adapter belongs to a changed base.
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class PeftPair:
    """A ``(rank, n_in)`` and B ``(n_out, rank)`` of one module; its product is scaled by ``scale``."""

    a: FloatArray
    b: FloatArray
    scale: float
    is_embedding: bool


@dataclass(frozen=True)
class PeftStack:
    """A ``(n * rank, n_in)`` and B ``(n_out, rank * n)`` of one of a module's parameters, which holds n matrices."""

    module: str
    a: FloatArray
    b: FloatArray


@dataclass(frozen=True)
class PeftAdapter:
    """A LoRA adapter as PEFT has it."""

    rank: int
    alpha: float  # as adapter.lora.alpha has it: with rsLoRA times the root of the rank
    pairs: Mapping[str, PeftPair]  # by the module's name
    stacks: Sequence[PeftStack]  # of parameters (target_parameters)
    copies: Mapping[str, FloatArray]  # base weights that PEFT saved along, by the module's name
    config: Mapping[str, Any]

    def rank_and_scale(self, name: str) -> tuple[int, float]:
        """Return the rank of a module or parameter by the settings, and the factor of its product."""
        return _rank_and_scale(self.config, name)


def is_peft_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model's weights (it may have the base's configuration)."""
    weights = ("model*.safetensors", "pytorch_model*.bin")
    return (folder / CONFIG).is_file() and not any(any(folder.glob(pattern)) for pattern in weights)


def read_peft(folder: Path) -> PeftAdapter:
    """Read an adapter folder. Raises :class:`ModelError` with everything that a plain LoRA adapter can't express."""
    config = _read_config(folder / CONFIG)
    tensors = _read_tensors(folder)
    problems = _unsupported_settings(config)
    sides: dict[str, dict[str, FloatArray]] = {}
    embeddings: set[str] = set()
    copies = {}
    whole = []
    for key, values in tensors.items():
        name = key.removeprefix(_PREFIX)
        if match := _PAIR.fullmatch(name):
            sides.setdefault(match["module"], {})[match["side"]] = values
            embeddings |= {match["module"]} if match["embedding"] else set()
        elif name.endswith(".base_layer.weight"):
            copies[name.removesuffix(".base_layer.weight")] = values
        elif name.endswith(".bias"):
            if values.any():
                problems.append(f"it has trained biases ({name})")
        elif "lora_magnitude_vector" not in name:  # DoRA's, named above
            whole.append(name)
    if whole:
        problems.append(f"it holds whole weights beside the pairs, as modules_to_save makes them: {_listed(whole)}")
    rank = config["r"]
    pairs = {}
    stacks = []
    parents = _parents(config)
    for name, pair in sides.items():
        module = name.replace(_BASE_LAYER, "")
        parameters = {p for parent, p in parents if f".{module}".endswith(f".{parent}")}
        if parameters - {"weight"} and len(pair) == 2 and all(side.ndim == 2 for side in pair.values()):
            if not all(np.isfinite(side).all() for side in pair.values()):
                problems.append(f"{name} has values that are not finite")
            stacks.append(PeftStack(module, pair["A"], pair["B"]))
            continue
        by_pattern = f"{module}.weight" if parameters else module
        if len(pair) != 2 or any(side.ndim != 2 for side in pair.values()):
            problems.append(f"{module} has no pair of matrices lora_A and lora_B")
            continue
        expected, scale = _rank_and_scale(config, by_pattern)
        if not (pair["A"].shape[0] == pair["B"].shape[1] == expected):
            problems.append(
                f"{module} has A {pair['A'].shape} and B {pair['B'].shape}; by {CONFIG} its rank is {expected}"
            )
            continue
        if not (np.isfinite(pair["A"]).all() and np.isfinite(pair["B"]).all()):
            problems.append(f"{module} has values that are not finite")
        pairs[module] = PeftPair(pair["A"], pair["B"], scale, module in embeddings)
    if not pairs and not stacks and not problems:
        problems.append("it holds no pairs lora_A and lora_B")
    if problems:
        raise ModelError(f"{folder} is no adapter that a GGUF file can hold: {'; '.join(problems)}")
    alpha = float(config["lora_alpha"]) * (rank**0.5 if config["use_rslora"] else 1)
    return PeftAdapter(rank, alpha, pairs, stacks, copies, config)


def _parents(config: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Modules, by the end of their names, and those of their parameters that are adapted."""
    return {(name.rpartition(".")[0], name.rpartition(".")[2]) for name in config["target_parameters"]}


def _rank_and_scale(config: Mapping[str, Any], name: str) -> tuple[int, float]:
    rank = _by_pattern(config["rank_pattern"], name, config["r"])
    alpha = _by_pattern(config["alpha_pattern"], name, config["lora_alpha"])
    return rank, alpha / (rank**0.5 if config["use_rslora"] else rank)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is no configuration of PEFT")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{path}: the adapter is of type {config.get('peft_type')!r}; only LORA ones can be imported")
    defaults = {"lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "target_parameters": []}
    used = defaults | {key: value for key, value in config.items() if value is not None}
    numbers = [used["lora_alpha"], *_values(used["alpha_pattern"]), *_values(used["rank_pattern"])]
    if not isinstance(used.get("r"), int) or used["r"] < 1 or not all(isinstance(n, (int, float)) for n in numbers):
        raise ModelError(f"{path}: r, lora_alpha, rank_pattern and alpha_pattern have to be numbers, r above 0")
    parameters = used["target_parameters"]
    if not isinstance(parameters, list) or not all(isinstance(name, str) for name in parameters):
        raise ModelError(f"{path}: target_parameters have to be names")
    return used


def _values(pattern: object) -> list[object]:
    return list(pattern.values()) if isinstance(pattern, dict) else [None]


def _unsupported_settings(config: Mapping[str, Any]) -> list[str]:
    problems = [f"it {text} ({key})" for key, text in _PLAIN.items() if config.get(key)]
    if config.get("modules_to_save"):
        problems.append(f"it has trained whole modules (modules_to_save: {_listed(config['modules_to_save'])})")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASES):
        problems.append(
            f"it was begun with init_lora_weights={start!r}, which changes the base model's weights: convert it with "
            "PEFT (save_pretrained with path_initial_model_for_weight_conversion), or merge it there"
        )
    return problems


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of the module's name, from a dot on."""
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise ModelError(f"{CONFIG} has the pattern {pattern!r}, which is no regular expression: {error}") from None
    return default


def _read_tensors(folder: Path) -> dict[str, FloatArray]:
    import safetensors

    path = folder / WEIGHTS
    if not path.is_file() and (folder / "adapter_model.bin").is_file():
        raise ModelError(f"{folder} has its weights as adapter_model.bin: save it as safetensors (PEFT's default)")
    try:
        found = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path} is damaged or truncated: {error}") from error
    return {name: _floats(path, name, info) for name, info in found}


def _floats(path: Path, name: str, info: Mapping[str, Any]) -> FloatArray:
    data, kind = bytes(info["data"]), info["dtype"]
    if kind == "BF16":  # the upper half of a float
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif kind in ("F64", "F32", "F16"):
        values = np.frombuffer(data, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[kind]).astype(np.float32)
    else:
        raise ModelError(f"{path}: {name} is of type {kind}; an adapter is of floats (F32, F16 or BF16)")
    shaped: FloatArray = values.reshape(info["shape"])
    return shaped


def _listed(names: Any) -> str:
    shown = [str(name) for name in names] if isinstance(names, list) else [str(names)]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
