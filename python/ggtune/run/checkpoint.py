"""Checkpoints: one GGUF file with all that a run needs to go on as if it had never stopped.

Tensors: ``<base>.lora_a`` and ``.lora_b`` (the adapter), each with ``.m`` and ``.v`` (AdamW's moments). Keys:
``general.architecture`` (the base's), ``adapter.lora.alpha`` and ``ggtune.checkpoint.*``: ``state`` (JSON of
:class:`State`), ``config`` (JSON of :class:`~ggtune.config.TrainConfig`) and ``sha256`` over all of these.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import AdapterFile, FloatArray
from ggtune.gguf.io import KeyValue, gguf_structure, write_gguf
from ggtune.run.outputs import numbered

if TYPE_CHECKING:
    from ggtune._core import Trainer

_KEY = "ggtune.checkpoint."
_VERSION = 1


class CheckpointError(GgtuneError):
    """A checkpoint that is damaged, or of another run."""


@dataclass(frozen=True)
class State:
    """Where a run stands after a whole step; sample order and dropout masks follow from seed and counters."""

    step: int  # steps of the run, the dropped ones included
    n_micro_batches: int  # counter of the dropout masks
    epoch: int  # from 0
    cursor: int  # steps taken of this epoch
    model_fingerprint: str
    data_fingerprint: str
    monitor: Mapping[str, Any] = field(default_factory=dict)
    pending: Mapping[str, Any] | None = None  # the last step's metrics where its held-out loss is still to be measured
    elapsed_s: float = 0.0
    notes: Mapping[str, str] = field(default_factory=dict)  # go into the adapter file, with the step
    started: str = ""  # ISO time; templates that write the date write this one
    version: str = ""  # of ggtune
    n_dropped: int = 0  # steps whose loss or gradient was not finite
    n_dropped_in_a_row: int = 0
    lr_scale: float = 1.0  # halved when the run goes back, and where its loss no longer falls
    failed_step: int = 0  # where it last went back, 0 when it is past that
    data_files: Mapping[str, str] = field(default_factory=dict)  # a fingerprint of each file's samples, by its name
    loss_scale: float = 1.0  # of devices that round products to half precision; 0 where none is chosen yet
    # where the layers lay: {"step": after it, "layers": how many by device, "CPU" among them}, oldest first; a run that
    # has only ever been on the CPU has none
    places: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def n_updates(self) -> int:
        """Optimizer steps taken."""
        return self.step - self.n_dropped

    @property
    def adapter_notes(self) -> dict[str, str]:
        """What the adapter file of this step carries."""
        return {**self.notes, "step": str(self.step)}

    def with_places(self, layers: Mapping[str, int]) -> "State":
        """Note that the run goes on from here with so many ``layers`` by device; empty: all on the CPU."""
        last = self.places[-1]["layers"] if self.places else {}
        if dict(layers) == last:
            return self
        before = self.places or ([{"step": 0, "layers": {}}] if self.step else [])
        kept = [entry for entry in before if entry["step"] < self.step]
        return replace(self, places=[*kept, {"step": self.step, "layers": dict(layers)}])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "State":
        """Undo ``dataclasses.asdict``. Raises :class:`CheckpointError` where it is no state."""
        kinds: dict[str, Any] = {f.name: _JSON_TYPES.get(f.name) or f.type for f in fields(cls)}
        required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        wrong = sorted(required - set(values)) + [
            name
            for name, value in values.items()
            if name not in kinds or not isinstance(value, kinds[name]) or isinstance(value, bool)
        ]
        if wrong:
            raise CheckpointError(f"its state has a wrong {', '.join(wrong)}")
        if min(values["step"], values["n_micro_batches"], values["epoch"], values["cursor"]) < 0:
            raise CheckpointError("its state has a counter below 0")
        if not all(_is_place(entry) for entry in values.get("places", ())):
            raise CheckpointError("its state has wrong places")
        return cls(**values)


def _is_place(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("step"), int)
        and isinstance(layers := entry.get("layers"), dict)
        and all(isinstance(n, int) for n in layers.values())
    )


_JSON_TYPES: dict[str, Any] = {
    "monitor": dict,
    "pending": (dict, type(None)),
    "notes": dict,
    "data_files": dict,
    "elapsed_s": (int, float),
    "lr_scale": (int, float),
    "loss_scale": (int, float),
    "places": list,
}


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
    """Write beside, flush, rename. Raises :class:`ggtune.files.WriteError`."""
    adapter = checkpoint.adapter
    tensors = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in adapter.tensors.items()}
    for name, (first, second) in checkpoint.moments.items():
        tensors[name + ".m"] = np.ascontiguousarray(first, dtype=np.float32)
        tensors[name + ".v"] = np.ascontiguousarray(second, dtype=np.float32)
    texts = [json.dumps(asdict(checkpoint.state)), checkpoint.config.to_json()]
    keys: dict[str, KeyValue] = {
        "general.type": "ggtune-checkpoint",
        "adapter.lora.alpha": adapter.alpha,
        _KEY + "version": _VERSION,
        _KEY + "state": texts[0],
        _KEY + "config": texts[1],
        _KEY + "sha256": _digest(adapter.architecture, adapter.alpha, texts, tensors),
    }
    write_gguf(Path(path), adapter.architecture, keys, tensors)


def checkpoint_bytes(n_params: int, n_tensors: int) -> int:
    """Estimate the size of a checkpoint of an adapter with so many values, in so many tensors."""
    return 12 * n_params + 600 * n_tensors + (64 << 10)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and verify.

    Raises :class:`CheckpointError` for a file that is no whole checkpoint, :class:`ggtune.errors.ModelError` for one
    that is no whole GGUF file.
    """
    structure = gguf_structure(path)
    version = structure.number(_KEY + "version")
    if version is None:
        raise CheckpointError(f"{path} is not a checkpoint of ggtune")
    if version != _VERSION:
        raise CheckpointError(f"{path} is a checkpoint of version {version}; this ggtune reads {_VERSION}")
    architecture = structure.text("general.architecture")
    texts = [structure.text(_KEY + "state"), structure.text(_KEY + "config")]
    alpha = float(structure.number("adapter.lora.alpha") or 0.0)
    if wrong := [t.name for t in structure.tensors if t.type_name != "F32"]:
        raise CheckpointError(f"{path} is damaged: the tensor {wrong[0]} is not F32")
    tensors = {t.name: structure.floats(t) for t in structure.tensors}
    if _digest(architecture, alpha, texts, tensors) != structure.text(_KEY + "sha256"):
        raise CheckpointError(f"{path} is damaged: its checksum is wrong")
    try:
        return _content(architecture, alpha, texts, tensors)
    except (ValueError, KeyError, RecursionError, GgtuneError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint of this version of ggtune: {error}") from error


def _content(architecture: str, alpha: float, texts: list[str], tensors: Mapping[str, FloatArray]) -> Checkpoint:
    """Make the content of what is in a file; a ``KeyError`` is a tensor that is missing."""
    values, settings = (json.loads(text) for text in texts)
    if not isinstance(values, dict) or not isinstance(settings, dict):
        raise CheckpointError("its state or settings are none")
    state = State.from_dict(values)
    names = [name for name in tensors if name.endswith((".lora_a", ".lora_b"))]
    moments = {name: (tensors[name + ".m"], tensors[name + ".v"]) for name in names}
    for name, pair in moments.items():
        if tensors[name].ndim not in (2, 3) or any(moment.shape != tensors[name].shape for moment in pair):
            raise CheckpointError(f"the shapes of {name} and its moments don't fit each other")
    adapter = AdapterFile(architecture, alpha, {name: tensors[name] for name in names}, state.adapter_notes)
    return Checkpoint(adapter, moments, state, TrainConfig.from_dict(settings))


def restore(engine: "Trainer", checkpoint: Checkpoint) -> None:
    """Put adapter, moments and counters into the engine. Raises :class:`CheckpointError` where they don't fit it."""
    expected, found = set(engine.adapter.tensor_names()), set(checkpoint.adapter.tensors)
    if expected != found:
        raise CheckpointError(f"the checkpoint has no adapter of this shape: {min(expected ^ found)} differs")
    for name, values in checkpoint.adapter.tensors.items():
        engine.adapter.set(name, values)
    engine.set_moments(checkpoint.moments)
    engine.n_steps = checkpoint.state.n_updates
    engine.n_micro_batches = checkpoint.state.n_micro_batches
    if checkpoint.state.loss_scale > 1.0:  # else it was of the CPU, or none was chosen: a device begins with its own
        engine.loss_scale = checkpoint.state.loss_scale
    engine.zero_gradients()


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


def remove_old_checkpoints(pattern: Path, keep: int, best_step: int | None = None) -> None:
    """Remove all but the ``keep`` newest (0: remove none) and the one of ``best_step``."""
    if keep and "ITERATION" in pattern.name:
        for step, path in sorted(numbered(pattern).items())[:-keep]:
            if step != best_step:
                path.unlink(missing_ok=True)


def set_aside_later(pattern: Path, step: int) -> list[Path]:
    """Rename the checkpoints of later steps, which are damaged or of a way that is not gone on: ``.old`` is added."""
    if "ITERATION" not in pattern.name:
        return []
    later = [path for number, path in sorted(numbered(pattern).items()) if number > step]
    return [path.replace(path.with_name(path.name + ".old")) for path in later]
