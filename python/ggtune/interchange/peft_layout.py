"""How the weights of a Hugging Face model lie in a GGUF file, as far as a LoRA adapter has to know.

Names are those of transformers' model classes; the order of rows is what llama.cpp's converter makes of them
(``conversion/*.py``, ``modify_tensors``): llama's RoPE turns neighbouring pairs and transformers' the two halves of a
head, so rows of Q and K change places, and falcon's fused QKV is sorted by kind. A row of W is a row of B: A never
changes, nor does anything for other weights. Norms, which gemma's converter shifts, carry no adapter.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import gguf
import numpy as np
from numpy.typing import NDArray

from ggtune.errors import GgtuneError

RowOrder = NDArray[np.intp]  # rows of the GGUF tensor in terms of the Hugging Face one's


@dataclass(frozen=True)
class Heads:
    """Attention heads of one layer."""

    n_head: int
    n_head_kv: int


def _interleaved(n_rows: int, n_head: int) -> RowOrder:
    order: RowOrder = np.arange(n_rows).reshape(n_head, 2, -1).swapaxes(1, 2).reshape(-1)
    return order


def _query(n_rows: int, heads: Heads) -> RowOrder:
    return _interleaved(n_rows, heads.n_head)


def _key(n_rows: int, heads: Heads) -> RowOrder:
    return _interleaved(n_rows, heads.n_head_kv)


def _grouped_qkv(n_rows: int, heads: Heads) -> RowOrder:
    """Groups of some query heads, their key and their value head: first all of Q, then of K, then of V."""
    n_group = heads.n_head // heads.n_head_kv + 2
    rows = np.arange(n_rows).reshape(heads.n_head_kv, n_group, -1)
    return np.concatenate([rows[:, :-2].reshape(-1), rows[:, -2].reshape(-1), rows[:, -1].reshape(-1)])


@dataclass(frozen=True)
class Layout:
    """One architecture: the module of each kind of block tensor ("{}" is the layer) and of those beside the blocks."""

    blocks: Mapping[str, str]
    embedding: str = "model.embed_tokens"
    output: str = "lm_head"
    row_orders: Mapping[str, Callable[[int, Heads], RowOrder]] = field(default_factory=dict)
    fan_in_fan_out: bool = False  # the modules hold their weights transposed (Conv1D)
    experts: str = ""  # the module that holds all experts of a layer in parameters
    interleaved: bool = False  # rows of gate and up take turns in its gate_up_proj
    parameters: frozenset[str] = frozenset()  # kinds whose module is no linear: its parameter "weight" is adapted

    def module(self, tensor: str) -> str | None:
        """Name the module of a GGUF tensor, None where this architecture has none for it."""
        if tensor == "token_embd.weight":
            return self.embedding
        if tensor == "output.weight":
            return self.output
        block, layer, kind = _parts(tensor)
        return self.blocks[kind].format(layer) if block == "blk" and kind in self.blocks else None

    def experts_module(self, layer: int) -> str | None:
        """Name the module of a layer's experts, None where this architecture is not known to have any."""
        return self.experts.format(layer) if self.experts else None

    def row_order(self, tensor: str, n_rows: int, heads: Heads) -> RowOrder | None:
        """Which row of the module's weight each row of the GGUF tensor is; None where they are the same."""
        order = self.row_orders.get(_parts(tensor)[2])
        return order(n_rows, heads) if order else None


def layer_of(tensor: str) -> int:
    """Return the layer of a block tensor, 0 for one beside the blocks."""
    block, layer, _ = _parts(tensor)
    return int(layer) if block == "blk" else 0


def _parts(tensor: str) -> tuple[str, str, str]:
    parts = tensor.removesuffix(".weight").split(".")
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 and parts[1].isdecimal() else ("", "", "")


def kind_of(tensor: str) -> str:
    """Return ``attn_q`` of ``blk.0.attn_q.weight``, "" of a tensor beside the blocks."""
    return _parts(tensor)[2]


_LAYER = "model.layers.{}."
_ATTENTION = {
    "attn_q": _LAYER + "self_attn.q_proj",
    "attn_k": _LAYER + "self_attn.k_proj",
    "attn_v": _LAYER + "self_attn.v_proj",
    "attn_output": _LAYER + "self_attn.o_proj",
}
_FEED_FORWARD = {
    "ffn_gate": _LAYER + "mlp.gate_proj",
    "ffn_up": _LAYER + "mlp.up_proj",
    "ffn_down": _LAYER + "mlp.down_proj",
}
_ROPE_ORDERS = {"attn_q": _query, "attn_k": _key}

_PLAIN = Layout(_ATTENTION | _FEED_FORWARD)
_INTERLEAVED = Layout(_ATTENTION | _FEED_FORWARD, row_orders=_ROPE_ORDERS)

