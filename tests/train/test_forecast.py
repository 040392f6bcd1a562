"""What a run will need: memory against the engine's own figures, time from a trial of each kind of operation."""

import dataclasses
import math
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from ggtune._core import Adapter, Model, Trainer
from ggtune.config import TrainConfig
from ggtune.data.packing import MicroBatch
from ggtune.demo import DATA, MODEL
from ggtune.train import forecast as module
from ggtune.train import placing
from ggtune.train.forecast import Forecast, forecast

GOLDEN = sorted(path for path in (Path(__file__).parents[1] / "golden").glob("*.gguf") if "-lora" not in path.stem)


def micro_batch(n_tokens: int, n_sequences: int = 1) -> MicroBatch:
    rows = np.arange(n_tokens, dtype=np.int32)
    length = -(-n_tokens // n_sequences)
    return MicroBatch(
        tokens=rows % 7 + 1,
        positions=rows % length,
        sequences=rows // length,
        targets=rows % 5 + 1,
        weights=np.ones(n_tokens, np.float32),
        samples=tuple(range(n_sequences)),
    )


def seconds(engine: Trainer, batch: MicroBatch) -> float:
    return engine.predict_seconds(*batch.arrays)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_operation_can_be_tried(path: Path) -> None:
    """Of the header alone, with layers computed again, dropout and every precision."""
    model = Model(str(path), header_only=True)
    adapter = Adapter(model, rank=2, alpha=2.0, targets=sorted({linear.kind for linear in model.linears()}))
    for precision in ("auto", "f32", "llama.cpp"):
        engine = Trainer(adapter, context=24, threads=2, dropout=0.1, precision=precision)
        for engine.recompute_layers in (0, model.n_layer):
            assert 0 < seconds(engine, micro_batch(40, 2)) < 60


def test_a_trial_changes_nothing() -> None:
    model = Model(str(MODEL))
    adapter = Adapter(model, rank=2, alpha=2.0, targets=["attn_q", "attn_k", "attn_v"])
    engine = Trainer(adapter, context=64, threads=1)
    batch = micro_batch(48)
    first = engine.accumulate(*batch.arrays)
    before = {name: values.copy() for name, values in engine.gradients().items()}
    seconds(engine, micro_batch(64, 4))
    assert all(np.array_equal(before[name], values) for name, values in engine.gradients().items())
    assert engine.n_micro_batches == 1
    engine.zero_gradients()
    engine.n_micro_batches = 0
    assert np.array_equal(engine.accumulate(*batch.arrays).log_probs, first.log_probs)


def test_without_targets_nothing_is_computed() -> None:
    model = Model(str(MODEL), header_only=True)
    engine = Trainer(Adapter(model, rank=2, alpha=2.0, targets=["attn_q"]), context=64, threads=1)
    batch = micro_batch(8)
    batch.weights[:] = 0
    assert seconds(engine, batch) == 0


def test_lengths_between_those_tried_are_interpolated() -> None:
    """And each target counts, whatever the targets of the batches that were tried."""

    class Engine:
        calls = 0

        def predict_seconds(self, tokens: np.ndarray, *arrays: np.ndarray, gradients: bool) -> float:
            self.calls += 1
            return (1.0 + 0.5 * len(tokens)) * (1 + gradients) + 0.25 * np.count_nonzero(arrays[-1])

    batches = []
    for n, n_targets in ((64, 3), (10, 10), (33, 1), (64, 60), (50, 20), (21, 7)):
        batches.append(micro_batch(n))
        batches[-1].weights[:-n_targets] = 0
    engine = Engine()
    for gradients in (False, True):
        engine.calls = 0
        total = module._seconds(engine, batches, gradients=gradients)  # type: ignore[arg-type]
        expected = sum((1.0 + 0.5 * b.n_tokens) * (1 + gradients) + 0.25 * b.n_targets for b in batches)
        assert total == pytest.approx(expected)
        assert engine.calls == 4


def config(**values: object) -> TrainConfig:
    return TrainConfig(model=str(MODEL), data=str(DATA), ctx=64, rank=4, batch=8, **values)  # type: ignore[arg-type]


def test_forecast_of_the_demo() -> None:
    found = forecast(config(epochs=2.0, holdout="8"))
    assert found.steps_per_epoch == 7
    assert found.total_steps == 14
    assert found.fits
    assert found.seconds_per_step is not None
    assert math.isfinite(found.seconds_per_step)
    assert found.seconds_per_step > found.held_out_s > 0
    assert found.memory_bytes["checkpoint"] == 3 * found.memory_bytes["adapter"]
    again = forecast(config(epochs=2.0, holdout="8", recompute="layers"))
    assert again.memory_bytes["compute"] < found.memory_bytes["compute"]
    assert again.recompute_layers == again.n_layer - 1


def test_what_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "available_memory", lambda: 1 << 20)
    monkeypatch.setattr(module, "_seconds", None)
    found = forecast(config(epochs=2.0, holdout="8"))
    assert found.seconds_per_step is None
    lines = found.lines(datetime(2030, 1, 1))
    assert "it does NOT fit" in lines[0]
    assert lines[-1] == "Steps: 14; their time was not tried"


