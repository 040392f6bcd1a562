"""The table of :class:`ggtune.TrainConfig`: for each field, what is different where it alone is another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from recorded import Seen

from ggtune.demo import DATA, MODEL
from ggtune.system import available_threads

Check = Callable[[Seen, Seen], None]


@dataclass(frozen=True)
class File:
    """Stands for one of the files that the fixture ``wiring_files`` makes."""

    name: str


@dataclass(frozen=True)
class Change:
    """A value to change a field to, and what is seen then."""

    value: Any
    check: Check  # of the run with the base's settings, and the one with the change
    base: dict[str, Any] = field(default_factory=dict)  # settings of both runs, beside those of BASE
    same_adapter: bool | None = False  # the result is the same bit for bit; None: it may be


# every setting that depends on another is named, so that no other changes with the one that is changed
BASE: dict[str, Any] = {
    "model": str(MODEL),
    "data": str(DATA),
    "holdout": "4",
    "ctx": 64,
    "batch": 4,
    "micro_batch_tokens": 64,
    "epochs": 0.0,
    "max_steps": 3,
    "lr": 2e-3,
    "schedule": "cosine",
    "warmup": 0.0,
    "decay_steps": 0,
    "min_lr_ratio": 0.0,
    "weight_decay": 0.0,
    "rank": 4,
    "targets": ("all",),
    "stop_plateau": 0,
    "save_every": "50",
    "keep": 3,
    "loss_on": "answer",
    "threads": 1,
}
LR = BASE["lr"]
ONE_EPOCH = {"epochs": 1.0, "max_steps": 0, "holdout": "0"}
TWO_COLUMNS = {"data": File("columns.csv"), **ONE_EPOCH}
MARKED = {"data": File("marked.txt"), **ONE_EPOCH, "loss_on": "all"}
PLAIN = {"data": File("plain.txt"), **ONE_EPOCH, "loss_on": "all", "ctx": 32}
LINEAR = {"schedule": "linear"}
TINY = {"data": File("one_row.csv"), "holdout": "0", "batch": 1}
ON_TWO = {"device": ("SIM0", "SIM1"), "max_steps": 1}
ON_ONE = {"device": ("SIM0",), "max_steps": 1, "recompute": "none"}
FROM = {"from_adapter": File("adapter.gguf"), "rank": None, "targets": None}


def given_to_step(name: str, base: float, changed: float) -> Check:
    def check(before: Seen, after: Seen) -> None:
        assert {step[name] for step in before.steps} == {base}
        assert {step[name] for step in after.steps} == {changed}

    return check


def rates(base: list[float], changed: list[float]) -> Check:
    """Compare the learning rates of all steps, as shares of the peak."""

    def check(before: Seen, after: Seen) -> None:
        assert before.rates == pytest.approx([LR * share for share in base])
        assert after.rates == pytest.approx([LR * share for share in changed])

    return check


def steps_taken(base: int, changed: int) -> Check:
    def check(before: Seen, after: Seen) -> None:
        assert (before.n_steps, after.n_steps) == (base, changed)
        assert (len(before.metrics), len(after.metrics)) == (base, changed)

    return check


def measured_after(base: list[int], changed: list[int]) -> Check:
    def check(before: Seen, after: Seen) -> None:
        for seen, steps in ((before, base), (after, changed)):
            assert [record["step"] for record in seen.metrics if "held_out_loss" in record] == steps

    return check


def stopped_early(before: Seen, after: Seen) -> None:
    assert (before.n_steps, after.n_steps) == (6, 2)
    losses = [record["held_out_loss"] for record in after.metrics]
    assert losses[1] > losses[0]


def scored_by_f1(before: Seen, after: Seen) -> None:
    assert not any("held_out_scores" in record for record in before.metrics)
    assert 0 <= after.metrics[-1]["held_out_scores"]["f1"] <= 1


def answered_after(base: list[int], changed: list[int]) -> Check:
    def check(before: Seen, after: Seen) -> None:
        assert [sorted({line["step"] for line in seen.answers}) for seen in (before, after)] == [base, changed]

    return check


def one_question(before: Seen, after: Seen) -> None:
    assert [len({line["question"] for line in seen.answers}) for seen in (before, after)] == [3, 1]


def event_files_written(before: Seen, after: Seen) -> None:
    assert not before.event_files
    assert after.event_files


def kept_checkpoints(base: list[int], changed: list[int]) -> Check:
    def check(before: Seen, after: Seen) -> None:
        assert (before.checkpoints, after.checkpoints) == (base, changed)

    return check


def other_model(before: Seen, after: Seen) -> None:
    assert before.model == str(MODEL)
    assert after.model.endswith("other.gguf")
    assert before.texts == after.texts
    assert before.losses != after.losses


def other_data(before: Seen, after: Seen) -> None:
    assert not any("What is frozen water called?" in text for text in before.texts + before.held_out)
    assert any("What is frozen water called?" in text for text in after.texts + after.held_out)


def other_question(before: Seen, after: Seen) -> None:
    assert all("Which one?" in text and "Welches?" not in text for text in before.texts)
    assert all("Welches?" in text and "Which one?" not in text for text in after.texts)
    assert all("This one." in text for text in before.texts + after.texts)


def other_answer(before: Seen, after: Seen) -> None:
    assert all("This one." in text and "Dieses." not in text for text in before.texts)
    assert all("Dieses." in text and "This one." not in text for text in after.texts)
    assert all("Which one?" in text for text in before.texts + after.texts)


def split_at_marks(before: Seen, after: Seen) -> None:
    assert any("@@" in text for text in before.texts)  # windows of plain text
    assert not any("@@" in text for text in after.texts)
    assert len(after.texts) == 3
    assert all(text.startswith("<s>This is part") and text.endswith("</s>") for text in after.texts)


def not_split_at_marks(before: Seen, after: Seen) -> None:
    assert not any("<SFT>" in text for text in before.texts)
    assert any("<SFT>" in text for text in after.texts)


def mark_in_samples(before: Seen, after: Seen) -> None:
    assert len(before.texts) == len(after.texts) == 3
    assert not any("<SFT>" in text for text in before.texts)
    assert all(text.count("<SFT>") == 1 for text in after.texts)


def overlapping_windows(before: Seen, after: Seen) -> None:
    whole, overlapping = ({one.text for one in seen.sequences if one.n_rows == 32} for seen in (before, after))
    assert whole < overlapping  # one more starts in the middle of each
    assert len(overlapping) >= 2 * len(whole) - 1


def alpaca(before: Seen, after: Seen) -> None:
    assert all("[INST]" in text and "### Instruction:" not in text for text in before.texts)
    assert all("### Instruction:" in text and "[INST]" not in text for text in after.texts)
    assert before.adapter is not None
    assert after.adapter is not None
    assert (before.adapter.notes["template"], after.adapter.notes["template"]) == ("model", "alpaca")


def with_system(before: Seen, after: Seen) -> None:
    assert not any("Be brief." in text for text in before.texts)
    assert all(text.count("Be brief.") == 1 for text in after.texts)
    assert after.adapter is not None
    assert after.adapter.notes["system"] == "Be brief."


def loss_on_all(before: Seen, after: Seen) -> None:
    for one, other in zip(before.sequences, after.sequences, strict=True):
        n_answer = int(one.weights.sum())
        assert 0 < n_answer < one.n_rows
        assert np.array_equal(one.weights, np.arange(one.n_rows) >= one.n_rows - n_answer)
        assert np.array_equal(other.weights, np.ones(one.n_rows))
        assert one.text == other.text


def long_ones_skipped(before: Seen, after: Seen) -> None:
    assert max(one.n_rows for one in before.sequences) == 36
    assert any(not text.endswith("</s>") for text in before.texts)
    assert all(text.endswith("</s>") for text in after.texts)
    assert 0 < len(after.texts) < len(before.texts)
    assert set(after.texts) < set(before.texts)


def eight_held_out(before: Seen, after: Seen) -> None:
    assert (len(before.held_out), len(after.held_out)) == (4, 8)
    assert not set(before.held_out) & set(before.texts)
    assert not set(after.held_out) & set(after.texts)


def every_sixteenth_held_out(before: Seen, after: Seen) -> None:
    assert not before.held_out
    assert before.n_steps == 16
    assert set(before.texts) == {*after.texts, *after.held_out}
    assert not set(after.texts) & set(after.held_out)
    assert len(after.held_out) == 4


def shorter_context(before: Seen, after: Seen) -> None:
    assert (before.trainer_arguments["context"], after.trainer_arguments["context"]) == (64, 24)
    assert max(one.n_rows for one in before.sequences) > 24
    assert max(one.n_rows for one in after.sequences) == 24


def two_samples_per_step(before: Seen, after: Seen) -> None:
    assert {sum(len(batch.sequences) for batch in step) for step in before.micro_batches} == {4}
    assert {sum(len(batch.sequences) for batch in step) for step in after.micro_batches} == {2}


def longer_micro_batches(before: Seen, after: Seen) -> None:
    assert max(batch.n_tokens for step in before.micro_batches for batch in step) <= 64
    assert [len(step) for step in after.micro_batches] == [1, 1, 1]
    assert max(batch.n_tokens for step in after.micro_batches for batch in step) > 64
    assert sorted(before.texts) == sorted(after.texts)


def stopped_under(n_steps: int, *, before_n: int) -> Check:
    def check(before: Seen, after: Seen) -> None:
        assert (before.n_steps, after.n_steps) == (before_n, n_steps)

    return check


def halved_rate(before: Seen, after: Seen) -> None:
    assert len(set(before.rates)) == 1
    assert after.rates == before.rates[:51] + [before.rates[0] / 2] * (before.n_steps - 51)


def spike_reported(before: Seen, after: Seen) -> None:
    assert "times the smoothed" not in before.output
    assert [f"the loss of step {step} is" in after.output for step in range(1, 13)] == [False] * 10 + [True] * 2


def other_seeds(before: Seen, after: Seen) -> None:
    assert (before.adapter_arguments["seed"], after.adapter_arguments["seed"]) == (0, 7)
    assert (before.trainer_arguments["seed"], after.trainer_arguments["seed"]) == (0, 7)
    a_matrices = [name for name in before.start if name.endswith(".lora_a")]
    assert not any(np.array_equal(before.start[name], after.start[name]) for name in a_matrices)


def other_order(before: Seen, after: Seen) -> None:
    assert set(before.held_out) == set(after.held_out)  # every:3 draws nothing
    assert sorted(before.texts) == sorted(after.texts)
    assert before.texts != after.texts
    assert [sorted(s.text for b in step for s in b.sequences) for step in before.micro_batches] != [
        sorted(s.text for b in step for s in b.sequences) for step in after.micro_batches
    ]


def other_held_out(before: Seen, after: Seen) -> None:
    assert len(before.held_out) == len(after.held_out) == 4
    assert set(before.held_out) != set(after.held_out)


def threads(base: int, changed: int) -> Check:
    def check(before: Seen, after: Seen) -> None:
        assert (before.trainer_arguments["threads"], after.trainer_arguments["threads"]) == (base, changed)

    return check


def recomputed(before: Seen, after: Seen) -> None:
    assert before.recompute_layers == 0
    assert after.recompute_layers > 0


def not_recomputed(before: Seen, after: Seen) -> None:
    assert before.recompute_layers > 0
    assert after.recompute_layers == 0


def unrounded(before: Seen, after: Seen) -> None:
    assert (before.trainer_arguments["precision"], after.trainer_arguments["precision"]) == ("auto", "f32")
    assert before.losses != after.losses
    assert before.losses == pytest.approx(after.losses, abs=0.05)


def layers_on(before: dict[str, int], after: dict[str, int]) -> Check:
    """Compare how many layers lie where."""

    def check(first: Seen, second: Seen) -> None:
        for seen, expected in ((first, before), (second, after)):
            assert {name: seen.layer_devices.count(name) for name in seen.layer_devices} == expected

    return check


def head_on_another(before: Seen, after: Seen) -> None:
    assert (before.layer_devices[-1], after.layer_devices[-1]) == ("SIM1", "SIM0")
    assert set(after.layer_devices) == {"SIM0", "SIM1"}


def experts_kept(before: Seen, after: Seen) -> None:
    assert (before.model_arguments["cpu_experts"], after.model_arguments["cpu_experts"]) == (0, 3)


def fewer_layers(before: Seen, after: Seen) -> None:
    assert before.layer_devices.count("SIM0") == 9
    assert 0 < after.layer_devices.count("SIM0") < 9


def taken_by_force(before: Seen, after: Seen) -> None:
    assert "was trained on another base" in before.error
    assert "--force" in before.error
    assert before.n_steps == 0
    assert not after.error
    assert after.n_steps == 3


def started_from(before: Seen, after: Seen) -> None:
    assert before.adapter_arguments["rank"] == 16  # the default
    assert after.adapter_arguments["rank"] == 2
    assert not any(values.any() for name, values in before.start.items() if name.endswith(".lora_b"))
    assert all(values.any() for name, values in after.start.items() if name.endswith(".lora_b"))
    assert after.losses[0] < before.losses[0]
    assert after.adapter is not None
    assert after.adapter.notes["from_adapter"]


def smaller_rank(before: Seen, after: Seen) -> None:
    for seen, rank in ((before, 4), (after, 2)):
        assert seen.adapter is not None
        assert {seen.adapter.rank_of(base) for base in seen.adapter.bases} == {rank}
        assert seen.adapter.alpha == rank  # the default: a scale of 1


def stronger(before: Seen, after: Seen) -> None:
    assert before.adapter is not None
    assert after.adapter is not None
    assert (before.adapter.alpha, after.adapter.alpha) == (4, 16)
    assert before.losses[0] == after.losses[0]  # B = 0
    assert before.losses[1:] != after.losses[1:]


def stabilized(before: Seen, after: Seen) -> None:
    assert before.adapter is not None
    assert after.adapter is not None
    assert (before.adapter.alpha, after.adapter.alpha) == (4, 4 * math.sqrt(4))
    assert before.losses[0] == after.losses[0]
    assert before.losses[1:] != after.losses[1:]


def two_kinds(before: Seen, after: Seen) -> None:
    assert before.adapter is not None
    assert after.adapter is not None
    assert {base.split(".")[2] for base in after.adapter.bases} == {"attn_q", "ffn_down"}
    assert {base.split(".")[2] for base in before.adapter.bases} > {"attn_q", "ffn_down"}


def dropped_out(before: Seen, after: Seen) -> None:
    assert (before.trainer_arguments["dropout"], after.trainer_arguments["dropout"]) == (0.0, 0.5)
    assert before.losses[0] == after.losses[0]  # B = 0
    assert before.losses[1:] != after.losses[1:]
    assert before.evaluated[0].loss_sum == after.evaluated[0].loss_sum


def other_files_too(before: Seen, after: Seen) -> None:
    assert len(before.texts) == len(after.texts) - 6 == 64
    assert any("What is frozen water called?" in text for text in after.texts)


def taken_twice(before: Seen, after: Seen) -> None:
    assert sorted([*before.texts, *before.texts]) == sorted(after.texts)


def with_context(before: Seen, after: Seen) -> None:
    assert not any("It is about rain." in text for text in before.texts)
    assert all("It is about rain." in text and "What falls" in text for text in after.texts)


def weighted_rows(before: Seen, after: Seen) -> None:
    assert {weight for one in before.sequences for weight in one.weights.tolist()} == {0, 1}
    assert {weight for one in after.sequences for weight in one.weights.tolist()} == {0, 0.25, 1}


def read_as_text(before: Seen, after: Seen) -> None:
    assert not any("question,answer" in text for text in before.texts)
    assert any("question,answer" in text for text in after.texts)


def other_encoding(before: Seen, after: Seen) -> None:
    assert any("Это вода." in text for text in before.texts)
    assert any("Это вода.".encode("cp1251").decode("koi8-r") in text for text in after.texts)


def bad_rows_left_out(before: Seen, after: Seen) -> None:
    assert "--skip-bad" in before.error
    assert before.n_steps == 0
    assert len(after.texts) == 2
    assert all("Good" in text for text in after.texts)


def column_found(before: Seen, after: Seen) -> None:
    assert "there is no column 'kind' for the category" in before.error
    assert len(after.texts) == len(after.sequences) > 0


def last_turn_alone(before: Seen, after: Seen) -> None:
    (one,), (other,) = before.sequences, after.sequences
    assert one.text == other.text
    runs = [int(np.sum(np.diff(weights, prepend=0) > 0)) for weights in (one.weights, other.weights)]
    assert runs == [2, 1]  # answers that are learned
    assert np.array_equal(other.weights, np.where(np.arange(one.n_rows) > one.n_rows // 2, one.weights, 0))


def turns_not_split(before: Seen, after: Seen) -> None:
    assert sorted(text.count("<think>") for text in before.texts) == [1, 1]
    (text,) = after.texts
    assert text.count("<think>") == 1  # the template leaves out the thought of the turn before


def weighted_prompts(before: Seen, after: Seen) -> None:
    for one, other in zip(before.sequences, after.sequences, strict=True):
        assert np.array_equal(other.weights, np.where(one.weights == 0, np.float32(0.25), one.weights))


def duplicates_dropped(before: Seen, after: Seen) -> None:
    assert len(before.texts) == 4
    assert len(after.texts) == 3
    assert set(after.texts) == set(before.texts)


def file_held_out(before: Seen, after: Seen) -> None:
    assert len(before.held_out) == 4
    assert len(after.held_out) == 6
    assert any("What is frozen water called?" in text for text in after.held_out)


def noisy(before: Seen, after: Seen) -> None:
    assert (before.trainer_arguments["neftune_alpha"], after.trainer_arguments["neftune_alpha"]) == (0.0, 50.0)
    assert before.losses[0] != after.losses[0]
    assert before.evaluated[0].loss_sum == after.evaluated[0].loss_sum


def cosine(step: int, n_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / n_steps))


TABLE: dict[str, list[Change]] = {
    "model": [Change(File("other.gguf"), other_model)],
    "data": [Change(File("table.csv"), other_data, {**ONE_EPOCH})],
    "more_data": [Change((File("table.csv"),), other_files_too, ONE_EPOCH)],
    "repeat": [Change(2, taken_twice, {**ONE_EPOCH, "data": File("table.csv")})],
    "context_column": [Change("about", with_context, {**ONE_EPOCH, "data": File("about.csv")})],
    "weight_column": [Change("importance", weighted_rows, {**ONE_EPOCH, "data": File("about.csv")})],
    "category_column": [
        Change("about", column_found, {**ONE_EPOCH, "data": File("about.csv"), "category_column": "kind"}),
    ],
    "data_format": [Change("text", read_as_text, {**ONE_EPOCH, "data": File("table.csv"), "loss_on": "all"})],
    "encoding": [Change("koi8-r", other_encoding, {**ONE_EPOCH, "data": File("page.csv"), "ctx": 128})],
    "skip_bad": [Change(True, bad_rows_left_out, {**ONE_EPOCH, "data": File("bad.jsonl")})],
    "learn": [Change("last", last_turn_alone, {**ONE_EPOCH, "data": File("turns.jsonl")})],
    "split_turns": [
        Change(
            False, turns_not_split, {**ONE_EPOCH, "data": File("thoughts.jsonl"), "ctx": 128, "micro_batch_tokens": 128}
        )
    ],
    "prompt_weight": [Change(0.25, weighted_prompts)],
    "drop": [Change(("duplicate",), duplicates_dropped, {**ONE_EPOCH, "data": File("twice.csv")})],
    "neftune_alpha": [Change(50.0, noisy)],
    "question_column": [Change("frage", other_question, TWO_COLUMNS)],
    "answer_column": [Change("antwort", other_answer, TWO_COLUMNS)],
    "sample_start": [
        Change("@@", split_at_marks, MARKED),
        Change("", not_split_at_marks, {**MARKED, "data": File("sft.txt")}),
    ],
    "include_sample_start": [Change(True, mark_in_samples, {**MARKED, "data": File("sft.txt")})],
    "overlapping_samples": [Change(True, overlapping_windows, PLAIN)],
    "template": [Change("alpaca", alpaca)],
    "system": [Change("Be brief.", with_system)],
    "loss_on": [Change("all", loss_on_all)],
    "too_long": [Change("skip", long_ones_skipped, {**ONE_EPOCH, "ctx": 36})],
    "holdout": [
        Change("8", eight_held_out),
        Change("every:16", every_sixteenth_held_out, ONE_EPOCH),
        Change(File("table.csv"), file_held_out),
    ],
    "ctx": [Change(24, shorter_context)],
    "batch": [Change(2, two_samples_per_step)],
    "micro_batch_tokens": [Change(256, longer_micro_batches, same_adapter=None)],
    "epochs": [Change(2.0, steps_taken(3, 6), {**ONE_EPOCH, "data": File("table.csv"), "batch": 2})],
    "max_steps": [Change(2, steps_taken(3, 2))],
    "lr": [Change(1e-3, rates([cosine(i, 3) for i in range(3)], [cosine(i, 3) / 2 for i in range(3)]))],
    "schedule": [
        Change("linear", rates([cosine(i, 3) for i in range(3)], [1, 2 / 3, 1 / 3])),
        Change("constant", rates([cosine(i, 3) for i in range(3)], [1, 1, 1])),
    ],
    "warmup": [
        Change(2.0, rates([1, 2 / 3, 1 / 3], [1 / 2, 1, 1]), LINEAR),
        Change(0.6, rates([1, 1, 1], [1 / 2, 1, 1]), {"schedule": "constant"}),
    ],
    "decay_steps": [Change(2, rates([1, 2 / 3, 1 / 3], [1, 1 / 2, 0]), LINEAR)],
    "min_lr_ratio": [Change(0.5, rates([1, 2 / 3, 1 / 3], [1, 5 / 6, 2 / 3]), LINEAR)],
    "beta1": [Change(0.5, given_to_step("beta1", 0.9, 0.5))],
    "beta2": [Change(0.5, given_to_step("beta2", 0.999, 0.5))],
    "epsilon": [Change(1e-2, given_to_step("epsilon", 1e-8, 1e-2))],
    "weight_decay": [Change(0.5, given_to_step("weight_decay", 0.0, 0.5))],
    "clip": [Change(1e-6, given_to_step("clip", 1.0, 1e-6))],
    "lora_plus_ratio": [Change(4.0, given_to_step("lora_plus_ratio", 1.0, 4.0))],
    "from_adapter": [Change(File("adapter.gguf"), started_from, {"rank": None, "targets": None})],
    "rank": [Change(2, smaller_rank)],
    "alpha": [Change(16.0, stronger)],
    "targets": [Change(("attn_q", "ffn_down"), two_kinds)],
    "rslora": [Change(True, stabilized)],
    "dropout": [Change(0.5, dropped_out)],
    "stop_loss": [Change(100.0, stopped_under(5, before_n=6), {"max_steps": 6})],
    "stop_patience": [
        Change(2, stopped_under(2, before_n=5), {"max_steps": 6, "stop_loss": 100.0}),
    ],
    "stop_plateau": [
        Change(2, halved_rate, {**TINY, "lr": 1e-12, "schedule": "constant", "max_steps": 53}),
    ],
    "eval_every": [
        Change("2", measured_after([3], [2, 3]), same_adapter=True),
        Change("0.07ep", measured_after([3], [2, 3]), same_adapter=True),
    ],
    "early_stop": [
        Change(1, stopped_early, {"max_steps": 6, "lr": 0.1, "schedule": "constant", "eval_every": "1"}),
    ],
    "early_stop_metric": [Change("f1", scored_by_f1, same_adapter=True)],
    "sample_every": [Change("2", answered_after([], [0, 2, 3]), same_adapter=True)],
    "sample_questions": [Change("1", one_question, {"sample_every": "2"}, same_adapter=True)],
    "save_every": [
        Change("2", kept_checkpoints([3], [2, 3]), same_adapter=True),
        Change("0.001s", kept_checkpoints([3], [1, 2, 3]), same_adapter=True),
    ],
    "keep": [
        Change(1, kept_checkpoints([2, 3, 4], [4]), {"save_every": "1", "holdout": "0", "max_steps": 4}, True),
        Change(0, kept_checkpoints([2, 3, 4], [1, 2, 3, 4]), {"save_every": "1", "holdout": "0", "max_steps": 4}, True),
    ],
    "log": [Change(("tensorboard",), event_files_written, same_adapter=True)],
    "spike": [Change(0.01, spike_reported, {**TINY, "max_steps": 12}, same_adapter=True)],
    "seed": [
        Change(7, other_seeds),
        Change(7, other_order, {"data": File("table.csv"), "holdout": "every:3", "batch": 2, "max_steps": 4}),
        Change(7, other_held_out),
    ],
    "threads": [
        Change(3, threads(1, 3), same_adapter=True),
        Change(0, threads(1, available_threads()), same_adapter=True),
    ],
    "recompute": [
        Change("layers", recomputed, same_adapter=True),
        Change("none", not_recomputed, {"recompute": "layers"}, same_adapter=True),
    ],
    "precision": [Change("f32", unrounded)],
    "gpu_layers": [
        Change("2", layers_on({"SIM0": 9}, {"CPU": 7, "SIM0": 2}), ON_ONE),
        Change("0", layers_on({"SIM0": 9}, {"CPU": 9}), ON_ONE),
    ],
    "device": [Change(("SIM1",), layers_on({"CPU": 9}, {"SIM1": 9}), {"max_steps": 1})],
    "main_device": [Change("SIM0", head_on_another, ON_TWO, same_adapter=None)],
    "split": [
        Change("7,2", layers_on({"SIM0": 6, "SIM1": 3}, {"SIM0": 7, "SIM1": 2}), ON_TWO, same_adapter=None),
    ],
    "cpu_experts": [Change(3, experts_kept, ON_ONE, same_adapter=True)],  # of a model that has none
    "device_memory": [Change("33M", fewer_layers, ON_ONE)],
    "force": [Change(True, taken_by_force, {**FROM, "model": File("other.gguf")})],
}
