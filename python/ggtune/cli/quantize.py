"""``ggtune quantize``."""

from pathlib import Path
from typing import Any

import click


@click.command("quantize")
@click.argument("source", metavar="SRC")
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.argument("file_type", metavar="TYPE")
@click.option("--imatrix", help="Importance matrix, of llama-imatrix or --imatrix-out.", metavar="FILE")
@click.option(
    "--imatrix-data",
    type=click.Path(path_type=Path),
    help="Training data to gather an importance matrix from.",
    metavar="FILE",
)
@click.option("--imatrix-out", type=click.Path(path_type=Path), help="Write the gathered one here.", metavar="FILE")
@click.option("--template", help="Prompt template of that data (default: the model's own).", metavar="NAME")
@click.option("--system", help="System text of that data.", metavar="TEXT")
@click.option("-c", "--ctx", type=click.IntRange(min=1), default=512, show_default=True, help="Its longest sample.")
@click.option(
    "--imatrix-samples", type=click.IntRange(min=0), default=0, help="Take so many of its samples (default: all)."
)
@click.option("--process-output", is_flag=True, help="Gather for the output layer too; better left out.")
@click.option("--allow-requantize", is_flag=True, help="Take a source that is quantized already: it loses twice.")
@click.option("--pure", is_flag=True, help="Give all matrices the one type, without a mixture.")
@click.option("--leave-output-tensor", is_flag=True, help="Leave output.weight as it is.")
@click.option("--output-tensor-type", help="Type of output.weight, e.g. q8_0.", metavar="TYPE")
@click.option("--token-embedding-type", help="Type of token_embd.weight.", metavar="TYPE")
@click.option("-t", "--threads", type=click.IntRange(min=0), default=0, help="Threads (default: all available).")
def command(
    source: str,
    output: Path,
    file_type: str,
    imatrix: str | None,
    imatrix_data: Path | None,
    imatrix_out: Path | None,
    template: str | None,
    system: str | None,
    ctx: int,
    imatrix_samples: int,
    process_output: bool,
    threads: int,
    **options: Any,
) -> None:
    """Quantize the model SRC to a file OUT of TYPE: Q4_K_M, Q8_0, IQ2_XXS, MXFP4_MOE and all others of llama.cpp.

    SRC is best an F16, BF16 or F32 file. The smallest types need an importance matrix, which says what inputs of each
    weight matter; the others gain by one.
    """
    from ggtune.gguf.io import gguf_structure
    from ggtune.interchange.imatrix import read_imatrix, write_imatrix
    from ggtune.interchange.quantize import (
        ImatrixData,
        QuantizeOptions,
        check_file_type,
        imatrix_from_data,
        is_quantized,
        quantize_file,
    )
    from ggtune.system import format_bytes

    if imatrix and imatrix_data:
        raise click.UsageError("--imatrix and --imatrix-data exclude each other.")
    if imatrix_out and not imatrix_data:
        raise click.UsageError("--imatrix-out writes what --imatrix-data gathers: give that too.")
    check_file_type(file_type)
    given = QuantizeOptions(threads=threads, **options)
    if is_quantized(source) and given.allow_requantize:
        click.echo(f"Warning: {source} is quantized already; what it lost is lost a second time.", err=True)
    matrix = read_imatrix(imatrix) if imatrix else None
    if imatrix_data:
        data = ImatrixData(imatrix_data, template, system, ctx, imatrix_samples, process_output)
        matrix, report = imatrix_from_data(source, data, threads=threads, progress=_bar)
        for line in report:
            click.echo(line)
        click.echo(f"Importance matrix: {len(matrix.entries)} weights, {matrix.n_chunks} samples")
        if imatrix_out:
            write_imatrix(imatrix_out, matrix, gguf_structure(source).text("general.architecture"))
            click.echo(f"Wrote {imatrix_out}")
    quantize_file(
        source, output, file_type, given, imatrix=matrix, imatrix_file=str(imatrix or imatrix_out or imatrix_data or "")
    )
    before, after = Path(source).stat().st_size, output.stat().st_size
    click.echo(f"Wrote {output}: {file_type.upper()}, {format_bytes(after)} (from {format_bytes(before)})")


def _bar(texts: list[Any]) -> Any:
    from tqdm import tqdm

    return tqdm(texts, desc="importance matrix", unit="sample", disable=None)
