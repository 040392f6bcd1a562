"""Answers side by side are those that each prompt gets alone, whatever a model's memory is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf_files
import numpy as np
import pytest
from numpy.typing import NDArray

from architectures import files
from ggtune import _core
from ggtune._core import Adapter, Model
from ggtune.demo import MODEL
from ggtune.errors import GgtuneError
from ggtune.generate import Answer, answers, slots
from ggtune.gguf.adapter_file import adapter_content, write_adapter

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = sorted(p for p in (*GOLDEN.glob("*.gguf"), *GOLDEN.glob("sparse/*.gguf")) if "-lora" not in p.name)
N_SLOTS, N_PROMPTS, MAX_TOKENS = 4, 10, 6


@pytest.fixture(autouse=True)
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots are taken again."""
    monkeypatch.setattr(slots, "_MOST_SLOTS", N_SLOTS)


@pytest.fixture(scope="module")
def demo() -> Model:
    return Model(str(MODEL))


def prompts_of(model: Model, n: int = N_PROMPTS, *, common: int = 20, longest: int = 18) -> list[list[int]]:
    """Prompts of unequal length that start alike, without end tokens."""
    rng = np.random.default_rng(7)
    usable = [token for token in range(min(model.n_vocab, 300)) if not model.is_end_token(token)]
    head = rng.choice(usable, common).tolist()
    return [head + rng.choice(usable, int(rng.integers(1, longest))).tolist() for _ in range(n)]


def alone(
    model: Model, prompt: Sequence[int], max_tokens: int = MAX_TOKENS, **settings: object
) -> tuple[list[int], bool]:
    generator = _core.Generator(model, prompt, context=len(prompt) + max_tokens, **settings)  # type: ignore[arg-type]
    tokens = list(generator)
    return tokens[:max_tokens], len(tokens) < max_tokens


def side_by_side(model: Model, prompts: Sequence[Sequence[int]], **settings: object) -> list[Answer]:
    found = dict(answers(model, prompts, **{"max_tokens": MAX_TOKENS, "threads": 2, **settings}))  # type: ignore[arg-type]
    assert sorted(found) == list(range(len(prompts)))
    return [found[i] for i in range(len(prompts))]


@pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.stem)
def test_each_prompt_gets_what_it_gets_alone(path: Path) -> None:
    model = Model(str(path))
    prompts = prompts_of(model)
    found = side_by_side(model, prompts)
    assert_as_alone(model, prompts, found)


# whose states or logits llama.cpp takes for others, where it computes several sequences or gives logits of some rows
MIXED_UP = ("arwkv7", "cogvlm", "plamo2", "rwkv6qwen2")


@pytest.mark.parametrize("name", [*MIXED_UP, "jamba", "rwkv7"])
def test_sequences_and_rows_are_not_mixed_up(tmp_path: Path, name: str) -> None:
    model = Model(str(files.write_model(tmp_path, name, quantized=False)))
    texts = [prompt[-n:] for prompt, n in zip(prompts_of(model, 3), (12, 7, 9), strict=True)]

    def logits(texts: Sequence[Sequence[int]], outputs: Sequence[bool]) -> NDArray[np.float32]:
        scorer = _core.Scorer(model, n_tokens=64, n_sequences=len(texts), threads=2)
        sequences = [i for i, text in enumerate(texts) for _ in text]
        return scorer.logits([token for text in texts for token in text], sequences, outputs)

    whole = [logits([text], [True] * len(text)) for text in texts]
    together = logits(texts, [True] * sum(map(len, texts)))
    np.testing.assert_allclose(together, np.concatenate(whole), rtol=0, atol=1e-3)
    np.testing.assert_allclose(logits(texts[:1], [i == 11 for i in range(12)]), whole[0][-1:], rtol=0, atol=1e-3)
    prompts = prompts_of(model)
    assert_as_alone(model, prompts, side_by_side(model, prompts))


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_longer_than_a_sliding_window(name: str) -> None:
    model = Model(str(GOLDEN / f"{name}.gguf"))
    prompts = prompts_of(model, 5, common=40)
    assert_as_alone(model, prompts, side_by_side(model, prompts))


def test_a_live_adapter_and_the_file_of_it(tmp_path: Path) -> None:
    model = Model(str(GOLDEN / "llama.gguf"))
    adapter = gguf_files.random_adapter(model)
    for name in adapter.tensor_names():
        adapter.set(name, 10 * adapter.get(name))
    path = tmp_path / "adapter.gguf"
    write_adapter(path, adapter_content(adapter, {}))
    prompts = prompts_of(model, 4)
    live = side_by_side(model, prompts, adapter=adapter)
    assert [list(answer.tokens) for answer in live] == [alone(model, p, adapter=adapter)[0] for p in prompts]
    assert side_by_side(model, prompts, adapters=[(str(path), 1.0)]) == live
    assert side_by_side(model, prompts) != live


def test_a_training_goes_on_beside_it(demo: Model) -> None:
    adapter = Adapter(demo, rank=2, alpha=2.0, targets=["attn_q"])
    trainer = _core.Trainer(adapter, context=32, threads=2)
    rows = np.arange(8, dtype=np.int32)
    batch = (rows + 5, rows, np.zeros(8, np.int32), rows + 6, np.ones(8, np.float32))
    before = trainer.evaluate(*batch).loss_sum
    prompts = prompts_of(demo, 3)
    assert side_by_side(demo, prompts, adapter=adapter) == side_by_side(demo, prompts)  # B is 0
    assert trainer.evaluate(*batch).loss_sum == before


