"""Checkpoints: one GGUF file with all that a run needs to go on as if it had never stopped.

Tensors: ``<base>.lora_a`` and ``.lora_b`` (the adapter), each with ``.m`` and ``.v`` (AdamW's moments). Keys:
``general.architecture`` (the base's), ``adapter.lora.alpha`` and ``ggtune.checkpoint.*``: ``state`` (JSON of
:class:`State`), ``config`` (JSON of :class:`~ggtune.config.TrainConfig`) and ``sha256`` over all of these.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.train.adapter_file import AdapterFile, FloatArray
from ggtune.train.files import open_gguf, read_text_field, replacing
from ggtune.train.outputs import numbered

_KEY = "ggtune.checkpoint."
_VERSION = 1


class CheckpointError(GgtuneError):
    """A checkpoint that is damaged, or of another run."""


@dataclass(frozen=True)
class State:
    """Where a run stands after a whole step; sample order and dropout masks follow from seed and counters."""

    step: int  # optimizer steps taken
    n_micro_batches: int
    epoch: int  # from 0
    cursor: int  # steps taken of this epoch
    model_fingerprint: str
    data_fingerprint: str
    monitor: Mapping[str, Any] = field(default_factory=dict)
    pending: Mapping[str, Any] | None = None  # the last step's metrics where its held-out loss is still to be measured
    elapsed_s: float = 0.0
    notes: Mapping[str, str] = field(default_factory=dict)  # go into the adapter file


@dataclass(frozen=True)
class Checkpoint:
    """Adapter, moments (by adapter tensor name), state and settings."""

    adapter: AdapterFile
    moments: Mapping[str, tuple[FloatArray, FloatArray]]
    state: State
    config: TrainConfig


def _digest(architecture: str, alpha: float, texts: list[str], tensors: Mapping[str, FloatArray]) -> str:
    digest = hashlib.sha256(json.dumps([_VERSION, architecture, float(np.float32(alpha)), *texts]).encode())
    for name in sorted(tensors):
        digest.update(json.dumps([name, tensors[name].shape]).encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write beside, flush, rename. Raises :class:`GgtuneError` where it can't be written."""
    adapter = checkpoint.adapter
    tensors = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in adapter.tensors.items()}
    for name, (first, second) in checkpoint.moments.items():
        tensors[name + ".m"] = np.ascontiguousarray(first, dtype=np.float32)
        tensors[name + ".v"] = np.ascontiguousarray(second, dtype=np.float32)
    texts = [json.dumps(asdict(checkpoint.state)), checkpoint.config.to_json()]
    with replacing(Path(path)) as temporary:
        writer = gguf.GGUFWriter(temporary, adapter.architecture)
        writer.add_string("general.type", "ggtune-checkpoint")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.alpha)
        writer.add_uint32(_KEY + "version", _VERSION)
        writer.add_string(_KEY + "state", texts[0])
        writer.add_string(_KEY + "config", texts[1])
        writer.add_string(_KEY + "sha256", _digest(adapter.architecture, adapter.alpha, texts, tensors))
        for name, values in tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and verify. Raises :class:`CheckpointError` for a file that is no whole checkpoint."""
    reader = open_gguf(path)
    version = reader.get_field(_KEY + "version")
    if version is None:
        raise CheckpointError(f"{path} is not a checkpoint of ggtune")
    if version.contents() != _VERSION:
        raise CheckpointError(f"{path} is a checkpoint of version {version.contents()}; this ggtune reads {_VERSION}")
    architecture = read_text_field(reader, "general.architecture")
    texts = [read_text_field(reader, _KEY + "state"), read_text_field(reader, _KEY + "config")]
    alpha_field = reader.get_field(gguf.Keys.Adapter.LORA_ALPHA)
    alpha = float(alpha_field.contents()) if alpha_field else 0.0
    tensors = {t.name: np.array(t.data) for t in reader.tensors}
    if _digest(architecture, alpha, texts, tensors) != read_text_field(reader, _KEY + "sha256"):
        raise CheckpointError(f"{path} is damaged: its checksum is wrong. Go on from an older checkpoint.")
    names = [name for name in tensors if name.endswith((".lora_a", ".lora_b"))]
    state = State(**json.loads(texts[0]))
    return Checkpoint(
        AdapterFile(architecture, alpha, {name: tensors[name] for name in names}, state.notes),
        {name: (tensors[name + ".m"], tensors[name + ".v"]) for name in names},
        state,
        TrainConfig.from_dict(json.loads(texts[1])),
    )


def newest_checkpoint(pattern: Path) -> tuple[Path, Checkpoint, list[str]] | None:
    """Find the newest whole checkpoint; the list says of each newer one what is wrong with it."""
    damaged: list[str] = []
    for _, path in sorted(numbered(pattern).items(), reverse=True):
        try:
            return path, load_checkpoint(path), damaged
        except GgtuneError as error:
            damaged.append(str(error))
    if damaged:
        raise CheckpointError("no whole checkpoint: " + "; ".join(damaged))
    return None


def remove_old_checkpoints(pattern: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest (0: remove none)."""
    if keep and "ITERATION" in pattern.name:
        for _, path in sorted(numbered(pattern).items())[:-keep]:
            path.unlink(missing_ok=True)
