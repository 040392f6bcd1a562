"""The special tokens of a GGUF's vocabulary, as llama.cpp (and with it Ollama) takes them from the metadata.

Source of the defaults and of the names: ``src/llama-vocab.cpp`` of llama.cpp, where the metadata leaves them open.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggtune.gguf.structure import Structure

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
_END_BYTES = {text.encode() for text in _END_TEXTS}
_END_ID_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True)
class SpecialTokens:
    """What ends and begins a text. Texts are empty where the vocabulary has no such token."""

    bos: str
    eos: str
    add_bos: bool  # whether llama.cpp and Ollama put the BOS before every prompt
    ends: tuple[str, ...]  # tokens that end an answer, without any stop


def read_special_tokens(structure: Structure) -> SpecialTokens:
    """Read them from a GGUF's metadata. Raises ``ValueError`` for texts that are not UTF-8."""
    model = _text(structure, "model")
    pre = _text(structure, "pre")
    default_bos, default_eos = _DEFAULT_IDS.get(model, (None, None))
    if pre in _NO_BOS_PRE_TOKENIZERS:
        default_bos = None
    _, n_tokens, _ = structure.arrays.get(_PREFIX + "tokens", (0, 0, 0))

    def index(key: str, default: int | None = None) -> int | None:
        given = structure.number(_PREFIX + key)
        return given if isinstance(given, int) and 0 <= given < n_tokens else default

    bos_id = index("bos_token_id", default_bos)
    end_ids = [index("eos_token_id", default_eos), *(index(key) for key in _END_ID_KEYS)]
    wanted = {bos_id, *end_ids}
    texts: dict[int | None, str] = {}
    known_ends = set()
    for i, raw in enumerate(structure.texts(_PREFIX + "tokens")):
        if i in wanted:
            texts[i] = raw.decode("utf-8")
        if raw in _END_BYTES:
            known_ends.add(raw.decode("utf-8"))

    add_bos = structure.values.get(_PREFIX + "add_bos_token")
    if pre in _ALWAYS_BOS_PRE_TOKENIZERS or model == "gemma4":
        add_bos = True
    elif not isinstance(add_bos, bool):
        add_bos = model in _BOS_MODELS or (model == "gpt2" and pre in _BOS_PRE_TOKENIZERS)
    bos, eos = texts.get(bos_id, ""), texts.get(end_ids[0], "")
    named = {texts.get(i, "") for i in end_ids} - {""}
    return SpecialTokens(bos, eos, add_bos and bool(bos), _ends(known_ends | named))


def _ends(ends: set[str]) -> tuple[str, ...]:
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


def _text(structure: Structure, key: str) -> str:
    value = structure.values.get(_PREFIX + key)
    if isinstance(value, bytes):
        raise ValueError(f"{_PREFIX}{key} is not UTF-8")
    return value if isinstance(value, str) else ""
