"""Evaluations: whose loss it is, what is asked, what is kept where it is cut off, what is refused."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quick_runs import ROWS, Trained, train

from ggtune import pipeline
from ggtune._native import core
from ggtune.demo import MODEL
from ggtune.errors import GgtuneError
from ggtune.evaluate import evaluation_run
from ggtune.evaluate.answers import AnsweredSample, JsonLines, read_answers
from ggtune.evaluate.evaluation import Evaluation, OtherSettingsError, evaluations_of, read_evaluation
from ggtune.evaluate.evaluation_answers import given_answers
from ggtune.evaluate.evaluation_loss import Decoded, losses_of
from ggtune.evaluate.evaluation_scores import by_category, difference
from ggtune.evaluate.subject import open_subject
from ggtune.gguf.adapter_file import AdapterFile, read_adapter, write_adapter
from ggtune.pipeline import EvaluateOptions
from ggtune.run.checkpoint import load_checkpoint
from ggtune.run.lock import Lock
from ggtune.run.metrics import read_metrics
from ggtune.run.outputs import Outputs
from ggtune.scores.metrics import METRICS

QUICK = EvaluateOptions(max_tokens=24, threads=1)


def evaluate(what: object, out: Path | None = None, **changes: Any) -> Evaluation:
    return pipeline.evaluate(str(what), out, dataclasses.replace(QUICK, **changes))


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.folder, tmp_path / "run"))


# --- the loss


def test_the_loss_is_the_trainings_own(folder: Path) -> None:
    """To the last bit: the same engine, precision and micro-batches."""
    records = read_metrics(folder / "metrics.jsonl")
    measured = {record["step"]: record["held_out_loss"] for record in records if "held_out_loss" in record}
    last = evaluate(f"{folder}@last", generate=False)
    assert last.subject["step"] == records[-1]["step"]
    assert last.scores["loss"].value == measured[records[-1]["step"]]
    best = evaluate(f"{folder}@best", generate=False)
    step = min(measured, key=lambda step: measured[step])
    assert best.subject["step"] == step < records[-1]["step"]
    assert best.scores["loss"].value == pytest.approx(measured[step], rel=1e-12)
    monitor = load_checkpoint(max(Outputs.folder(folder).checkpoints().items())[1]).state.monitor
    base = evaluate(f"{folder}@base", generate=False)
    assert base.scores["loss"].value == pytest.approx(monitor["held_out_before"], rel=1e-7)
    for found in (last, best, base):
        assert found.scores["perplexity"].value == pytest.approx(math.exp(found.scores["loss"].value))
        assert found.settings["loss_by"] == "ggtune"
        assert (found.split, found.n_samples, found.n_questions) == ("held-out", 2, 0)
    assert [found.label for found in evaluations_of(folder)] == ["base", "best", "last"]


def test_weights_count_as_in_the_training(tmp_path: Path) -> None:
    trained = train(tmp_path, epochs=1.0, prompt_weight=0.25)
    measured = read_metrics(trained.folder / "metrics.jsonl")[-1]["held_out_loss"]
    found = evaluate(trained.folder, generate=False)
    assert found.scores["loss"].value == pytest.approx(measured, rel=1e-12)
    for one in found.answers():
        assert one.weight < one.n_targets


def test_decoding_is_near(trained: Trained) -> None:
    """llama.cpp's decoding, which takes over where the engine can't compute a model, sample by sample."""
    subject, model = open_subject(f"{trained.folder}@last"), core.Model(str(MODEL))
    samples = list(trained.samples.training)
    ours = dict(losses_of(subject, model, context=64, threads=1).of(samples))
    with subject.adapter_files() as files:
        decoded = dict(Decoded(model, files, context=64, threads=1, reason="").of(samples))
        few = Decoded(model, files, context=64, threads=1, reason="")
        few._rows_at_once = 3
        by_few = dict(few.of(samples))
    assert set(ours) == set(decoded) == set(range(len(samples)))
    for i in ours:
        assert decoded[i].loss == pytest.approx(ours[i].loss, abs=0.06)
        assert decoded[i].n_correct_tokens == ours[i].n_correct_tokens == ours[i].n_targets  # learned by heart
        assert by_few[i].loss == pytest.approx(decoded[i].loss, abs=1e-3)
    base = dict(losses_of(open_subject(str(MODEL)), model, context=64, threads=1).of(samples))
    assert sum(one.n_correct_tokens for one in base.values()) < 0.6 * sum(one.n_targets for one in base.values())


def test_what_the_engine_cannot_compute_is_decoded(trained: Trained, tmp_path: Path) -> None:
    """An adapter with a pair for the output layer, which llama.cpp applies and ggtune's engine does not."""
    content = read_adapter(trained.folder / "adapter.gguf")
    sizes = {tensor.name: tensor.shape for tensor in core.Model(str(MODEL), vocab_only=False).tensors()}
    n_vocab, n_embd = sizes["output.weight"]
    rng = np.random.default_rng(0)
    more = {
        "output.weight.lora_a": rng.normal(0, 0.1, (content.rank, n_embd)).astype(np.float32),
        "output.weight.lora_b": np.zeros((n_vocab, content.rank), np.float32),
    }
    path = tmp_path / "output.gguf"
    write_adapter(path, dataclasses.replace(content, tensors={**content.tensors, **more}))
    found = evaluate(f"{MODEL}+{path}", tmp_path / "out", data=trained.config.data, generate=False)
    assert found.settings["loss_by"] == "llama.cpp"
    assert "output.weight" in found.notes[0]
    plain = evaluate(f"{MODEL}+{trained.folder}/adapter.gguf", tmp_path / "plain", data=trained.config.data)
    assert found.scores["loss"].value == pytest.approx(plain.scores["loss"].value, abs=0.01)


