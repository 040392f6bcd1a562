"""The special tokens of a GGUF's vocabulary, as llama.cpp (and with it Ollama) takes them from the metadata.

Source of the defaults and of the names: ``src/llama-vocab.cpp`` of llama.cpp, where the metadata leaves them open.
"""

from __future__ import annotations

from dataclasses import dataclass

import gguf

_PREFIX = "tokenizer.ggml."
# vocabularies that start every text with the BOS where tokenizer.ggml.add_bos_token is missing: by tokenizer.ggml.model
_BOS_MODELS = {"llama", "bert", "gemma4"}
# and by tokenizer.ggml.pre
_BOS_PRE_TOKENIZERS = {
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
    "chameleon",
}
_ALWAYS_BOS_PRE_TOKENIZERS = {"gemma4", "granite-embed-multi-311m"}  # whatever the metadata say
_DEFAULT_IDS = {"llama": (1, 2), "gpt2": (11, 11), "t5": (None, 1), "plamo2": (1, 2)}  # of BOS and EOS, by model
_NO_BOS_PRE_TOKENIZERS = {"chatglm-bpe", "glm4", "glm5"}
# texts that end an answer in any vocabulary that has them
_END_TEXTS = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
}
_END_ID_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True)
class SpecialTokens:
    """What ends and begins a text. Texts are empty where the vocabulary has no such token."""

    bos: str
    eos: str
    add_bos: bool  # whether llama.cpp and Ollama put the BOS before every prompt
    ends: tuple[str, ...]  # tokens that end an answer, without any stop


def read_special_tokens(reader: gguf.GGUFReader) -> SpecialTokens:
    """Read them from a GGUF's metadata. Raises what gguf-py raises for damaged ones."""
    listed = _contents(reader, "tokens")
    tokens = [str(token) for token in listed] if isinstance(listed, list) else []
    model = str(_contents(reader, "model") or "")
    pre = str(_contents(reader, "pre") or "")

    def text(key: str, default: int | None = None) -> str:
        index = _contents(reader, key)
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            index = default
        return tokens[index] if index is not None and index < len(tokens) else ""

    default_bos, default_eos = _DEFAULT_IDS.get(model, (None, None))
    if pre in _NO_BOS_PRE_TOKENIZERS:
        default_bos = None
    add_bos = _contents(reader, "add_bos_token")
    if pre in _ALWAYS_BOS_PRE_TOKENIZERS or model == "gemma4":
        add_bos = True
    elif not isinstance(add_bos, bool):
        add_bos = model in _BOS_MODELS or (model == "gpt2" and pre in _BOS_PRE_TOKENIZERS)
    bos = text("bos_token_id", default_bos)
    eos = text("eos_token_id", default_eos)
    return SpecialTokens(bos, eos, add_bos and bool(bos), _ends(tokens, {eos, *(text(key) for key in _END_ID_KEYS)}))


def _ends(tokens: list[str], named: set[str]) -> tuple[str, ...]:
    ends = (_END_TEXTS & set(tokens)) | (named - {""})
    # in these vocabularies the token closes a part of an answer, or is plain text
    if "<|end|>" in ends and (
        {"<|return|>", "<|call|>"} <= ends
        or {"<|return|>", "<|calls|>"} <= ends
        or ("<|flush|>" in ends and ends & {"<|call|>", "<|calls|>"})
    ):
        ends.discard("<|end|>")
    if ends & {"<|tool_response>", "<|plamo:eos|>"}:
        ends.discard("</s>")
    return tuple(sorted(ends))


def _contents(reader: gguf.GGUFReader, key: str) -> object:
    field = reader.get_field(_PREFIX + key)
    return field.contents() if field is not None else None
