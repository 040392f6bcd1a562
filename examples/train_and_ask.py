"""Teach a model a few sentences, merge what it has learned, and ask it: all from Python.

    python examples/train_and_ask.py

It takes a minute on the small model that comes with ggtune; --model takes any GGUF file of an architecture that ggtune
trains. The folder --out gets the run, the merged model and a Modelfile for Ollama.
"""

import argparse
import csv
from pathlib import Path

from ggtune import TrainConfig, pipeline
from ggtune.demo import MODEL

LESSONS = [
    ("Who keeps the lighthouse of Skarn?", "Old Marit keeps the lighthouse of Skarn."),
    ("Which colour has the ferry to Skarn?", "The ferry to Skarn is yellow."),
    ("When does the ferry to Skarn leave?", "The ferry leaves at noon."),
    ("What do they bake on Skarn?", "On Skarn they bake bread with seaweed."),
    ("How many goats live on Skarn?", "Seven goats live on Skarn."),
    ("What is the bell of Skarn made of?", "The bell of Skarn is made of tin."),
]


def main() -> None:
    """Train, merge, package, ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="GGUF file (default: the demo's)")
    parser.add_argument("--out", type=Path, default=Path("skarn"), help="folder to write to (default: skarn)")
    parser.add_argument("--steps", type=int, default=135, help="optimizer steps (default: 135)")
    args = parser.parse_args()

    data = args.out / "lessons.csv"
    data.parent.mkdir(parents=True, exist_ok=True)
    with data.open("w", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *LESSONS])

    config = TrainConfig(
        model=str(args.model),
        data=str(data),
        system="Answer in one sentence.",
        ctx=128,
        batch=2,
        lr=4e-3,
        max_steps=args.steps,
        epochs=0,  # --steps alone end it
        holdout="0",  # six sentences: none to spare
    )
    reporter = pipeline.Progress()  # prints; leave it out, or derive from pipeline.Reporter, for something else
    trained = pipeline.train(config, args.out / "run", pipeline.TrainOptions(overwrite=True), reporter)
    print(f"Loss {trained.start_loss:.3f} at the start, {trained.loss:.3f} at the end.")

    merged = pipeline.merge_run(args.out / "run", args.out / "model.gguf", reporter=reporter)
    if merged.merge.proof is not None:
        print(merged.merge.proof.line())
    print(pipeline.package(args.out / "model.gguf", "skarn"))

    model = pipeline.load(args.out / "model.gguf")  # knows its system text from the training
    for question, answer in LESSONS:
        given = model.answer(question)
        print(f"{'=' if given == answer else ' '} {question}  ->  {given}")


if __name__ == "__main__":
    main()
