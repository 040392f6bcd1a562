"""How many answers are written side by side, and the memory that it takes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggtune._core import Model

_MOST_SLOTS = 64
_MOST_CELLS = 1 << 15  # tokens that all slots together have room for
_MOST_CACHE_BYTES = 2 << 30  # of their keys and values

_CELLS = 256  # llama.cpp's caches come in multiples of so many tokens
_MICRO_BATCH = 512  # tokens of prompts that are computed at once
_KEPT_ONCE_MORE = 2  # sequences: what all prompts start with, and a slot that moves
_CONTEXT_BYTES = 8 << 20  # of a llama.cpp context, whatever its size: measured with models of 10M to 270M parameters


def slots_for(model: "Model", n_prompts: int, context: int) -> int:
    """How many of so many prompts, with answers of ``context`` tokens together with them, are worked on at once."""
    within_memory = _MOST_CACHE_BYTES // _cache_bytes(model, context) - _KEPT_ONCE_MORE
    return max(1, min(_MOST_SLOTS, n_prompts, _MOST_CELLS // context, within_memory))


def generation_bytes(model: "Model", context: int, slots: int = 1) -> int:
    """Estimate what llama.cpp takes beside the weights: keys, values, what is computed, and what is read of it."""
    rows = min(context * slots, _MICRO_BATCH)
    computed = 4 * rows * (4 * model.n_embd + 3 * _number(model, "feed_forward_length", 4 * model.n_embd))
    logits = 4 * slots * model.n_vocab
    sequences = slots + (_KEPT_ONCE_MORE if slots > 1 else 0)
    return sequences * _cache_bytes(model, context) + computed + logits + _CONTEXT_BYTES


def _cache_bytes(model: "Model", context: int) -> int:
    """Bytes of the keys and values of one sequence, in half precision."""
    heads = max(1, _number(model, "attention.head_count", 1))
    per_head = model.n_embd // heads
    kv_heads = _number(model, "attention.head_count_kv", heads)
    width = kv_heads * (
        _number(model, "attention.key_length", per_head) + _number(model, "attention.value_length", per_head)
    )
    cells = -(-context // _CELLS) * _CELLS
    return max(1, 2 * model.n_layer * width * cells)


def _number(model: "Model", key: str, default: int) -> int:
    text = model.metadata().get(f"{model.architecture}.{key}", "")
    return int(text) if text.isdecimal() else default
