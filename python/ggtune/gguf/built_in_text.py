"""The text that comes with ggtune, for what a model is to read beside the data that it was trained on."""

from pathlib import Path
from typing import TYPE_CHECKING

from ggtune.data.samples import text_tokens

if TYPE_CHECKING:
    from ggtune._core import Model

_TEXT = Path(__file__).with_name("merge_text.txt")


def text_pieces(model: "Model", n_tokens: int | None, longest: int) -> list[list[int]]:
    """Cut its first ``n_tokens`` (None: all) into pieces that each begin as a text does, of at most ``longest``."""
    bos = [model.bos_token] if model.add_bos and model.bos_token >= 0 else []
    text = text_tokens(model, _TEXT.read_text(encoding="utf-8")).tolist()[:n_tokens]
    longest = min(longest, model.n_ctx_train or longest)
    return [(bos + text[begin : begin + longest])[:longest] for begin in range(0, len(text), longest)]
