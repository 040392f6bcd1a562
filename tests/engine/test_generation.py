"""The native module's generator and scoring: what repeats, what is refused."""

from __future__ import annotations

from pathlib import Path

import gguf_files
import numpy as np
import pytest
from numpy.typing import NDArray

from ggtune import _core
from ggtune._core import Adapter, Generator, Model
from ggtune.demo import MODEL
from ggtune.errors import GgtuneError

LINEARS = list(gguf_files.LINEARS)


@pytest.fixture(scope="module")
def demo() -> Model:
    return Model(str(MODEL))


def prompt(model: Model) -> NDArray[np.int32]:
    return model.tokenize('<s>[INST] What is the meaning of the noun "argon"? [/INST]')


def generate(model: Model, *, adapter: Adapter | None = None, n: int = 16, **settings: float) -> list[int]:
    generator = Generator(model, prompt(model), adapter=adapter, context=128, **settings)  # type: ignore[arg-type]
    return [token for token, _ in zip(generator, range(n), strict=False)]


def test_greedy_generation_repeats(demo: Model) -> None:
    tokens = generate(demo)
    assert tokens
    assert generate(demo, seed=7) == tokens  # nothing is drawn
    assert all(0 <= token < demo.n_vocab and not demo.is_end_token(token) for token in tokens)
    given, other = (
        _core.decode_log_probs(demo, np.array([*prompt(demo), token], dtype=np.int32))[-1]
        for token in (tokens[0], demo.eos_token)
    )
    assert given > other


def test_sampling_follows_the_seed(demo: Model) -> None:
    drawn = [generate(demo, temperature=2.0, seed=seed) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({tuple(tokens) for tokens in drawn}) > 1


def test_the_live_adapter_takes_part(demo: Model) -> None:
    plain = generate(demo)
    without_effect = Adapter(demo, rank=4, alpha=4.0, targets=LINEARS)
    assert generate(demo, adapter=without_effect) == plain
    adapter = gguf_files.random_adapter(demo)
    for name in adapter.tensor_names():
        adapter.set(name, 10 * adapter.get(name))
    assert generate(demo, adapter=adapter) != plain


def test_generation_ends_at_the_full_context(demo: Model) -> None:
    context, tokens = 256, prompt(demo)
    generators = (
        Generator(demo, tokens, context=context, temperature=50.0, top_k=0, top_p=1.0, seed=i) for i in range(5)
    )
    lengths = [len(tokens) + sum(1 for _ in generator) for generator in generators]
    assert max(lengths) == context + 1  # the last token is given out, not computed any more


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([], "the prompt is empty"), ([1] * 32, "does not fit the context of 32"), ([1, 10**6], "not in the vocabulary")],
)
def test_wrong_prompts(demo: Model, tokens: list[int], message: str) -> None:
    with pytest.raises(GgtuneError, match=message):
        Generator(demo, np.array(tokens, dtype=np.int32), context=32)


def test_wrong_tokens_to_score(demo: Model, tmp_path: Path) -> None:
    with pytest.raises(GgtuneError, match="at least two tokens"):
        _core.decode_log_probs(demo, np.array([1], dtype=np.int32))
    with pytest.raises(GgtuneError, match="not in the vocabulary"):
        _core.decode_log_probs(demo, np.array([1, -1], dtype=np.int32))
    with pytest.raises(GgtuneError, match="no such file"):
        _core.decode_log_probs(demo, np.array([1, 2], dtype=np.int32), adapter_path=str(tmp_path / "none.gguf"))
    arrays = gguf_files.model_arrays()
    other = gguf_files.write_adapter(tmp_path / "other.gguf", gguf_files.random_pairs(["blk.0.ffn_up.weight"], arrays))
    with pytest.raises(GgtuneError, match=r"other\.gguf"):
        _core.decode_log_probs(demo, np.array([1, 2], dtype=np.int32), adapter_path=str(other))
