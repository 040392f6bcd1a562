"""Feed mutated files to every parser: only the documented exceptions may come out, and soon.

    python scripts/fuzz.py --examples 20000
    python scripts/fuzz.py --targets checkpoint csv --examples 200

Inputs are read in child processes; a crash, a hang or an undocumented exception is a finding. Findings, as --keep
collects them, go into tests/fuzz/corpus/<target>; those of models and adapters are recipes (fuzzing/gguf_edits.py).
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzzing import native, worker
from fuzzing.strategies import mutated, recipe_strategies, recipes
from ggtune._native import core
from ggtune.config import TrainConfig
from ggtune.data.chat_template import ChatTemplate
from ggtune.data.load import load_samples
from ggtune.data.records import read_csv
from ggtune.data.sft import read_sft
from ggtune.data.templates import TEMPLATES
from ggtune.demo import DATA, MODEL
from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import AdapterFile, read_adapter, write_adapter
from ggtune.gguf.header import read_header
from ggtune.gguf.io import gguf_structure, write_gguf
from ggtune.ollama.modelfile import Modelfile
from ggtune.run import checkpoint as checkpoints

ROOT = Path(__file__).resolve().parents[1]
BATCH = 200


class Target(NamedTuple):
    """What reads a file, and what draws one."""

    read: worker.Reader
    inputs: st.SearchStrategy[bytes]


def checkpoint_seed() -> checkpoints.Checkpoint:
    tensors = {f"blk.0.attn_q.weight.lora_{side}": np.ones((2, 2), dtype=np.float32) for side in "ab"}
    state = checkpoints.State(3, 3, 0, 3, "model", "data", {"held_out": None}, None, 1.0, {"template": "plain"})
    moments = {name: (values, values) for name, values in tensors.items()}
    return checkpoints.Checkpoint(AdapterFile("llama", 2.0, tensors), moments, state, TrainConfig(model="m", data="d"))


def bytes_of(write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "seed")
        return (Path(folder) / "seed").read_bytes()


def read_crafted_checkpoint(path: Path) -> None:
    """Two JSON texts with a line between them, as state and configuration of a checkpoint whose checksum is right."""
    whole = checkpoint_seed()
    state, _, config = path.read_bytes().decode("utf-8", "replace").replace("\0", "").partition("\n")
    texts = [state, config]
    tensors = dict(whole.adapter.tensors)
    for name, pair in whole.moments.items():
        tensors |= {f"{name}.{which}": values for which, values in zip("mv", pair, strict=True)}
    keys: dict[str, Any] = {
        "adapter.lora.alpha": 2.0,
        "ggtune.checkpoint.version": 1,
        "ggtune.checkpoint.state": state,
        "ggtune.checkpoint.config": config,
        "ggtune.checkpoint.sha256": checkpoints._digest("llama", 2.0, texts, tensors),
    }
    crafted = path.with_name("crafted.gguf")
    write_gguf(crafted, "llama", keys, tensors)
    checkpoints.load_checkpoint(crafted)


def read_model(path: Path) -> None:
    try:
        core.check_gguf(str(path))
    except GgtuneError:
        core.check_gguf(str(path), vocab_only=True)
    core.Model(str(path), vocab_only=True)


def read_headers(path: Path) -> None:
    gguf_structure(path)
    read_header(path)


def render(path: Path) -> None:
    template = ChatTemplate(
        path.read_bytes().decode("utf-8", "replace"), bos="<s>", eos="</s>", end_of=lambda text: text
    )
    template.render("System.", "Question?", "Answer.")


class Targets:
    """Name of each target: what reads a file, and what to mutate."""

    def __init__(self) -> None:
        # loaded once: its vocabulary serves every input
        self._tokenizer = core.Model(str(MODEL), vocab_only=True)
        seed_checkpoint = checkpoint_seed()
        adapter = bytes_of(lambda path: write_adapter(path, seed_checkpoint.adapter))
        checkpoint = bytes_of(lambda path: checkpoints.save_checkpoint(path, seed_checkpoint))
        model = (ROOT / "tests/golden/llama.gguf").read_bytes()
        table = DATA.read_bytes()[:600]
        odd_table = b'\xef\xbb\xbfquestion;answer;system\r\n"a ""b""\nc";d;e\r\n;x;\r\n'
        text = b"<SFT><s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhy? [/INST] So. </s>\n"
        text += b"<SFT><s>[INST] When? [/INST] Now. </s>\n"
        modelfile = b'FROM ./m.gguf\nTEMPLATE """{{ .Prompt }}"""\nSYSTEM "x"\n'
        modelfile += b'PARAMETER stop "</s>"\nPARAMETER num_ctx 4\n# c\n'
        jinja = (
            b"{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m.content }}{% else %}"
            b"[{{ m['role'] | upper }}] {{ m['content'].strip() }}{{ eos_token if loop.last }}{% endif %}"
            b"{% endfor %}{{ 'x' * 3 }}"
        )
        config = json.dumps(seed_checkpoint.config.to_dict()).encode()
        state = json.dumps(asdict(seed_checkpoint.state)).encode()
        seeds: dict[str, tuple[worker.Reader, list[bytes]]] = {
            "model": (read_model, [model]),
            "header": (read_headers, [model[: 64 << 10], adapter, checkpoint]),
            "adapter": (read_adapter, [adapter]),
            "checkpoint": (checkpoints.load_checkpoint, [checkpoint]),
            "checkpoint-content": (read_crafted_checkpoint, [state + b"\n" + config]),
            "csv": (read_csv, [table, odd_table]),
            "data": (self._load, [table, odd_table, text, b"Plain text, of two lines.\nThis one is the second.\n"]),
            "sft": (lambda path: read_sft(path, TEMPLATES["llama2"]), [text]),
            "modelfile": (lambda path: Modelfile.parse(path.read_bytes().decode("utf-8", "replace")), [modelfile]),
            "template": (render, [jinja]),
        }
        self.all = {name: Target(read, mutated(files)) for name, (read, files) in seeds.items()}
        for name, reader, files in (
            ("use-adapter", native.use_adapter, {"adapter": "-lora.gguf"}),
            ("merge", native.merge, {"model": ".gguf", "adapter": "-lora.gguf"}),
            ("load-model", native.load_model, {"model": ".gguf"}),
            ("quantize", native.quantize, {"model": ".gguf"}),
        ):
            self.all[name] = Target(reader, recipes(recipe_strategies(native.GOLDEN, files)))

    def _load(self, path: Path) -> None:
        load_samples(path, self._tokenizer, context=32, template=None if b"SFT" in path.read_bytes() else "alpaca")


def campaign(name: str, target: Target, examples: int, start: int) -> list[bytes]:
    """Return the inputs that gave something else; one for each kind of trouble."""
    counts: Counter[str] = Counter()
    findings: dict[str, bytes] = {}
    begin = time.monotonic()
    pending: list[bytes] = []

    def run_pending() -> None:
        for data, outcome in zip(pending, worker.run(target.read, pending), strict=True):
            counts[outcome if outcome in worker.FINE else "WRONG"] += 1
            if outcome not in worker.FINE and len(findings.setdefault(outcome, data)) > len(data):
                findings[outcome] = data
        pending.clear()

    @seed(start)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def one(data: bytes) -> None:
        pending.append(data)
        if len(pending) == BATCH:
            run_pending()

    one()
    run_pending()
    said = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
    print(f"{name}: {sum(counts.values())} inputs, {said}; {time.monotonic() - begin:.0f} s", flush=True)
    for what, data in findings.items():
        print(f"  {what}\n    {data[:300]!r}", flush=True)
    return list(findings.values())


def main() -> None:
    targets = Targets().all
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=list(targets), default=list(targets))
    parser.add_argument("--examples", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--keep", type=Path, help="folder for the inputs that were found")
    given_options = parser.parse_args()
    print(f"seed {given_options.seed}")
    n_findings = 0
    for name in given_options.targets:
        findings = campaign(name, targets[name], given_options.examples, given_options.seed)
        n_findings += len(findings)
        for n, data in enumerate(findings if given_options.keep else []):
            folder = given_options.keep / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{given_options.seed}-{n}").write_bytes(data)
    sys.exit(1 if n_findings else 0)


if __name__ == "__main__":
    main()
