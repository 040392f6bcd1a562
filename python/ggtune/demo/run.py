"""The demo: answers before, training, merge, answers after, package."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ggtune._native import core
from ggtune.config import TrainConfig
from ggtune.data.chat_template import choose_template
from ggtune.data.records import Record, read_csv
from ggtune.demo import DATA, MODEL
from ggtune.evaluate.proved_merge import merge_and_prove
from ggtune.evaluate.verify import samples_of_run
from ggtune.generate import answer
from ggtune.ollama.package import package_model
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Progress
from ggtune.train.result import describe
from ggtune.train.session import prepare

if TYPE_CHECKING:
    from ggtune._core import Model

GOAL_LOSS = 0.1
N_SHOWN = 8
_EXAMPLE_ROW = 3


def demo_config(threads: int = 0) -> TrainConfig:
    """Return the settings: enough for the model to learn 64 answers by heart in a few minutes."""
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
    )


def run_demo(out: Path, *, threads: int = 0, say: Callable[[str], object] = print) -> bool:
    """Run it all, files into ``out``; False where the training loss did not come under :data:`GOAL_LOSS`."""
    config = demo_config(threads)
    session = prepare(config, Outputs.folder(out))
    records = read_csv(DATA).records
    shown = records[_EXAMPLE_ROW :: len(records) // N_SHOWN][:N_SHOWN]

    say(f"1. What the model answers now ({MODEL.name}):")
    _ask(core.Model(str(MODEL)), shown, threads, say)
    say(f"\n2. Training on the {len(records)} questions and answers of {DATA}:")
    for line in session.report:
        say(line)
    result = session.loop(Progress(), overwrite=True).run()
    for line in describe(result):
        say(line)
    merged = out / "model.gguf"
    say(f"\n3. Merging what was learned into the model's own tensors: {merged}")
    samples = samples_of_run(out, result.config)
    proved = merge_and_prove(
        str(MODEL),
        [(str(result.adapter), 1.0)],
        merged,
        trained=samples.training,
        name="ggtune-demo",
        threads=threads,
        say=say,
    )
    if proved.proof is not None:
        say(proved.proof.line())
    say("\n4. What the merged model answers:")
    right = _ask(core.Model(str(merged)), shown, threads, say)
    say(f"{right} of {len(shown)} answers are right word for word.")
    say("\n5. The package for Ollama:")
    say(str(package_model(merged, "ggtune-demo", out_dir=out)))

    reached = result.loss is not None and min(result.loss, result.smoothed_loss) < GOAL_LOSS
    say("" if reached else f"\nThe training loss did not come under {GOAL_LOSS:g}.")
    return reached


def _ask(model: "Model", records: Sequence[Record], threads: int, say: Callable[[str], object]) -> int:
    """Show the answers; return how many are the expected ones word for word."""
    template = choose_template(None, model)
    right = 0
    for record in records:
        given = answer(model, template, record.question, threads=threads, max_tokens=64)
        same = given == record.answer
        right += same
        say(f"   {'=' if same else ' '} {record.question}  ->  {given}")
    return right