_EXPERTS = _LAYER + "mlp.experts"
_ROUTER = {"ffn_gate_inp": _LAYER + "mlp.gate"}
_SHARED_EXPERT = {
    "ffn_gate_shexp": _LAYER + "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": _LAYER + "mlp.shared_expert.up_proj",
    "ffn_down_shexp": _LAYER + "mlp.shared_expert.down_proj",
}
_ROUTERS = frozenset(_ROUTER)

_UNGATED = {kind: module for kind, module in _FEED_FORWARD.items() if kind != "ffn_gate"}

_PLAIN_ARCHITECTURES = (
    *("qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo2", "stablelm", "command-r"),
    *("cohere2", "seed_oss", "hunyuan-dense"),
)

# scripts/check_peft_layouts.py compared each with llama.cpp's own converter of adapters (which knows no experts), and
# let PEFT read what is exported.
LAYOUTS: Mapping[str, Layout] = {
    **dict.fromkeys(("granite", "smollm3", "olmo"), _INTERLEAVED),
    "llama": Layout(
        _ATTENTION | _FEED_FORWARD | _ROUTER, row_orders=_ROPE_ORDERS, experts=_EXPERTS, parameters=_ROUTERS
    ),
    **dict.fromkeys(_PLAIN_ARCHITECTURES, _PLAIN),
    "qwen2moe": Layout(_ATTENTION | _FEED_FORWARD | _ROUTER | _SHARED_EXPERT, experts=_EXPERTS, parameters=_ROUTERS),
    "qwen3moe": Layout(_ATTENTION | _FEED_FORWARD | _ROUTER, experts=_EXPERTS, parameters=_ROUTERS),
    "olmoe": Layout(_ATTENTION | _FEED_FORWARD | _ROUTER, experts=_EXPERTS, parameters=_ROUTERS),
    "gpt-oss": Layout(
        _ATTENTION | {"ffn_gate_inp": _LAYER + "mlp.router"}, experts=_EXPERTS, interleaved=True, parameters=_ROUTERS
    ),
    "arcee": Layout(_ATTENTION | _UNGATED, row_orders=_ROPE_ORDERS),
    **dict.fromkeys(("apertus", "nemotron"), Layout(_ATTENTION | _UNGATED)),
    "phi2": Layout(
        _ATTENTION
        | {
            "attn_output": _LAYER + "self_attn.dense",
            "ffn_up": _LAYER + "mlp.fc1",
            "ffn_down": _LAYER + "mlp.fc2",
        }
    ),
    "phi3": Layout(
        {
            "attn_qkv": _LAYER + "self_attn.qkv_proj",
            "attn_output": _LAYER + "self_attn.o_proj",
            "ffn_up": _LAYER + "mlp.gate_up_proj",
            "ffn_down": _LAYER + "mlp.down_proj",
        }
    ),
    "starcoder2": Layout(_ATTENTION | {"ffn_up": _LAYER + "mlp.c_fc", "ffn_down": _LAYER + "mlp.c_proj"}),
    "gpt2": Layout(
        {
            "attn_qkv": "transformer.h.{}.attn.c_attn",
            "attn_output": "transformer.h.{}.attn.c_proj",
            "ffn_up": "transformer.h.{}.mlp.c_fc",
            "ffn_down": "transformer.h.{}.mlp.c_proj",
        },
        embedding="transformer.wte",
        fan_in_fan_out=True,
    ),
    "falcon": Layout(
        {
            "attn_qkv": "transformer.h.{}.self_attention.query_key_value",
            "attn_output": "transformer.h.{}.self_attention.dense",
            "ffn_up": "transformer.h.{}.mlp.dense_h_to_4h",
            "ffn_down": "transformer.h.{}.mlp.dense_4h_to_h",
        },
        embedding="transformer.word_embeddings",
        row_orders={"attn_qkv": _grouped_qkv},
    ),
}


def layout_of(architecture: str) -> Layout:
    """Return the layout of a GGUF architecture. Raises :class:`GgtuneError` for one that is not known here."""
    if architecture not in LAYOUTS:
        raise GgtuneError(
            f"ggtune doesn't know how the weights of Hugging Face models lie in a GGUF file of the architecture "
            f"{architecture!r}, which an adapter needs; it does for {', '.join(sorted(LAYOUTS))}"
        )
    return LAYOUTS[architecture]


def tensor_of(architecture: str, module: str, n_layers: int) -> str | None:
    """Return the GGUF tensor's name for a module's weight by gguf-py's map of names, None where there is none.

    Raises :class:`GgtuneError` for an architecture that the installed gguf-py does not know.
    """
    by_name = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in by_name:
        raise GgtuneError(f"the installed package gguf is too old for the architecture {architecture!r}: update it")
    names = gguf.get_tensor_name_map(by_name[architecture], n_layers)
    for candidate in (module, "model." + module, "transformer." + module):  # a model without its head has no prefix
        found = names.get_name(candidate + ".weight", try_suffixes=(".weight",))
        if found is not None:
            return str(found)
    return None
