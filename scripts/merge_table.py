#!/usr/bin/env python3
"""How much of what an adapter learned a merge keeps, for each type of the base: the table of docs/merge.md.

    merge_table.py wordnet-10m-f16.gguf --data chemistry-train.csv

MODEL is an F16 file. One adapter is trained on it, on the first rows of the data. Of each type a base is made by
quantizing all matrices of the layers to it, and the adapter, beside that base, is what merging is held against. The
shares are those of ``ggtune.evaluate.proof`` on some of the rows that were trained on.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from ggtune._native import core
from ggtune.config import TrainConfig
from ggtune.data.samples import Sample
from ggtune.evaluate.proof import Proof, Prover
from ggtune.evaluate.proved_merge import merge_and_prove
from ggtune.evaluate.verify import samples_of
from ggtune.gguf.merge import retyped
from ggtune.run.outputs import Outputs
from ggtune.system import available_threads
from ggtune.train.session import fine_tune

TYPES = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"),
    *("IQ2_S", "IQ3_XXS", "IQ3_S", "BF16"),
)
HEADER = """\
| type of the base | loss of the base | with the live adapter | nearest | without bias | written by `ggtune run` \
| p(end), live and merged | type written |
|---|---|---|---|---|---|---|---|"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="F16 model, a GGUF file")
    parser.add_argument("--data", type=Path, required=True, help="table of questions and answers")
    parser.add_argument("--rows", type=int, default=256, help="rows of it (default 256)")
    parser.add_argument("--proof-rows", type=int, default=32, help="of them, to measure on (default 32)")
    parser.add_argument("--epochs", type=float, default=3.0, help="passes over them (default 3)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (default 1e-3)")
    parser.add_argument("--adapter", help="take this one, which was trained so before")
    parser.add_argument("--types", default=",".join(TYPES), help="types, separated by commas (default: the table's)")
    parser.add_argument("--threads", type=int, default=available_threads())
    return parser.parse_args()


def write_base(source: str, output: Path, ggml_type: str) -> None:
    """Write ``source`` with the matrices of its layers as ``ggml_type``; the other tensors stay."""
    reader = GGUFReader(source)
    writer = GGUFWriter(output, str(reader.fields["general.architecture"].contents()))
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            values = core.quantize(_core_name(ggml_type), np.asarray(tensor.data, np.float32))
            writer.add_tensor(tensor.name, values, raw_dtype=GGMLQuantizationType[ggml_type])
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _core_name(ggml_type: str) -> str:
    """``Q4_K`` as ggml writes it: ``q4_K``."""
    return ggml_type.lower().replace("_k", "_K")


def row(base: Path, adapter: str, samples: list[Sample], ggml_type: str, folder: Path, threads: int) -> str:
    """One line of the table."""
    adapters = [(adapter, 1.0)]
    unasked = [replace(sample, n_prompt=0) for sample in samples]  # losses alone: nothing is answered
    prover = Prover(str(base), adapters, unasked, threads=threads, seconds=12)
    merged = folder / "merged.gguf"

    def proof(rounding: str) -> Proof:
        core.merge(str(base), adapters, str(merged), rounding=rounding, threads=threads)
        return prover.prove(str(merged))

    nearest, unbiased = proof("nearest"), proof("unbiased")
    shipped = merge_and_prove(str(base), adapters, merged, trained=samples, threads=threads, force=True)
    losses = unbiased.trained
    cells = (
        ggml_type,
        f"{losses.base:.3f}",
        f"{losses.live:.3f}",
        *(_percent(each) for each in (nearest, unbiased, shipped.proof)),
        f"{shipped.proof.end_live:.3f}, {shipped.proof.end_merged:.3f}",
        retyped(shipped.counts).rpartition(" ")[2] or "the same",
    )
    return "| " + " | ".join(cells) + " |"


def _percent(proof: Proof) -> str:
    kept = proof.trained.kept
    return "-" if kept is None else f"{100 * kept:.1f} %"


def main() -> None:
    args = parse_arguments()
    started = time.monotonic()

    def progress(text: str) -> None:
        print(f"{time.monotonic() - started:5.0f} s  {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data.csv"
        with args.data.open(encoding="utf-8") as lines:  # its rows have no line breaks inside
            data.write_text("".join(line for _, line in zip(range(args.rows + 1), lines, strict=False)), "utf-8")
        config = TrainConfig(
            model=args.model, data=str(data), holdout="0", epochs=args.epochs, lr=args.lr, threads=args.threads
        )
        adapter = args.adapter
        if adapter is None:
            progress("training")
            fine_tune(config, folder / "run", quiet=True)
            adapter = str(Outputs.folder(folder / "run").adapter)
        samples = samples_of(config).training[: args.proof_rows]
        print(HEADER, flush=True)
        for ggml_type in args.types.split(","):
            progress(ggml_type)
            base = folder / "base.gguf"
            write_base(args.model, base, ggml_type)
            print(row(base, adapter, samples, ggml_type, folder, args.threads), flush=True)
    progress("done")


if __name__ == "__main__":
    main()
