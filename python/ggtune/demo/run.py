"""The demo: answers before, training, merge, answers after, package."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ggtune import pipeline
from ggtune.config import TrainConfig
from ggtune.data.records import Record, read_csv
from ggtune.demo import DATA, MODEL
from ggtune.evaluate.verify import samples_of_run

GOAL_LOSS = 0.1
N_SHOWN = 8
_EXAMPLE_ROW = 3


def demo_config(threads: int = 0, settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """Return the settings: enough for the model to learn 64 answers by heart in a few minutes; ``settings`` on top."""
    return TrainConfig(
        model=str(MODEL),
        data=str(DATA),
        holdout="0",
        ctx=256,
        batch=8,
        epochs=60,
        lr=4e-3,
        warmup=0.05,
        rank=16,
        stop_loss=GOAL_LOSS,
        stop_patience=8,  # a whole epoch
        threads=threads,
        **(settings or {}),
    )


def run_demo(
    out: Path, *, threads: int = 0, settings: Mapping[str, Any] | None = None, reporter: pipeline.Reporter
) -> bool:
    """Run it all, files into ``out``; False where the training loss did not come under :data:`GOAL_LOSS`.

    ``settings`` are those of the training, beside :func:`demo_config`'s.
    """
    say = reporter.note
    outputs = pipeline.claim_folder(out, overwrite=True)
    records = read_csv(DATA).records
    shown = records[_EXAMPLE_ROW :: len(records) // N_SHOWN][:N_SHOWN]

    say(f"1. What the model answers now ({MODEL.name}):")
    _ask(MODEL, shown, threads, say)
    say(f"\n2. Training on the {len(records)} questions and answers of {DATA}:")
    result = pipeline.train(demo_config(threads, settings), outputs, pipeline.TrainOptions(overwrite=True), reporter)
    merged = out / "model.gguf"
    say(f"\n3. Merging what was learned into the model's own tensors: {merged}")
    options = pipeline.MergeOptions(name="ggtune-demo", threads=threads)
    samples = samples_of_run(out, result.config)
    proved = pipeline.merge(MODEL, [(result.adapter, 1.0)], merged, options, samples=samples, reporter=reporter)
    if proved.proof is not None:
        say(proved.proof.line())
    say("\n4. What the merged model answers:")
    right = _ask(merged, shown, threads, say)
    say(f"{right} of {len(shown)} answers are right word for word.")
    say("\n5. The package for Ollama:")
    say(str(pipeline.package(merged, "ggtune-demo", pipeline.PackageOptions(out=out))))

    reached = result.loss is not None and min(result.loss, result.smoothed_loss) < GOAL_LOSS
    say("" if reached else f"\nThe training loss did not come under {GOAL_LOSS:g}.")
    return reached


def _ask(model: Path, records: Sequence[Record], threads: int, say: Callable[[str], object]) -> int:
    """Show the answers; return how many are the expected ones word for word."""
    loaded = pipeline.load(model, pipeline.AskOptions(threads=threads, max_tokens=64))
    right = 0
    for record in records:
        given = loaded.answer(record.question)
        same = given == record.answer
        right += same
        say(f"   {'=' if same else ' '} {record.question}  ->  {given}")
    return right
