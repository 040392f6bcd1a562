"""How much of what an adapter learned is left after merging it into a quantized base model.

python scripts/quantization_share.py base.gguf adapter.gguf data.csv --holdout every:20

Prints the held-out loss per target token of the base model, of the base with the live adapter and of the merged file
(each tensor in the base tensor's own type, or in --outtype), and the share of the gained loss that merging keeps:
(base - merged) / (base - live). Rounding can also help: a share may be above 100 %.
"""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import click

from ggtune import Adapter, Model, Trainer
from ggtune.data.load import load_samples
from ggtune.data.packing import MicroBatch, pack
from ggtune.data.split import hold_out
from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import load_adapter
from ggtune.gguf.merge import merge_adapters
from ggtune.setting_texts import Holdout
from ggtune.system import available_threads

PACKED_TOKENS = 512


def loss(model: Model, adapter: Adapter, batches: Iterable[MicroBatch], context: int, threads: int) -> float:
    """Compute the mean of ``-log p`` over the target tokens, in nats."""
    trainer = Trainer(adapter, context=context, threads=threads)
    results = [trainer.evaluate(*b.arrays) for b in batches]
    return sum(each.loss_sum for each in results) / sum(each.weight_sum for each in results)


def no_adapter(model: Model) -> Adapter:
    """Make an adapter without effect: its B is 0."""
    return Adapter(model, rank=1, alpha=1.0, targets=[model.linears()[0].kind])


@click.command(help=__doc__)
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--holdout", default="every:20", show_default=True, help="As of `ggtune train`, with the same --seed.")
@click.option("--seed", default=0, show_default=True)
@click.option("--ctx", default=512, show_default=True, help="Longest sample in tokens.")
@click.option("--template", help="As of `ggtune train`.")
@click.option("--system", help="As of `ggtune train`.")
@click.option("--outtype", help="Type of the merged tensors (default: the base tensor's own).")
@click.option("--threads", type=click.IntRange(min=1), default=available_threads(), show_default=True)
def main(
    base: Path,
    adapter: Path,
    data: Path,
    holdout: str,
    seed: int,
    ctx: int,
    template: str | None,
    system: str | None,
    outtype: str | None,
    threads: int,
) -> None:
    try:
        model = Model(str(base))
        samples = load_samples(data, model, context=ctx, template=template, system=system).samples
        _, held_out = hold_out(len(samples), Holdout.parse(holdout), seed)
        batches = pack([samples[i] for i in held_out], max(ctx, PACKED_TOKENS))
        if not batches:
            sys.exit("error: no sample is held out")
        before = loss(model, no_adapter(model), batches, ctx, threads)
        live = loss(model, load_adapter(adapter, model), batches, ctx, threads)
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "merged.gguf"
            merge_adapters(str(base), [(str(adapter), 1.0)], output, outtype=outtype, threads=threads)
            model = Model(str(output))
            merged = loss(model, no_adapter(model), batches, ctx, threads)
            del model  # Windows deletes no file that is mapped
    except GgtuneError as error:
        sys.exit(f"error: {error}")
    print(f"{base.name}: {len(held_out)} held-out samples, {sum(batch.n_targets for batch in batches)} target tokens")
    print(f"  base    {before:.5f}")
    print(f"  live    {live:.5f}")
    print(f"  merged  {merged:.5f}")
    if before > live:
        print(f"  held-out loss gain kept: {100 * (before - merged) / (before - live):.2f} %")
    else:
        print("  the adapter gained nothing over the base")


if __name__ == "__main__":
    main()
