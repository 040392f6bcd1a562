"""What a damaged model is refused with: the place and the reason."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from fuzzing import native  # noqa: E402
from ggtune._native import core  # noqa: E402
from ggtune.errors import ModelError  # noqa: E402

CORPUS = ROOT / "tests/fuzz/corpus/load-model"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unknown-pretokenizer-not-utf8", "unknown pre-tokenizer type: '\N{REPLACEMENT CHARACTER}'"),
        ("no-byte-tokens", "the vocabulary is damaged or incomplete: an entry that llama.cpp looks up is missing"),
        ("no-attention-weights", "tensor blk.1.attn_qkv.weight is missing"),
        ("norm-of-type-bf16", "tensor blk.1.attn_norm_2.weight is of type bf16"),
        ("no-heads", "by olmo2.attention.head_count no heads"),
        ("token-with-zero-byte", "the vocabulary is damaged: token"),
        ("window-overflows", "gemma3.attention.sliding_window is out of range"),
        ("window-negative", "gemma3.attention.sliding_window is out of range"),
        ("rope-of-no-dimensions", "RoPE can't rotate 0 of the 8 dimensions of a head (gemma3.rope.dimension_count)"),
        ("rope-window-odd", "RoPE can't rotate 1 of the 8 dimensions of a head (gemma3.rope.dimension_count_swa)"),
        ("rope-window-too-wide", "RoPE can't rotate 32 of the 8"),
        ("rope-sections-missing", "paddleocr.rope.dimension_sections is missing"),
        ("eos-missing", "tokenizer.ggml.eos_token_id names none"),
    ],
)
def test_message(name: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes((CORPUS / name).read_bytes())
    with pytest.raises(ModelError) as caught:
        native.load_model(path)
    assert str(caught.value).startswith(str(tmp_path / "model.gguf"))
    assert message in str(caught.value)


def test_metadata_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes((CORPUS / "metadata-not-utf8").read_bytes())
    _, model, _ = native.write_parts(path)
    assert core.Model(str(model)).metadata()["general.type"] == 2 * "\N{REPLACEMENT CHARACTER}"
