"""Tiny GGUF models and adapters for the tests of everything that reads or writes such files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as QuantizationType
from numpy.typing import NDArray

from ggtune import _core
from ggtune._core import Adapter, Model

N_EMBD = 256  # the block of K- and IQ-quants
N_FF = 512
N_LAYER = 2
N_HEAD = 4
N_HEAD_KV = 2
VOCABULARY = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁a", "▁b", "ab"]

LINEARS = {
    "attn_q": (N_EMBD, N_EMBD),
    "attn_k": (N_EMBD // N_HEAD * N_HEAD_KV, N_EMBD),
    "attn_v": (N_EMBD // N_HEAD * N_HEAD_KV, N_EMBD),
    "attn_output": (N_EMBD, N_EMBD),
    "ffn_gate": (N_FF, N_EMBD),
    "ffn_up": (N_FF, N_EMBD),
    "ffn_down": (N_EMBD, N_FF),
}

# Bytes of a block and, of them, where its codes lie: all others are scales and mins (ggml-common.h).
CODES = {
    "q4_0": (18, 2, 18),
    "q4_1": (20, 4, 20),
    "q5_0": (22, 2, 22),
    "q5_1": (24, 4, 24),
    "q8_0": (34, 2, 34),
    "q2_K": (84, 16, 80),
    "q3_K": (110, 0, 96),
    "q4_K": (144, 16, 144),
    "q5_K": (176, 16, 176),
    "q6_K": (210, 0, 192),
    "iq4_nl": (18, 2, 18),
    "iq4_xs": (136, 8, 136),
    "mxfp4": (17, 1, 17),
}

Arrays = dict[str, NDArray[np.float32]]


def model_arrays(seed: int = 0) -> Arrays:
    """Random weights of a two-layer llama, in NumPy shapes ``(n_out, n_in)``."""
    rng = np.random.default_rng(seed)
    arrays = {
        "token_embd.weight": rng.normal(0, 0.5, (len(VOCABULARY), N_EMBD)),
        "output.weight": rng.normal(0, 0.05, (len(VOCABULARY), N_EMBD)),
        "output_norm.weight": np.ones(N_EMBD),
    }
    for layer in range(N_LAYER):
        arrays[f"blk.{layer}.attn_norm.weight"] = rng.normal(1, 0.1, N_EMBD)
        for kind, shape in LINEARS.items():
            arrays[f"blk.{layer}.{kind}.weight"] = rng.normal(0, 0.05, shape)
        arrays[f"blk.{layer}.ffn_norm.weight"] = rng.normal(1, 0.1, N_EMBD)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def write_model(
    path: Path,
    arrays: Arrays | None = None,
    *,
    types: Mapping[str, str] | str = "f32",
    file_type: int = 0,
    strings: Mapping[str, str] | None = None,
    numbers: Mapping[str, int] | None = None,
    vocabulary: Sequence[str] | None = VOCABULARY,
) -> Path:
    """A llama of the given arrays; ``types`` is the type of every matrix, or of each tensor by its name."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    writer.add_block_count(N_LAYER)
    writer.add_context_length(128)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_layer_norm_rms_eps(1e-5)
    if vocabulary is not None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(list(vocabulary))
        writer.add_token_scores([0.0] * len(vocabulary))
        writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(vocabulary) - 259)][: len(vocabulary)])
    for key, text in (strings or {}).items():
        writer.add_string(key, text)
    for key, number in (numbers or {}).items():
        writer.add_uint32(key, number)
    for name, array in (model_arrays() if arrays is None else arrays).items():
        wanted = (types if array.ndim > 1 else "f32") if isinstance(types, str) else types.get(name, "f32")
        add_tensor(writer, name, array, wanted)
    return finish(writer)


def write_adapter(
    path: Path,
    pairs: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
    *,
    alpha: float = 8.0,
    architecture: str = "llama",
    adapter_type: str = "lora",
    general_type: str = "adapter",
    tensor_type: str = "f32",
) -> Path:
    """A LoRA adapter with A ``(rank, n_in)`` and B ``(n_out, rank)`` for each base tensor's name."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.type", general_type)
    writer.add_name("Chemistry")
    writer.add_string("adapter.type", adapter_type)
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, (a, b) in pairs.items():
        add_tensor(writer, f"{name}.lora_a", a, tensor_type)
        add_tensor(writer, f"{name}.lora_b", b, tensor_type)
    return finish(writer)


def random_pairs(
    names: Sequence[str], arrays: Arrays, *, rank: int = 4, seed: int = 1
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Random A and B for matrices of the given arrays."""
    rng = np.random.default_rng(seed)
    pairs = {}
    for name in names:
        n_out, n_in = arrays[name].shape
        a = rng.normal(0, n_in**-0.5, (rank, n_in)).astype(np.float32)
        pairs[name] = (a, rng.normal(0, 0.1, (n_out, rank)).astype(np.float32))
    return pairs


def add_tensor(writer: gguf.GGUFWriter, name: str, array: NDArray[np.float32], tensor_type: str) -> None:
    """Add a tensor in a ggml type, quantized by ggml."""
    if tensor_type == "f32":
        writer.add_tensor(name, np.ascontiguousarray(array, dtype=np.float32))
    else:
        data = _core.quantize(tensor_type, np.atleast_2d(array))
        writer.add_tensor(name, data if array.ndim > 1 else data[0], raw_dtype=QuantizationType[tensor_type.upper()])


def finish(writer: gguf.GGUFWriter) -> Path:
    """Write everything out and close the file. Returns its path."""
    path = Path(str(writer.path))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    """Every tensor of a file by its name."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def values(path: Path, name: str) -> NDArray[np.float32]:
    """A tensor's values as floats, dequantized by ggml."""
    tensor = tensors(path)[name]
    data = np.ascontiguousarray(tensor.data).view(np.uint8)
    return _core.dequantize(tensor.tensor_type.name, data, int(tensor.shape[0]))


def data_of(path: Path, name: str) -> bytes:
    return tensors(path)[name].data.tobytes()


def scales_of(path: Path, name: str, ggml_type: str) -> NDArray[np.uint8]:
    n_bytes, begin, end = CODES[ggml_type]
    return np.delete(np.frombuffer(data_of(path, name), np.uint8).reshape(-1, n_bytes), np.s_[begin:end], axis=1)


def codes_of(path: Path, name: str, ggml_type: str) -> NDArray[np.uint8]:
    n_bytes, begin, end = CODES[ggml_type]
    return np.frombuffer(data_of(path, name), np.uint8).reshape(-1, n_bytes)[:, begin:end]


def field(path: Path, key: str) -> object:
    """A key's value, None where it is missing."""
    entry = gguf.GGUFReader(path).get_field(key)
    return None if entry is None else entry.contents()


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def random_adapter(model: Model, *, rank: int = 4, seed: int = 0) -> Adapter:
    """An adapter on all linears whose B is random as well."""
    adapter = Adapter(model, rank=rank, alpha=float(rank), targets=list(LINEARS), seed=seed)
    rng = np.random.default_rng(seed)
    for name in adapter.tensor_names():
        if name.endswith(".lora_b"):
            adapter.set(name, rng.normal(0, 0.1, adapter.get(name).shape).astype(np.float32))
    return adapter
