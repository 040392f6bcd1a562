"""Tiny models with random weights of all architectures of the pinned llama.cpp, written in milliseconds."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as QuantizationType
from gguf import GGUFValueType as ValueType
from numpy.typing import NDArray

from .hyperparameters import NAMES, WIDE_KEYS, Value, architecture_of, hyperparameters

__all__ = ["NAMES", "TABLE", "architecture_of", "collapsed", "tensor_shapes", "write_metadata", "write_model"]

Shape = tuple[int, ...]  # as ggml counts dimensions: (n_in, n_out, ...)

TABLE = Path(__file__).with_name("tensors.txt")

_HEADER = """\
# The tensors of every architecture's tiny model, made by scripts/trainability.py out of llama.cpp: name, dimensions.
# blk.* is every layer, blk.0,2 are those two.
"""
# Optional tensors by which llama.cpp would take a model for one of another kind.
_LEFT_OUT = {"rwkv6qwen2": "time_mix_first"}
_LINEARS = re.compile(r"blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down))\.weight$")
_TABLES = re.compile(r"(token_embd|output|per_layer_token_embd)\.weight$")


def write_model(folder: Path, name: str, seed: int = 0, *, quantized: bool = True) -> Path:
    """Write the model of that name of :data:`NAMES` and return its path.

    Linears and tables are Q8_0 where ``quantized`` and their rows allow it, all else is float32. The tokenizer is a
    SentencePiece of the 256 bytes and some text.
    """
    path = folder / f"{name}.gguf"
    writer = _writer(path, name)
    for tensor, shape in tensor_shapes(name).items():
        array = _random(tensor, shape, seed)
        named = quantized and (_LINEARS.match(tensor) or _TABLES.match(tensor))
        if named and shape[0] % 32 == 0 and len(shape) == 2:
            writer.add_tensor(
                tensor, gguf.quants.quantize(array, QuantizationType.Q8_0), raw_dtype=QuantizationType.Q8_0
            )
        else:
            writer.add_tensor(tensor, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_metadata(path: Path, name: str) -> Path:
    """Write a file with the model's keys and no tensor."""
    writer = _writer(path, name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def tensor_shapes(name: str) -> dict[str, Shape]:
    """The tensors of the model of that name, from the committed table."""
    n_layer = hyperparameters(name)[f"{architecture_of(name)}.block_count"]
    assert isinstance(n_layer, int)
    shapes: dict[str, Shape] = {}
    for pattern, shape in _table()[name]:
        if name in _LEFT_OUT and _LEFT_OUT[name] in pattern:
            continue
        block = re.match(r"blk\.([*\d,]+)\.(.*)", pattern)
        if block is None:
            shapes[pattern] = shape
            continue
        layers = range(n_layer) if block[1] == "*" else map(int, block[1].split(","))
        shapes.update({f"blk.{layer}.{block[2]}": shape for layer in layers})
    return shapes


def collapsed(name: str, shapes: Mapping[str, Shape]) -> str:
    """The table's text about one model: the reverse of :func:`tensor_shapes`."""
    n_layer = hyperparameters(name)[f"{architecture_of(name)}.block_count"]
    assert isinstance(n_layer, int)
    layers: dict[tuple[str, Shape], list[int]] = {}
    lines = [f"[{name}]"]
    for tensor, shape in shapes.items():
        block = re.match(r"blk\.(\d+)\.(.*)", tensor)
        if block is None:
            lines.append(_line(tensor, shape))
        else:
            layers.setdefault((block[2], shape), []).append(int(block[1]))
    for (rest, shape), found in layers.items():
        which = "*" if found == list(range(n_layer)) else ",".join(map(str, found))
        lines.append(_line(f"blk.{which}.{rest}", shape))
    return "\n".join(lines) + "\n"


def write_table(sections: Mapping[str, str]) -> None:
    """Write the committed table; sections are texts of :func:`collapsed` by model."""
    TABLE.write_text("\n".join([_HEADER, *(sections[name] for name in sorted(sections))]))
    _table.cache_clear()


def _line(tensor: str, shape: Shape) -> str:
    return " ".join([tensor, *map(str, shape)])


@cache
def _table() -> dict[str, list[tuple[str, Shape]]]:
    table: dict[str, list[tuple[str, Shape]]] = {}
    for line in TABLE.read_text().splitlines():
        if line.startswith("["):
            section = table.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            tensor, *shape = line.split()
            section.append((tensor, tuple(map(int, shape))))
    return table


def _random(tensor: str, shape: Shape, seed: int) -> NDArray[np.float32]:
    """Values of a size that keeps the signal's."""
    rng = np.random.default_rng([seed, zlib.crc32(tensor.encode())])
    values = rng.normal(0, 1, shape[::-1])
    if tensor.endswith(".scale") or "norm" in tensor or "rope_f" in tensor or ("out" in tensor and len(shape) == 1):
        values = 1 + 0.1 * values
    elif "ssm_a" in tensor:
        values = -np.abs(values)  # a decay
    elif len(shape) == 1:
        values *= 0.2
    else:
        values *= 0.7 * shape[0] ** -0.5 if "embd" not in tensor else 0.5
    return values.astype(np.float32)


def _writer(path: Path, name: str) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture_of(name))
    writer.add_name(f"Tiny {name}")
    keys = hyperparameters(name)
    for key, value in keys.items():
        _add(writer, key, value)
    n_vocab = keys[f"{architecture_of(name)}.vocab_size"]
    assert isinstance(n_vocab, int)
    text = ["<|endoftext|>", *(f"▁{chr(97 + i)}" for i in range(26))]
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *text]
    vocabulary += [f"<{i}>" for i in range(len(vocabulary), n_vocab)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary)
    writer.add_token_scores([0.0] * n_vocab)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (n_vocab - 259)])
    return writer


def _add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        wide = key.split(".", 1)[1] in WIDE_KEYS
        of = ValueType.FLOAT32 if isinstance(value[0], float) else ValueType.UINT64 if wide else ValueType.UINT32
        writer.add_key_value(key, list(value), ValueType.ARRAY, sub_type=of)
