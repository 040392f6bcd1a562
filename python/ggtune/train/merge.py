"""Merging adapters into a base model file, with the keys that later steps read."""

from collections.abc import Sequence
from pathlib import Path

from ggtune._native import core
from ggtune.errors import GgtuneError
from ggtune.files import making_folder
from ggtune.system import available_threads
from ggtune.train.adapter_file import ASKED_WITH, check_fits, read_adapter
from ggtune.train.files import open_gguf


def merge_adapters(
    base: str,
    adapters: Sequence[tuple[str, float]],
    output: Path,
    *,
    outtype: str | None = None,
    name: str | None = None,
    threads: int = 0,
) -> dict[str, int]:
    """Write ``base`` with the ``adapters`` (file, factor) merged to ``output``; ``threads`` 0: all available.

    The template and system text that an adapter was trained with go into the file as ``ggtune.template`` and
    ``ggtune.system``, where ``package`` finds them. Raises :class:`GgtuneError` for files that don't fit each other.
    """
    open_gguf(base)
    if output.exists() and output.samefile(base):
        raise GgtuneError(f"{output} is the base model itself: give another --model-out")
    contents = [read_adapter(path) for path, _ in adapters]
    model = core.Model(base)
    metadata = {"general.name": name or output.stem, "general.finetune": Path(adapters[0][0]).stem}
    for (path, _), content in zip(adapters, contents, strict=True):
        check_fits(path, content, model)
        metadata.update({f"ggtune.{key}": content.notes[key] for key in ASKED_WITH if key in content.notes})
    del model
    threads = threads or available_threads()
    with making_folder(output.parent):
        return core.merge(base, list(adapters), str(output), outtype=outtype, metadata=metadata, threads=threads)
