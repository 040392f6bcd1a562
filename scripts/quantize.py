"""Quantize a GGUF model with llama.cpp's own quantizer, as built into ggtune.

python scripts/quantize.py model-f16.gguf model-q4_k_m.gguf Q4_K_M
"""

import os
import sys
from pathlib import Path

import click

from ggtune import _core
from ggtune.errors import GgtuneError


@click.command(help=__doc__)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("file_type", metavar="TYPE")
@click.option("--threads", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default=True)
def main(source: Path, output: Path, file_type: str, threads: int) -> None:
    try:
        _core.quantize_model(str(source), str(output), file_type, threads=threads)
    except GgtuneError as error:
        sys.exit(f"error: {error}")
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB (from {source.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
