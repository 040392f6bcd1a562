"""How fast data become token samples, and how much memory that takes.

    python scripts/bench_data.py MODEL.gguf                 # 100,000 samples; by stage, then as a whole
    python scripts/bench_data.py MODEL.gguf --gigabytes 2   # memory growth while 2 GB are read

The data (JSON lines of questions and answers, words drawn by a seed) are made in a temporary folder and removed. CPU
seconds stand beside wall-clock seconds: on a loaded machine only these say anything. With ``--words-only`` a stand-in
for the tokenizer (four bytes make a token) shows the memory of very large data in less time: what is kept is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ggtune import Model
from ggtune.data.chat_template import choose_template
from ggtune.data.conversation import Conversation
from ggtune.data.doubts import Inspector
from ggtune.data.encoding import SampleEncoder
from ggtune.data.load import load_samples
from ggtune.data.options import LoadOptions
from ggtune.data.readers.reader import ReadOptions
from ggtune.data.sources import open_source
from ggtune.data.store import StoreBuilder
from ggtune.data.tokenization import TurnEncoder

CONTEXT = 2048
ANSWER_WORDS = 45


class WordsOnly:
    """A tokenizer that takes no time: four bytes of a text make a token."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._end = model.eos_token
        self.chat_template, self.n_vocab, self.add_bos = model.chat_template, 0, model.add_bos
        self.bos_token, self.eos_token = model.bos_token, model.eos_token

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> Any:
        if len(text) < 64:  # tags and end tokens
            return self._model.tokenize(text, add_special=add_special, parse_special=parse_special)
        data = text.encode()
        return np.frombuffer(data[: len(data) // 4 * 4], np.int32) & 0xFFF

    def detokenize(self, tokens: Any, *, special: bool = False) -> bytes:
        return self._model.detokenize(tokens, special=special)

    def is_end_token(self, token: int) -> bool:
        return self._model.is_end_token(token)


def write_data(path: Path, *, n_rows: int = 0, n_bytes: int = 0) -> None:
    """Write rows of a question and an answer, about 400 bytes each."""
    rng = random.Random(0)
    letters = "aabcdeeefghiiklmnnoooprrssttuuvwy"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(5000)]
    stream = rng.choices(words, k=1 << 16)  # cut anywhere: to draw each word would take longer than to read it
    size = row = 0
    with path.open("w") as file:
        while row < n_rows or size < n_bytes:
            row += 1
            start, n = rng.randrange(1 << 15), rng.randint(ANSWER_WORDS // 2, 3 * ANSWER_WORDS // 2)
            question = " ".join(stream[start : start + 12]).capitalize() + f" {row}?"
            answer = " ".join(stream[start + 12 : start + 12 + n]).capitalize()
            size += file.write(json.dumps({"question": question, "answer": answer + "."}) + "\n")


class PeakMemory:
    """Anonymous memory of this process in bytes, looked at ten times a second: what a file's cached pages are not."""

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, self._now())

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status").read_text()
        return sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))


def timed(name: str, n_rows: int, work: Callable[[], Any]) -> Any:
    """Do it and print how fast it was."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"{name:<28} {wall:7.1f} s, {cpu:7.1f} CPU s: {60 * n_rows / wall:12,.0f} rows a minute, "
        f"{60 * n_rows / cpu:12,.0f} a CPU minute",
        flush=True,
    )
    return result


def stages(path: Path, model: Model, n_rows: int) -> None:
    """Time each stage alone, in one thread."""
    template, options = choose_template("model" if model.chat_template else "alpaca", model), LoadOptions(CONTEXT)
    turns, encoder = TurnEncoder(model, template), SampleEncoder(model, template, options)
    rows = timed("read", n_rows, lambda: [i for i in open_source(path, ReadOptions()).items])  # noqa: C416
    chats = [row for row in rows if isinstance(row, Conversation)]
    rendered = timed("render", n_rows, lambda: [template.render_conversation(chat) for chat in chats])
    timed("encode", n_rows, lambda: drain(turns.encode_conversation(one, lambda _: 1.0) for one in rendered))
    inspector, builder = Inspector(), StoreBuilder()
    timed("look for doubts", n_rows, lambda: drain(inspector.add(chat) for chat in chats))
    samples = [sample for chat in chats for sample in encoder.conversation(chat)]
    timed("store", n_rows, lambda: drain(builder.append(sample) for sample in samples))


def drain(results: Iterable[Any]) -> None:
    """Keep none of them."""
    for _ in results:
        pass


def main() -> None:
    """Parse the options and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--gigabytes", type=float, default=0.0, help="as much data, for the memory alone")
    parser.add_argument("--words-only", action="store_true", help="a stand-in for the tokenizer")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    os.environ["GGTUNE_CACHE"] = "off"
    model: Any = Model(options.model, vocab_only=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        write_data(path, n_rows=0 if options.gigabytes else options.rows, n_bytes=int(options.gigabytes * 1e9))
        n_rows = sum(1 for _ in lines(path))
        size, cores, load = path.stat().st_size, len(os.sched_getaffinity(0)), os.getloadavg()[0]
        print(f"{n_rows:,} rows, {size / 1e6:,.0f} MB; {cores} cores, load {load:.0f}", flush=True)
        if not options.gigabytes:
            stages(path, model, n_rows)
        tokenizer = WordsOnly(model) if options.words_only else model
        with PeakMemory() as memory:
            data = timed(
                "all, in threads",
                n_rows,
                lambda: load_samples(path, tokenizer, context=CONTEXT, threads=options.threads),
            )
        n_tokens, grown = int(data.samples.lengths.sum()), (memory.peak - memory.before) / 1e6
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(
            f"{len(data.samples):,} samples, {n_tokens:,} tokens; memory grew by {grown:,.0f} MB at most "
            f"(greatest resident set of the process: {resident:,.0f} MB)"
        )


def lines(path: Path) -> Iterator[bytes]:
    """Give the lines of a file."""
    with path.open("rb") as file:
        yield from file


if __name__ == "__main__":
    main()