def assert_as_alone(model: Model, prompts: Sequence[Sequence[int]], found: Sequence[Answer]) -> None:
    """The same answers, but for one whose tokens are as likely as far as sums in half precision go."""
    expected = [alone(model, prompt, threads=2) for prompt in prompts]
    others = [i for i, answer in enumerate(found) if (list(answer.tokens), answer.ended) != expected[i]]
    assert len(others) <= 1
    for i in others:
        assert_greedy(model, prompts[i], found[i], within=0.01)


def assert_greedy(model: Model, prompt: Sequence[int], answer: Answer, within: float = 0.25) -> None:
    """Each token is the likeliest one by llama.cpp alone, or as good as that: rounding differs with many rows."""
    tokens = [*prompt, *answer.tokens]
    n = len(answer.tokens) + answer.ended
    logits = _core.Scorer(model, n_tokens=len(tokens), n_sequences=1, threads=2).logits(
        tokens, [0] * len(tokens), [i >= len(prompt) - 1 for i in range(len(tokens))]
    )[:n]
    chosen = [logits[i, token] for i, token in enumerate(answer.tokens)]
    if answer.ended:
        chosen.append(max(logits[-1, token] for token in range(model.n_vocab) if model.is_end_token(token)))
    np.testing.assert_array_less(logits.max(axis=1) - np.array(chosen), within)


def question(demo: Model, noun: str) -> list[int]:
    return demo.tokenize(f'<s>[INST] What is the meaning of the noun "{noun}"? [/INST]').tolist()


def test_answers_that_end_and_those_that_are_cut(demo: Model) -> None:
    prompts = [question(demo, noun) for noun in ("argon", "cat", "table", "neon")]
    long = side_by_side(demo, prompts, max_tokens=80)
    assert any(answer.ended for answer in long)
    for answer, prompt in zip(long, prompts, strict=True):
        assert_greedy(demo, prompt, answer)
        assert answer.text == demo.detokenize(answer.tokens).decode()
    cut = side_by_side(demo, prompts, max_tokens=3)
    assert all(not answer.ended and len(answer.tokens) == 3 for answer in cut)
    assert [answer.tokens for answer in cut] == [answer.tokens[:3] for answer in long]


def test_stop_texts_end_an_answer(demo: Model) -> None:
    prompts = [question(demo, noun) for noun in ("argon", "cat", "table")]
    plain = side_by_side(demo, prompts, max_tokens=40)
    stop = plain[0].text[6:9]  # lies across tokens as a rule
    found = side_by_side(demo, prompts, max_tokens=40, stops=["", stop])
    for answer, before in zip(found, plain, strict=True):
        if stop in before.text:
            assert answer.ended
            assert answer.text == before.text[: before.text.index(stop)]
            assert answer.tokens == before.tokens[: len(answer.tokens)]
        else:
            assert answer == before
    assert len(found[0].tokens) < len(plain[0].tokens)


def test_drawn_answers_follow_their_own_seeds() -> None:
    model = Model(str(GOLDEN / "llama.gguf"))
    prompts = prompts_of(model, 6)
    seeds = [3, 1, 4, 1, 5, 9]
    drawn = side_by_side(model, prompts, temperature=1.5, seeds=seeds)
    expected = [alone(model, p, temperature=1.5, seed=s)[0] for p, s in zip(prompts, seeds, strict=True)]
    assert [list(answer.tokens) for answer in drawn] == expected
    assert side_by_side(model, prompts, temperature=1.5, seeds=[0] * 6) != drawn


def test_the_context_of_the_model_is_the_limit(tmp_path: Path) -> None:
    model = Model(str(GOLDEN / "gpt2.gguf"))  # 64 positions
    (answer,) = side_by_side(model, [[5] * 60], max_tokens=50)
    assert len(answer.tokens) == 4
    assert not answer.ended
    with pytest.raises(GgtuneError, match="a question has 64 tokens; the model's context is 64"):
        side_by_side(model, [[5], [5] * 64])
    with pytest.raises(GgtuneError, match="prompt 2 is empty"):
        side_by_side(model, [[5], []])


def test_as_many_side_by_side_as_there_is_memory_for(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_MOST_SLOTS", 64)
    one = 2 * 256 * demo.n_layer * 2 * 128  # of 256 tokens: keys and values of 128 halves in each layer
    logits = 4 * demo.n_vocab
    assert slots.generation_bytes(demo, 200, 5) - slots.generation_bytes(demo, 200, 4) == one + logits
    assert [slots.slots_for(demo, n, 200) for n in (1, 40, 1000)] == [1, 40, 64]
    monkeypatch.setattr(slots, "_MOST_CACHE_BYTES", 6 * one)  # and two that are kept once more
    assert [slots.slots_for(demo, n, context) for n, context in ((3, 200), (9, 200), (9, 300))] == [3, 4, 1]


def test_the_prefix_has_to_be_that_of_all(demo: Model) -> None:
    generator = _core.BatchGenerator(demo, prefix=[5, 6], n_slots=2, context=32)
    for prompt in ([5, 6], [5, 7, 8]):
        with pytest.raises(GgtuneError, match="prompt 1 does not start with what all prompts"):
            generator.add(prompt, max_tokens=3)
    generator.add([5, 6, 7], max_tokens=3)
    assert len(generator.step()) == 1
    generator.end(0)
    assert generator.step() == []