def test_several_adapters_and_their_scales_add_up(trained: Trained, tmp_path: Path) -> None:
    content = read_adapter(trained.folder / "adapter.gguf")
    half = {name: 0.5 * values if name.endswith("b") else values for name, values in content.tensors.items()}
    some = {name: values for name, values in half.items() if "attn_q" not in name}
    rest = {name: values for name, values in half.items() if "attn_q" in name}
    paths = []
    for name, tensors in {"half": half, "some": some, "rest": rest}.items():
        paths.append(tmp_path / f"{name}.gguf")
        write_adapter(paths[-1], AdapterFile(content.architecture, content.alpha, tensors, content.notes))
    whole = f"{MODEL}+{trained.folder}/adapter.gguf"
    together = f"{MODEL}+{paths[0]}+{paths[1]}*2+{paths[2]}*2"  # half, and the double of half
    twice = f"{whole}*1.5"
    found = {
        what: evaluate(what, tmp_path / str(i), data=trained.config.data)
        for i, what in enumerate((whole, together, twice))
    }
    loss = found[together].scores["loss"].value
    assert loss == pytest.approx(found[twice].scores["loss"].value, abs=5e-3)
    assert abs(loss - found[whole].scores["loss"].value) > 0.02
    answers = [[one.answer for one in found[what].answers()] for what in (together, twice)]
    assert answers[0] == answers[1]
    assert found[together].subject["adapters"] == [[str(paths[0]), 1.0], [str(paths[1]), 2.0], [str(paths[2]), 2.0]]


# --- what is asked, and what is said of the answers


def test_what_was_learned_by_heart(folder: Path, trained: Trained) -> None:
    found = evaluate(folder, split="training")
    assert found.label == "best"
    assert found.folder == folder / "evaluation/best-training"
    last = evaluate(f"{folder}@last", split="training")
    assert (last.n_samples, last.n_questions) == (4, 4)
    for name in ("exact_match", "f1", "rouge_l", "ended", "token_accuracy"):
        assert last.scores[name].value == 1, name
    assert last.scores["exact_match"].low == pytest.approx(0.025 ** (1 / 4))
    for name in ("bleu", "chrf"):
        assert last.scores[name].value == pytest.approx(100), name
    assert last.scores["length_ratio"].value == 1
    assert last.scores["repetition"].value == 0
    by_question = dict(ROWS)
    for one in last.answers():
        assert one.reference == one.answer == by_question[one.question]
        assert one.where == f"table.csv:{one.row}"
        assert ROWS[one.row - 2][0] == one.question
        assert one.n_tokens == one.n_targets - 1  # but for the end token
        assert one.n_prompt_tokens + one.n_targets == len(_sample(trained, one.row).tokens)
    base = evaluate(f"{folder}@base", split="training")
    assert base.scores["f1"].value < 0.5
    better = difference("f1", base.answers(), last.answers())
    assert better is not None
    assert better.value == pytest.approx(1 - base.scores["f1"].value)
    assert better.p_value == 2 / 2**4
    assert difference("bleu", base.answers(), last.answers()).value > 30  # type: ignore[union-attr]
    lower = difference("loss", base.answers(), last.answers())
    assert lower is not None
    assert lower.value == pytest.approx(last.scores["loss"].value - base.scores["loss"].value)


