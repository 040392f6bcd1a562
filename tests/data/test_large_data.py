"""What keeps large data fast and small: threads, tables of hashes, samples in a file, plans from lengths alone."""

from __future__ import annotations

import io
import json
import random
import threading
import time
import tracemalloc
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggtune import _core
from ggtune.data import store
from ggtune.data.card import DataCard
from ggtune.data.chat_template import ChatTemplate
from ggtune.data.conversation import exchange
from ggtune.data.dataset import Dataset
from ggtune.data.doubts import _REPEATED, Inspector, _frequent, _repeated
from ggtune.data.key_table import KeyTable
from ggtune.data.load import load_samples
from ggtune.data.parallel import in_order
from ggtune.data.samples import Sample, make_sample
from ggtune.data.store import FileValues, StoreBuilder
from ggtune.errors import DataError, GgtuneError
from ggtune.train.plan import Plan


def content(data: Dataset) -> list[Any]:
    samples = [(s.tokens.tolist(), s.weights.tolist(), s.n_prompt, s.row) for s in data.samples]
    return [samples, data.groups.tolist(), data.report]


def question_file(folder: Path, n: int) -> Path:
    path = folder / "x.jsonl"
    rows = []
    for i in range(n):
        answer = f"It is {i}." + " more" * (i % 50)
        weight = 0 if i % 83 == 2 else 1  # nothing of such a row is learned: that is seen when it is encoded
        row = json.dumps({"question": f"What is {i % (n - 9)}?", "answer": answer, "weight": weight})
        rows.append("{" if i % 97 == 5 else '{"question": "?", "answer": ""}' if i % 89 == 3 else row)
    path.write_text("\n".join(rows))
    return path


def rendered_file(folder: Path, n: int) -> Path:
    path = folder / "x.txt"
    ends = ("", " </s>")  # a missing one is appended and counted
    path.write_text("".join(f"<SFT><s>[INST] What is {i}? [/INST] It is {i * i}.{ends[i % 2]}\n" for i in range(n)))
    return path


def rendered_rows(folder: Path, n: int) -> Path:
    path = folder / "x.jsonl"
    texts = [f"<s>[INST] What is {i}? [/INST] {'' if i % 31 == 7 else i * i} </s>" for i in range(n)]
    path.write_text("".join(json.dumps({"text": "" if i % 37 == 9 else text}) + "\n" for i, text in enumerate(texts)))
    return path


def text_folder(folder: Path, n: int) -> Path:
    for i in range(n):
        (folder / f"{i}.txt").write_text(f"Text {i}. " + "It goes on. " * (i % 40))
    return folder


@pytest.mark.parametrize("make", [question_file, rendered_file, rendered_rows, text_folder])
def test_any_number_of_threads_gives_the_same(make: Any, tmp_path: Path, demo_model: _core.Model) -> None:
    path = make(tmp_path, 400)
    found = [content(load_samples(path, demo_model, context=32, skip_bad=True, threads=n)) for n in (1, 2, 5)]
    assert found[1] == found[0]
    assert found[2] == found[0]
    assert len(found[0][0]) > 350


def test_bad_rows_stand_in_their_order(tmp_path: Path, demo_model: _core.Model) -> None:
    data = load_samples(question_file(tmp_path, 400), demo_model, context=32, skip_bad=True, threads=2)
    rows = [row for row, _ in data.report.bad_rows]
    assert rows == sorted([i + 1 for i in range(400) if i % 97 == 5] + [i + 1 for i in range(400) if i % 83 == 2])


