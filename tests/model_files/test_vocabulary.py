"""The special tokens of a vocabulary, as llama.cpp itself takes them from the same file."""

from pathlib import Path

import gguf
import pytest

from ggtune import _core
from ggtune.data.templates import TEMPLATES
from ggtune.data.tokenization import TurnEncoder
from ggtune.gguf.structure import read_structure
from ggtune.gguf.vocabulary import read_special_tokens
from ggtune.ollama.go_template import GoTemplate, Message, render_for_ollama
from ggtune.ollama.templates import ollama_template

ROOT = Path(__file__).parents[2]
MODELS = [path for path in sorted((ROOT / "tests/golden").glob("*.gguf")) if not path.stem.endswith("-lora")]
FILES = [*MODELS, ROOT / "python/ggtune/demo/wordnet-10m-q5_k_m.gguf"]
BYTES = [chr(c) for c in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144))]


def write_vocabulary(path, model, special, *, pre=None, **keys):
    """A file without tensors: byte-level BPE or SentencePiece, special tokens in front of the bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)] if model == "llama" else BYTES
    tokens = [*special, *byte_tokens]
    byte_type = gguf.TokenType.BYTE if model == "llama" else gguf.TokenType.NORMAL
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(special) + [byte_type] * len(byte_tokens))
    if model == "llama":
        writer.add_token_scores([0.0] * len(tokens))
    else:
        writer.add_token_merges(["a b"])
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    for key, value in keys.items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def assert_as_llama_cpp(path):
    tokens = read_special_tokens(read_structure(path))
    model = _core.Model(str(path), vocab_only=True)

    def text(token):
        return model.detokenize([token], special=True).decode() if token >= 0 else ""

    assert (tokens.bos, tokens.eos) == (text(model.bos_token), text(model.eos_token))
    assert tokens.add_bos == (model.add_bos and model.bos_token >= 0)
    ends = {token for token in range(model.n_vocab) if model.is_end_token(token)}
    # by id: the text of a byte's token is not what it stands for (one golden file names such a one)
    listed = gguf.GGUFReader(path).get_field("tokenizer.ggml.tokens").contents()
    assert set(tokens.ends) == {listed[token] for token in ends}
    return tokens


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_files_at_hand(path):
    assert_as_llama_cpp(path)


@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize(
    "pre",
    ["llama-bpe", "llama3", "tekken", "chameleon", "lfm2", "pixtral", "qwen2", "smollm", "gpt-2", "default", "glm4"],
)
def test_bos_by_pre_tokenizer(tmp_path, pre, add_bos):
    special = ["<unk>", "<|im_start|>", "<|im_end|>", "<|end|>"]
    keys = {} if add_bos is None else {"add_bos_token": add_bos}
    path = write_vocabulary(tmp_path / "v.gguf", "gpt2", special, pre=pre, bos_token_id=1, eos_token_id=2, **keys)
    tokens = assert_as_llama_cpp(path)
    if add_bos is not None:
        assert tokens.add_bos == add_bos
    elif pre == "smollm":
        assert not tokens.add_bos


@pytest.mark.parametrize(
    "keys", [{}, {"add_bos_token": False}, {"bos_token_id": 3, "eos_token_id": 4}, {"eos_token_id": 9999}]
)
def test_sentencepiece_defaults(tmp_path, keys):
    special = ["<unk>", "<s>", "</s>", "<start>", "<stop>"]
    tokens = assert_as_llama_cpp(write_vocabulary(tmp_path / "v.gguf", "llama", special, **keys))
    assert tokens.add_bos == keys.get("add_bos_token", True)


@pytest.mark.parametrize(
    ("special", "end_of_part"),
    [
        (["<|end|>", "<|return|>", "<|call|>"], "<|end|>"),
        (["<|end|>", "<|calls|>", "<|flush|>"], "<|end|>"),
        (["<|end|>", "<|return|>"], None),
        (["</s>", "<|tool_response>", "<eos>"], "</s>"),
    ],
)
def test_tokens_that_end_only_a_part(tmp_path, special, end_of_part):
    path = write_vocabulary(
        tmp_path / "v.gguf", "gpt2", ["<unk>", *special], pre="gpt-2", bos_token_id=0, eos_token_id=2
    )
    tokens = assert_as_llama_cpp(path)
    assert (end_of_part in tokens.ends) is False


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_bos_that_is_the_text_of_a_tag(tmp_path, name, add_bos):
    """SmolLM2: training and Ollama start with the same tokens, whoever writes the first."""
    special = ["<unk>", "<|im_start|>", "<|im_end|>"]
    keys = {"bos_token_id": 1, "eos_token_id": 2, "add_bos_token": add_bos}
    path = write_vocabulary(tmp_path / "v.gguf", "gpt2", special, pre="smollm", **keys)
    model = _core.Model(str(path), vocab_only=True)
    source = TEMPLATES[name]
    prompt = TurnEncoder(model, source).encode_prompt(source.render_prompt(None, "Q?"))
    text = ollama_template(source, read_special_tokens(read_structure(path))).text
    asked = render_for_ollama(GoTemplate(text), [Message("user", "Q?")])
    assert prompt == model.tokenize(asked, add_special=True, parse_special=True).tolist()
    if name == "chatml":
        assert prompt[:2] == [1, *model.tokenize("u", add_special=False)]