def _sample(trained: Trained, row: int) -> Any:
    return next(sample for sample in trained.samples.data.samples if sample.row == row)


def test_asked_as_the_training_asked(tmp_path: Path) -> None:
    """Template and system text are the run's, on its own and on other data."""
    trained = train(tmp_path, template="chatml", system="Be brief.", epochs=1.0)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"question": "What is ice?", "answer": "Frozen water."}) + "\n")
    for options in ({}, {"data": str(other)}):
        found = evaluate(trained.folder, **options)
        assert (found.template, found.system) == ("chatml", "Be brief.")
    assert found.split == "all"
    assert found.folder == trained.folder / "evaluation/best-other"
    one = found.answers()[0]
    model = core.Model(str(MODEL), vocab_only=True)
    prompt = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is ice?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert one.n_prompt_tokens == len(model.tokenize(prompt)) + 1  # and the BOS
    asked = evaluate(trained.folder, tmp_path / "plain", data=str(other), settings={"template": "plain", "system": ""})
    assert (asked.template, asked.system) == ("plain", "")
    what = f"{MODEL}+{trained.folder}/adapter.gguf"
    file = evaluate(what, tmp_path / "file", data=str(other), settings={"ctx": 64})
    assert (file.template, file.system) == ("chatml", "Be brief.")
    assert file.scores["loss"].value == found.scores["loss"].value


def test_a_question_with_several_answers_counts_once(trained: Trained, tmp_path: Path) -> None:
    table = tmp_path / "several.csv"
    rows = [*ROWS[:2], (ROWS[0][0], "Carbon dioxide"), ("What is tin?", "A metal."), (ROWS[0][0], "CO2")]
    table.write_text("question,answer\n" + "".join(f'"{q}","{a}"\n' for q, a in rows))
    found = evaluate(f"{trained.folder}@last", tmp_path / "out", data=str(table))
    assert (found.n_samples, found.n_questions) == (5, 3)
    answers = found.answers()
    assert [one.repeated for one in answers] == [False, False, True, False, True]
    assert set(answers[0].references) == set(answers[4].references) == {rows[0][1], rows[2][1], rows[4][1]}
    assert answers[2].references[0] == "Carbon dioxide"
    assert answers[0].answer == answers[2].answer == answers[4].answer
    single = [one for one in answers if not one.repeated]
    assert found.scores["f1"].value == pytest.approx(np.mean([one.scores["f1"] for one in single]))
    # all of a question's answers count, also those of rows that were not drawn
    drawn = evaluate(f"{trained.folder}@last", tmp_path / "drawn", data=str(table), max_samples=1, seed=3)
    one = drawn.answers()[0]
    assert one.row in (2, 4, 6)
    assert len(one.references) == 3


def test_some_samples_are_drawn_by_the_seed(trained: Trained, tmp_path: Path) -> None:
    def drawn(n: int, seed: int) -> list[int]:
        out = tmp_path / f"{n}-{seed}"
        return [
            one.row
            for one in evaluate(trained.folder, out, split="all", max_samples=n, seed=seed, generate=False).answers()
        ]

    assert drawn(3, 0) == sorted(drawn(3, 0))
    assert len({tuple(drawn(3, seed)) for seed in range(5)}) > 1
    assert set(drawn(2, 1)) < set(drawn(3, 1))
    assert drawn(100, 0) == drawn(0, 0) == [2, 3, 4, 5, 6, 7]


def test_categories(trained: Trained, tmp_path: Path) -> None:
    table = tmp_path / "kinds.csv"
    table.write_text(
        "question,answer,category\n" + "".join(f'"{q}","{a}",{k}\n' for (q, a), k in zip(ROWS, "xyxxy ", strict=True))
    )
    found = evaluate(f"{trained.folder}@last", tmp_path / "out", data=str(table))
    assert [one.category for one in found.answers()] == ["x", "y", "x", "x", "y", None]
    assert {name: n for name, (n, _) in by_category(found.answers(), "f1").items()} == {"x": 3, "y": 2}


