#!/usr/bin/env python3
"""Time of many answers side by side against the same answers one after another.

    bench_generate.py base.gguf --data train.csv

The questions are the first different ones of the data, in the model's own template; with --full, of those whose answers
alone have --tokens tokens, where others may end before. Both ways take the likeliest token, on as many threads; they
are taken in turn, and the shortest time of each is printed with its tokens per second, and the ratio. How many answers
have the same tokens is counted, too: batches of other sizes round differently.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ggtune._native import core
from ggtune.data.chat_template import choose_template
from ggtune.data.question_file import questions_in
from ggtune.data.readers.reader import ReadOptions
from ggtune.data.tokenization import encode_prompt
from ggtune.generate import answers
from ggtune.system import available_threads

if TYPE_CHECKING:
    from ggtune._core import Model

Prompts = Sequence[Sequence[int]]
Tokens = list[tuple[int, ...]]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--data", required=True, help="questions: data, or a text with one on each line")
    parser.add_argument("--questions", type=int, default=200, help="how many (default 200)")
    parser.add_argument("--tokens", type=int, default=32, help="longest answer (default 32)")
    parser.add_argument("--full", action="store_true", help="only questions whose answers don't end before that")
    parser.add_argument("--template", help="default: the model's own, else plain")
    parser.add_argument("--system", help="system text")
    parser.add_argument("--repeat", type=int, default=3, help="times that each is done (default 3)")
    parser.add_argument("--threads", type=int, default=available_threads())
    return parser.parse_args()


def prompts_of(model: "Model", args: argparse.Namespace) -> list[list[int]]:
    """Token ids of the first different questions."""
    template = choose_template(args.template, model)
    questions = dict.fromkeys(text for _, text, _ in questions_in(Path(args.data), ReadOptions()))
    prompts: Iterator[list[int]] = (encode_prompt(model, template, text, args.system).tolist() for text in questions)
    if args.full:

        def is_full(prompt: list[int]) -> bool:
            (tokens,) = one_after_another(model, [prompt], args.tokens, args.threads)
            return len(tokens) == int(args.tokens)

        prompts = filter(is_full, prompts)
    return list(islice(prompts, args.questions))


def one_after_another(model: "Model", prompts: Prompts, n_tokens: int, threads: int) -> Tokens:
    """As ``ggtune ask`` answers one question."""
    return [
        tuple(islice(core.Generator(model, prompt, context=len(prompt) + n_tokens, threads=threads), n_tokens))
        for prompt in prompts
    ]


def side_by_side(model: "Model", prompts: Prompts, n_tokens: int, threads: int) -> Tokens:
    """As everything that has many questions does."""
    found = dict(answers(model, prompts, max_tokens=n_tokens, threads=threads))
    return [found[i].tokens for i in range(len(prompts))]


def main() -> None:
    args = parse_arguments()
    model = core.Model(args.model)
    prompts = prompts_of(model, args)
    ways: dict[str, Callable[[Model, Prompts, int, int], Tokens]] = {
        "one after another": one_after_another,
        "side by side": side_by_side,
    }
    seconds = {name: float("inf") for name in ways}
    found: dict[str, Tokens] = {}
    for _ in range(args.repeat):
        for name, way in ways.items():
            started = time.perf_counter()
            found[name] = way(model, prompts, args.tokens, args.threads)
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    print(f"{len(prompts)} questions of {sum(map(len, prompts))} tokens, {args.threads} threads")
    for name in ways:
        n = sum(map(len, found[name]))
        print(f"{name:18} {seconds[name]:7.2f} s, {n} tokens written, {n / seconds[name]:6.0f} tokens/s")
    same = sum(a == b for a, b in zip(*found.values(), strict=True))
    first, second = seconds.values()
    print(f"{first / second:.1f} times as fast; {same} of {len(prompts)} answers are the same")


if __name__ == "__main__":
    main()