def example(**values: object) -> Forecast:
    return dataclasses.replace(
        Forecast(
            memory_bytes={"weights": 3 << 30, "compute": 1 << 30},
            available_bytes=5 << 30,
            n_layer=4,
            recompute_layers=0,
            seconds_per_step=2.5,
            held_out_s=1.0,
            steps_per_epoch=10,
            total_steps=100,
            micro_batches_per_step=1.5,
            tokens_per_step=500.0,
        ),
        **values,  # type: ignore[arg-type]
    )


def test_lines() -> None:
    text = "\n".join(example().lines(datetime(2030, 1, 1, 23, 58)))
    assert "4.0 GiB at the peak, 5.0 GiB are free: it fits" in text
    assert "about 2.50 s for 500 tokens in 1.50 micro-batches (200 tokens/s)" in text
    assert "0:04:21 in all, started now it ends about 2030-01-02 00:02" in text  # with 11 evaluations
    endless = "\n".join(example(total_steps=None).lines(datetime(2030, 1, 1)))
    assert "no last step: it runs until it is stopped" in endless
    small = "\n".join(example(available_bytes=2 << 30, seconds_per_step=None).lines(datetime(2030, 1, 1)))
    assert "2.0 GiB are free: it does NOT fit; a smaller --ctx or --rank, or --recompute needs less" in small
    uncut = example(available_bytes=2 << 30, seconds_per_step=None, can_recompute=False)
    assert "a smaller --ctx or --rank needs less" in uncut.lines(datetime(2030, 1, 1))[0]
    mixture = example(available_bytes=2 << 30, experts="5.00M for experts, which take 80.0 MB")
    lines = mixture.lines(datetime(2030, 1, 1))
    assert "or --targets dense (of the adapter's parameters are 5.00M for experts" in lines[0]
    assert any("5.00M for experts, which take 80.0 MB" in line for line in lines[1:])


def test_answers_are_accounted_for_apart() -> None:
    """What is measured beside the steps has its own time and memory; the time of all of it is in the run's."""
    plain = forecast(config(epochs=2.0, holdout="8"))
    found = forecast(config(epochs=2.0, holdout="8", eval_every="2", sample_every="0.5ep", early_stop_metric="f1"))
    assert found.measured is not None
    # before the training, and after steps 2, 4 ... 14; before it, and four times
    assert (found.measured.n_evaluations, found.measured.n_rounds) == (8, 5)
    assert (found.measured.n_scored, found.measured.n_questions) == (8, 3)
    assert found.memory_bytes["answers"] == found.measured.answer_bytes > 8 << 20
    assert "answers" not in plain.memory_bytes
    assert found.samples_s > 0
    assert found.scored_s > 0
    lines = found.lines(datetime(2030, 1, 1))
    (evaluation,) = [line for line in lines if line.startswith("Evaluation: ")]
    assert f"{found.held_out_s + found.scored_s:.2f} s each, 8 times" in evaluation
    assert "for 8 answers" in evaluation
    (samples,) = [line for line in lines if line.startswith("Sample answers: ")]
    assert "for 3 questions, 5 times" in samples
    long = dataclasses.replace(found, seconds_per_step=1.0, held_out_s=2.0, scored_s=3.0, samples_s=10.0)
    assert "0:01:44 in all" in "\n".join(long.lines(datetime(2030, 1, 1)))  # 14 steps, 8 x 5 s, 5 x 10 s
    (line,) = [line for line in plain.lines(datetime(2030, 1, 1)) if line.startswith("Evaluation: ")]
    assert "3 times" in line
    assert "no memory beside the training's" in line


def test_the_first_lines_say_what_is_measured() -> None:
    from ggtune.run.outputs import Outputs
    from ggtune.train.session import prepare

    report = prepare(config(epochs=2.0, holdout="8", sample_every="1ep"), Outputs.folder(Path("nowhere"))).report
    (evaluation,) = [line for line in report if line.startswith("Evaluation: ")]
    assert "8 samples" in evaluation
    assert "3 times, each about as long as" in evaluation
    (samples,) = [line for line in report if line.startswith("Sample answers: ")]
    assert "3 questions, 3 times" in samples
