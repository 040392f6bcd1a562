"""A model file quantized to another type, with or without an importance matrix."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggtune._native import core
from ggtune.data.load import load_samples
from ggtune.errors import GgtuneError
from ggtune.files import making_folder
from ggtune.gguf.io import gguf_structure
from ggtune.interchange.imatrix import Imatrix, gather_imatrix
from ggtune.system import resolved_threads

_Progress = Callable[[list[NDArray[np.int32]]], Iterable[NDArray[np.int32]]]


@dataclass(frozen=True)
class ImatrixData:
    """Training data to gather an importance matrix from, read and rendered as a training does."""

    path: Path
    template: str | None = None
    system: str | None = None
    context: int = 512
    max_samples: int = 0  # 0: all; else so many, spread over the file
    process_output: bool = False


def imatrix_from_data(
    model: str, data: ImatrixData, *, threads: int = 0, progress: _Progress = iter
) -> tuple[Imatrix, list[str]]:
    """Gather an importance matrix from the samples of ``data``; also returns what its reader has to say.

    Raises :class:`ggtune.errors.DataError` for bad data, :class:`GgtuneError` for a model that can't be used.
    """
    gguf_structure(model)
    loaded = core.Model(model)
    dataset = load_samples(
        data.path, loaded, context=data.context, template=data.template, system=data.system, too_long="cut"
    )
    texts = [sample.tokens[: data.context] for sample in dataset.samples]
    if 0 < data.max_samples < len(texts):
        texts = [texts[i] for i in np.linspace(0, len(texts) - 1, data.max_samples).astype(int)]
    imatrix = gather_imatrix(
        loaded,
        progress(texts),
        context=min(data.context, max(len(text) for text in texts)),
        threads=threads,
        dataset=str(data.path),
        process_output=data.process_output,
    )
    return imatrix, dataset.report.lines()


@dataclass(frozen=True)
class QuantizeOptions:
    """What ``llama-quantize`` takes beside source, output and type."""

    threads: int = 0  # 0: all available
    allow_requantize: bool = False
    pure: bool = False
    leave_output_tensor: bool = False
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None


def quantize_file(
    source: str,
    output: Path,
    file_type: str,
    options: QuantizeOptions,
    *,
    imatrix: Imatrix | None = None,
    imatrix_file: str = "",
) -> None:
    """Write ``source`` as ``file_type`` ("Q4_K_M", ...) to ``output``, whole or not at all.

    Raises :class:`GgtuneError` that names the tensor which can't be written so, :class:`ggtune.errors.ModelError` for a
    source that can't be read.
    """
    check_file_type(file_type)
    with making_folder(output.parent):
        core.quantize_model(
            source,
            str(output),
            file_type,
            threads=resolved_threads(options.threads),
            imatrix=imatrix.means() if imatrix else {},
            imatrix_source=(imatrix_file, imatrix.datasets[0] if imatrix.datasets else "", imatrix.n_chunks)
            if imatrix
            else ("", "", 0),
            allow_requantize=options.allow_requantize,
            pure=options.pure,
            leave_output_tensor=options.leave_output_tensor,
            output_tensor_type=options.output_tensor_type,
            token_embedding_type=options.token_embedding_type,
        )


def check_file_type(file_type: str) -> None:
    """Raise :class:`GgtuneError` with the names that there are for a file type that there is not."""
    if file_type.upper() not in core.file_types():
        raise GgtuneError(f"there is no file type {file_type!r}; there are {', '.join(core.file_types())}")


def is_quantized(path: str) -> bool:
    """Whether any weight of the model file is quantized. Raises :class:`ggtune.errors.ModelError`."""
    return any(tensor.type_name not in ("F32", "F16", "BF16", "F64") for tensor in gguf_structure(path).tensors)