@pytest.mark.parametrize(("terminal", "quiet_s"), [(True, 0.0), (False, 0.0), (True, 60.0)])
def test_a_bar_for_a_terminal_where_it_takes_long(
    terminal: bool, quiet_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_model: _core.Model
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr("ggtune.data.load._QUIET_S", quiet_s)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    load_samples(question_file(tmp_path, 400), demo_model, context=32, skip_bad=True)
    assert ("Tokenizing" in shown.getvalue()) is (terminal and not quiet_s)


def test_results_are_in_order() -> None:
    def slow(i: int) -> int:
        time.sleep(0.001 * (i % 7 == 0))
        return i * i

    drawn: list[int] = []

    def items() -> Iterator[int]:
        for i in range(2000):
            drawn.append(i)
            yield i

    results = in_order(slow, items(), size=lambda _: 1, threads=3)
    for n, (i, square) in enumerate(results):
        assert (i, square) == (n, n * n)
        assert len(drawn) < n + 10 * 64
    assert len(drawn) == 2000


def test_large_items_are_not_drawn_far_ahead() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for i in range(300):
            drawn.append(i)
            yield i

    for n, _ in enumerate(in_order(lambda i: i, items(), size=lambda _: 1 << 20, threads=2)):
        assert len(drawn) < n + 10


def test_a_failure_or_an_interrupt_ends_the_threads() -> None:
    def fail(i: int) -> int:
        if i == 500:
            raise DataError("no")
        return i

    with pytest.raises(DataError, match="no"):
        list(in_order(fail, range(5000), size=lambda _: 1, threads=2))
    interrupted = in_order(lambda i: i, range(5000), size=lambda _: 1, threads=2)
    assert list(islice(interrupted, 300))[-1] == (299, 299)
    with pytest.raises(KeyboardInterrupt):
        interrupted.throw(KeyboardInterrupt())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tokenize")]


def test_key_table_numbers_keys_in_their_order() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(-(2**63), 2**63 - 1, 20_000).tolist()
    keys += [(k & ~0xFFFF) for k in keys[:100]] + keys[::3]  # crowded slots, and keys that are known
    table, expected = KeyTable(), {}
    for key in keys:
        assert table.number(key) == expected.setdefault(key, len(expected))
    assert len(table) == len(expected)


def test_hashes_take_little_memory() -> None:
    table = KeyTable()
    rng = np.random.default_rng(0)
    for key in rng.integers(-(2**63), 2**63 - 1, 50_000).tolist():
        table.number(key)
    n_bytes = sum(values.itemsize * len(values) for values in vars(table).values() if isinstance(values, array))
    assert n_bytes < 24 * len(table)


def test_frequent_values() -> None:
    values = array("q", [5, 7, 5, 9, 7, 5, 2**62, 5, 7])
    assert list(_frequent(values, 3)) == [(0, 4), (1, 3)]
    assert list(_frequent(values, 5)) == []
    assert list(_frequent(array("q"), 2)) == []


def test_one_answer_to_many_questions_names_its_first_row() -> None:
    inspector = Inspector()
    for row in range(2, 62):
        inspector.add(exchange(f"Question {row}?", "The same." if row % 2 else f"Answer {row}.", row=row))
    assert [(d.row, d.text) for d in inspector.finish() if d.kind == "same answer"] == [(3, "to 30 questions")]


def test_repetitions_are_those_of_the_pattern_alone() -> None:
    rng = random.Random(0)
    n_found = 0
    for _ in range(1500):
        phrase = "".join(rng.choices("ab cd", k=rng.randint(5, 90)))
        before, behind = ("".join(rng.choices("abcd xyz", k=rng.randint(0, 150))) for _ in range(2))
        text = before + phrase * rng.randint(3, 8) + behind
        expected = _REPEATED.search(text)
        assert _repeated(text) == (expected[1] if expected else "")
        n_found += expected is not None
    assert 300 < n_found < 1200


@pytest.mark.parametrize(
    "loop",
    [
        "{% set list = range(9999) | list %}{% for a in list %}{% for b in list %}{% endfor %}{% endfor %}",
        "{% macro again(n) %}{% if n %}{{ again(n - 1) }}{{ again(n - 1) }}{% endif %}{% endmacro %}{{ again(60) }}",
        "{% block a %}{% if messages %}{{ self.a() }}{% endif %}{{ self.a() }}{% endblock %}",
        "{% for a in [[[]]] recursive %}{% set x = loop([a, a]) %}{{ loop([a, a]) }}{% endfor %}",
    ],
)
def test_templates_that_run_for_ever_are_stopped(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggtune.data.chat_template._MAX_SECONDS", 0.1)
    start = time.process_time()
    with pytest.raises(GgtuneError, match=r"takes more than 0\.1 s|RecursionError"):
        ChatTemplate(loop + "{{ messages[0].content }}", bos="", eos="", end_of=lambda text: "")
    assert time.process_time() - start < 5


def samples(n: int) -> list[Sample]:
    rng = np.random.default_rng(n)
    made = []
    for row in range(n):
        prompt, answer = (rng.integers(3, 99, rng.integers(1, 30)).tolist() for _ in range(2))
        sample = make_sample(prompt, answer, "answer", row)
        made.append(Sample(sample.tokens, sample.weights * np.float32(0.25 if row % 3 else 1), sample.n_prompt, row))
    return made


@pytest.mark.parametrize("most", [100, 1 << 20])
def test_a_store_gives_what_it_took(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "IN_MEMORY_TOKENS", most)
    made, builder = samples(60), StoreBuilder()
    for sample in made:
        builder.append(sample)
    found = builder.build()
    assert isinstance(found.tokens, FileValues) is (most == 100)
    for some, expected in (
        (found, made),
        (found.take(np.array([7, 3]))[::-1], [made[3], made[7]]),
        (found[-2:], made[-2:]),
    ):
        assert len(some) == len(expected)
        assert some.lengths.tolist() == [len(sample.tokens) for sample in expected]
        assert some.n_targets.tolist() == [np.count_nonzero(sample.weights) for sample in expected]
        assert some.rows.tolist() == [sample.row for sample in expected]
        for one, other in zip(some, expected, strict=True):
            assert one.tokens.tolist() == other.tokens.tolist()
            assert one.weights.tolist() == other.weights.tolist()
            assert (one.n_prompt, one.row) == (other.n_prompt, other.row)
    assert found[-1].row == 59
    with pytest.raises(IndexError):
        found[60]


def test_planning_reads_no_tokens(monkeypatch: pytest.MonkeyPatch, demo_model: _core.Model, tmp_path: Path) -> None:
    data = load_samples(question_file(tmp_path, 200), demo_model, context=64, skip_bad=True)
    expected = Plan(list(data.samples), list(data.samples)[:9], batch=8, max_tokens=128, seed=1, epochs=1, max_steps=0)
    steps = [[b.arrays for b in expected.micro_batches(0, n)] for n in range(3)]

    def refuse(self: store.SampleStore, index: int) -> Sample:
        raise AssertionError("a sample was made")

    with monkeypatch.context() as patched:
        patched.setattr(store.SampleStore, "__getitem__", refuse)
        held_out = data.samples.take(np.arange(9))
        plan = Plan(data.samples, held_out, batch=8, max_tokens=128, seed=1, epochs=1, max_steps=0)
        assert plan.packing() == expected.packing()
        assert (plan.largest, plan.total_steps, len(plan.held_out)) == (
            expected.largest,
            expected.total_steps,
            len(expected.held_out),
        )
        card = DataCard.of(data, np.arange(9))
    assert card.n_tokens == sum(len(sample.tokens) for sample in data.samples)
    assert card.learned == sum(np.count_nonzero(sample.weights) for sample in data.samples)
    for found, step in zip(([b.arrays for b in plan.micro_batches(0, n)] for n in range(3)), steps, strict=True):
        assert str(found) == str(step)
    assert [str(b.arrays) for b in plan.held_out] == [str(b.arrays) for b in expected.held_out]


def test_growth_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 GB of short rows are some five millions: fifty bytes for each are 250 MB."""
    monkeypatch.setattr(store, "_IN_MEMORY_ROWS", 100)
    n_rows = 12_000
    inspector, builder, groups = Inspector(), StoreBuilder(), store.Column("q")
    sample = make_sample([1], [2], "answer", 1)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for row in range(n_rows):
            groups.append(inspector.add(exchange(f"What is {row}?", f"It is {row}.", row=row))[0])
            builder.append(sample)
        grown = tracemalloc.get_traced_memory()[0] - before
        del inspector
        found, of_rows = builder.build(), groups.values()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(found) == len(set(of_rows.tolist())) == n_rows
    assert grown < 50 * n_rows  # the tokens, ten bytes, go to a file as well where they are many
    assert held < 40 * n_rows


def test_doubts_about_every_row_take_little_memory() -> None:
    inspector = Inspector()
    tracemalloc.start()
    try:
        for row in range(1, 30_001):
            inspector.add(exchange("<p>Why?", "It is so.", row=row))
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    doubts = inspector.finish()
    assert doubts.counts == {"markup": 30_000, "duplicate": 29_999}
    assert (doubts[-1].kind, doubts[-1].row, doubts[-1].text) == ("duplicate", 30_000, "of 1")
    assert (doubts[0].text, doubts[-2].text) == ("'<p>'", "")  # of the first ones what was found is kept
    assert grown < 100 * 30_000


def test_more_tokens_than_32_bits_count() -> None:
    """Where a sample ends is kept modulo 2^32."""

    class Tokens:
        def __getitem__(self, part: slice) -> Any:
            return part.start, part.stop

    class Ids:
        def __getitem__(self, part: slice) -> Any:
            return np.zeros(0, np.uint8)

    ends = np.array([5, 2**32 - 3, 2**32 + 4, 2**32 + 4, 2 * 2**32 + 1, 3 * 2**32], np.uint64)
    few = np.zeros(len(ends), np.int32)
    found = store.SampleStore(
        Tokens(),  # type: ignore[arg-type]
        Ids(),  # type: ignore[arg-type]
        np.zeros(1, np.float32),
        ends.astype(np.uint32),
        few,
        few,
        few.astype(np.uint32),
    )
    begins = [0, *ends[:-1].tolist()]
    assert [found[i].tokens for i in range(len(ends))] == list(zip(begins, ends.tolist(), strict=True))
    assert found.take(np.array([4, 2]))[1].tokens == (2**32 - 3, 2**32 + 4)
    assert found.lengths.tolist() == np.diff(ends, prepend=np.uint64(0)).tolist()