def test_the_limit_of_an_answer(trained: Trained, tmp_path: Path) -> None:
    short = evaluate(f"{trained.folder}@last", tmp_path / "short", split="training", max_tokens=2)
    assert short.scores["ended"].value == 0
    assert all(one.n_tokens == 2 and one.ended is False for one in short.answers())
    assert short.scores["length_ratio"].value < 1
    longer = evaluate(f"{trained.folder}@last", tmp_path / "longer", split="training", max_tokens=4)
    assert short.scores["loss"].value == longer.scores["loss"].value < 1  # of the references all the same


def test_answers_with_a_temperature(trained: Trained, tmp_path: Path) -> None:
    def drawn(name: str, seed: int) -> list[str | None]:
        options = {"temperature": 1.5, "seed": seed, "split": "training"}
        return [one.answer for one in evaluate(f"{trained.folder}@last", tmp_path / name, **options).answers()]

    assert drawn("a", 1) == drawn("b", 1)
    assert drawn("a", 1) != drawn("c", 2)


def test_plain_text_asks_nothing(trained: Trained, tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text("Bees make honey and wax. " * 40)
    found = evaluate(f"{trained.folder}@last", tmp_path / "out", data=str(text))
    assert found.n_questions == 0
    assert list(found.scores) == ["loss", "perplexity", "token_accuracy"]
    assert "no questions" in found.notes[0]
    assert all(one.answer is None and one.scores == {} for one in found.answers())


def test_other_scripts_and_odd_characters(trained: Trained, tmp_path: Path) -> None:
    data = tmp_path / "odd.jsonl"
    rows = [("水是什么？", "氢和氧。"), ("Что это?", "Вода\u2028и лёд."), ("Half?", "a \ud83d b"), ("🙂", "🙂")]
    data.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    found = evaluate(f"{trained.folder}@last", tmp_path / "out", data=str(data), settings={"skip_bad": True})
    assert found.n_samples >= 3
    again = read_answers(tmp_path / "out")
    assert [one.question for one in again][:2] == ["水是什么？", "Что это?"]
    assert all(math.isfinite(estimate.value) for estimate in found.scores.values())


# --- going on, and other settings


class KilledError(Exception):
    pass


def test_what_was_cut_off_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(folder, folder / "whole", split="all")
    asked: list[int] = []

    def counted(stop_after: int) -> Any:
        def answers(model: Any, prompts: Any, **options: Any) -> Iterator[Any]:
            asked.append(len(prompts))
            for n, found in enumerate(given_answers(model, prompts, **options)):
                if n == stop_after:
                    raise KilledError
                yield found

        return answers

    out = folder / "cut"
    for stop_after in (2, 1):
        monkeypatch.setattr(evaluation_run, "given_answers", counted(stop_after))
        with pytest.raises(KilledError):
            evaluate(folder, out, split="all")
        with pytest.raises(GgtuneError, match="not finished"):
            read_evaluation(out)
    with (out / "given.part.jsonl").open("a") as file:
        file.write('{"i": 5, "text": "half a li')  # killed while it was written
    with pytest.raises(OtherSettingsError, match="--max-tokens was 24 and is 12"):
        evaluate(folder, out, split="all", max_tokens=12)
    monkeypatch.setattr(evaluation_run, "losses_of", lambda *_, **__: pytest.fail("the losses are there"))
    monkeypatch.setattr(evaluation_run, "given_answers", counted(100))
    found = evaluate(folder, out, split="all")
    assert asked == [6, 4, 3]
    assert found.scores == whole.scores
    assert [one.to_dict() for one in found.answers()] == [one.to_dict() for one in whole.answers()]
    assert sorted(path.name for path in out.iterdir()) == ["answers.jsonl", "evaluation.json"]


def test_a_finished_one_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluate(folder, generate=False)
    with monkeypatch.context() as patched:
        patched.setattr(evaluation_run, "losses_of", lambda *_, **__: pytest.fail("all is there"))
        assert evaluate(folder, generate=False) == found
        with pytest.raises(OtherSettingsError, match="--generate was False and is True"):
            evaluate(folder)
        with pytest.raises(OtherSettingsError, match="--seed was 0 and is 1"):
            evaluate(folder, generate=False, seed=1)
        with pytest.raises(OtherSettingsError, match="it is of other samples"):
            evaluate(folder, folder / "evaluation/best", generate=False, split="all")
        with pytest.raises(OtherSettingsError, match="it is of another adapter"):
            evaluate(f"{folder}@base", folder / "evaluation/best", generate=False)
    (folder / "evaluation/best/answers.jsonl").unlink()
    with pytest.raises(GgtuneError, match=r"has no answers\.jsonl"):
        evaluate(folder, generate=False)
    again = evaluate(folder, generate=False, overwrite=True)
    assert dataclasses.replace(again, seconds=found.seconds) == found


def test_two_at_once_are_kept_apart(folder: Path) -> None:
    (folder / "evaluation/best").mkdir(parents=True)
    with Lock(folder / "evaluation/best/.answers.jsonl.lock"), pytest.raises(GgtuneError):
        evaluate(folder, generate=False)


def test_lines_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"i": 1}\n{"i": 2}\n{"i"')
    with JsonLines(path) as lines:
        assert lines.before == [{"i": 1}, {"i": 2}]
        lines.write([{"i": 3, "x": math.nan, "y": "\ud83d"}])
    assert path.read_text() == '{"i": 1}\n{"i": 2}\n{"i": 3, "x": null, "y": "?"}\n'


# --- which step


def test_steps_of_a_run(folder: Path) -> None:
    last = open_subject(f"{folder}@last")
    step = last.step
    assert open_subject(f"{folder}@{step}").label == f"step-{step}"
    best = open_subject(str(folder))
    assert (best.label, best.which) == ("best", "best")
    assert best.step is not None
    assert step is not None
    assert best.step < step
    assert open_subject(f"{folder}@base").adapters == ()
    with pytest.raises(GgtuneError, match=rf"has no checkpoint of step 7; it has those of .*{step}"):
        open_subject(f"{folder}@7")
    with pytest.raises(GgtuneError, match="has no merged model"):
        open_subject(f"{folder}@merged")
    shutil.copy(MODEL, folder / "model.gguf")
    assert open_subject(f"{folder}@merged").model == folder / "model.gguf"


def test_a_run_that_goes_on_is_read_by_its_newest_checkpoint(folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    with Lock(Outputs.folder(folder).lock):
        going = open_subject(str(folder))
        assert going.label == f"step-{going.step}" == f"step-{open_subject(f'{folder}@last').step}"
        assert "goes on" in going.reason
        for path in Outputs.folder(folder).checkpoints().values():
            path.unlink()
        (folder / "adapter.gguf").unlink()
        with pytest.raises(GgtuneError, match="no checkpoint yet"):
            open_subject(str(folder))
        assert open_subject(f"{folder}@base").label == "base"
    assert {path.name for path in folder.iterdir()} <= before  # nothing of it is written to


def test_a_run_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    shutil.copy(MODEL, there / "model.gguf")
    monkeypatch.chdir(there)
    trained = train(Path(), model="model.gguf", epochs=1.0)
    assert not Path(trained.config.data).is_absolute()
    monkeypatch.chdir(here)
    found = evaluate(there / "run", generate=False)
    assert found.n_samples == 2


# --- what is refused


def test_a_checkpoint_of_another_model(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    data = bytearray(MODEL.read_bytes())
    data[-100] ^= 1  # a weight
    other.write_bytes(data)
    checkpoint = max(Outputs.folder(folder).checkpoints().items())[1]
    for adapter in (checkpoint, folder / "adapter.gguf"):
        with pytest.raises(GgtuneError, match="was trained on another base"):
            open_subject(f"{other}+{adapter}")
        assert "taken all the same" in open_subject(f"{other}+{adapter}", force=True).warnings[0]
    assert open_subject(f"{MODEL}+{checkpoint}").adapters[0].is_checkpoint
    shape = Path(__file__).parent.parent / "golden/llama-lora.gguf"
    with pytest.raises(GgtuneError, match="is an adapter of another model"):
        evaluate(f"{MODEL}+{shape}", tmp_path / "out", data=_table(tmp_path))
    assert not (tmp_path / "out/evaluation.json").exists()


def _table(folder: Path) -> str:
    path = folder / "rows.csv"
    path.write_text("question,answer\nWhat is ice?,Frozen water.\n")
    return str(path)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("{folder}/adapter.gguf", "is an adapter: give its base with it"),
        ("{folder}/{checkpoint}", "is a checkpoint: give its run's folder and the step"),
        ("{folder}/metrics.jsonl", "not a GGUF file|no GGUF|GGUF"),
        ("{folder}/nothing", "no such file or folder"),
        ("{empty}", "holds no run"),
    ],
)
def test_what_is_no_subject(folder: Path, tmp_path: Path, what: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    checkpoint = max(Outputs.folder(folder).checkpoints().items())[1].name
    with pytest.raises(GgtuneError, match=message):
        open_subject(what.format(folder=folder, empty=tmp_path / "empty", checkpoint=checkpoint))


def test_data_that_can_not_be_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "foreign.csv").write_text("name,price\ntin,3\n")
    (tmp_path / "unanswered.csv").write_text("question,answer\nWhat is ice?,\n")
    for name, message in {
        "empty.csv": "the file is empty",
        "foreign.csv": "no question column found",
        "unanswered.csv": "question or answer is empty",
        "missing.csv": "No such file|no such file|can't be read",
    }.items():
        with pytest.raises(GgtuneError, match=message):
            evaluate(folder, data=str(tmp_path / name))
    with pytest.raises(GgtuneError, match="is no run, which would have its own data: give --data"):
        evaluate(MODEL, tmp_path / "out")
    assert not (folder / "evaluation").exists()


def test_a_run_that_held_nothing_out(tmp_path: Path) -> None:
    trained = train(tmp_path, epochs=1.0, holdout="0")
    with pytest.raises(GgtuneError, match="nothing of it was held out: give --split all"):
        evaluate(trained.folder)
    assert evaluate(trained.folder, split="training", generate=False).n_samples == len(ROWS)


def test_missing_libraries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "sacrebleu"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(
        GgtuneError, match=r"(?s)BLEU.*chrF.*pip install 'ggtune\[scores\]'.*--metrics loss,.*f1,rouge_l"
    ) as told:
        evaluate(folder)
    assert not (folder / "evaluation").exists()
    without = str(told.value).rpartition("--metrics ")[2].split(",")
    assert "bleu" not in without
    found = evaluate(folder, metrics=tuple(without))
    assert set(found.scores) == set(METRICS) - {"bleu", "chrf"}
    assert evaluate(folder, folder / "loss", generate=False).scores.keys() == {"loss", "perplexity", "token_accuracy"}
    with pytest.raises(GgtuneError, match="there is no score accuracy; there are loss"):
        evaluate(folder, metrics=("accuracy",))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "can't read"),
        (lambda text: "[]", "no whole evaluation"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "is of format 2"),
        (lambda text: text.replace('"label"', '"lable"'), "no whole evaluation"),
    ],
)
def test_a_damaged_evaluation(folder: Path, damage: Any, message: str) -> None:
    path = (evaluate(folder, generate=False).folder or Path()) / "evaluation.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(GgtuneError, match=message):
        read_evaluation(path.parent)
    assert evaluations_of(folder) == []


def test_a_damaged_line(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{"row": 1}\n')
    with pytest.raises(GgtuneError, match="line 1 is no answer of an evaluation"):
        read_answers(tmp_path)


def test_answers_as_they_are_written() -> None:
    """As others read them: see docs/evaluation.md."""
    one = AnsweredSample(2, "t.csv:2", "Q", "R", None, 1.5, 3.0, 3, 2, 7, ("R",), "A", True, 4, scores={"f1": 0.5})
    values = one.to_dict()
    assert set(values) == {
        *("row", "where", "question", "reference", "category", "loss", "weight", "n_targets", "n_correct_tokens"),
        *("n_prompt_tokens", "answer", "ended", "n_tokens", "scores"),
    }
    assert AnsweredSample.from_dict(values) == dataclasses.replace(one, references=())
    several = dataclasses.replace(one, references=("R", "S"), repeated=True)
    assert AnsweredSample.from_dict(json.loads(json.dumps(several.to_dict()))) == several
