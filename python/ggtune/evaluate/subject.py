"""What is evaluated: a model, a model with adapters, or a run and a step of it; with how its training asked it."""

import dataclasses
import datetime
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError, ModelError
from ggtune.evaluate.subject_text import SubjectText
from ggtune.gguf.adapter_file import AdapterFile, read_adapter, write_adapter
from ggtune.gguf.asked_with import AskedWith
from ggtune.gguf.base import adapter_fingerprint, check_base
from ggtune.gguf.io import gguf_structure, model_fingerprint
from ggtune.run.checkpoint import Checkpoint, CheckpointError, load_checkpoint, newest_checkpoint
from ggtune.run.job import read_settings
from ggtune.run.outputs import Outputs
from ggtune.run.status import RUNNING, read_status, read_status_file
from ggtune.setting_texts import DataPart, Holdout
from ggtune.train.chosen import chosen_adapter

if TYPE_CHECKING:
    pass

_TRIES = 3  # to read a checkpoint of a run that goes on, which removes old ones


@dataclass(frozen=True)
class SubjectAdapter:
    """An adapter beside the model; ``path`` is an adapter file, or a checkpoint whose adapter it is."""

    path: Path
    scale: float
    content: AdapterFile
    is_checkpoint: bool = False


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    ``config`` are the settings of the run that it comes from, with the files where they are seen from here; of a model
    file None. ``template`` and ``system`` are None where nobody says how to ask it.
    """

    label: str  # short, fit for a folder's name
    model: Path
    adapters: tuple[SubjectAdapter, ...] = ()
    run: Path | None = None
    which: str = ""  # base, best, last, merged or step; "" of a model file
    step: int | None = None
    config: TrainConfig | None = None
    started: datetime.datetime | None = None  # templates that write the date write this one
    template: str | None = None
    system: str | None = None
    reason: str = ""  # why this step
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What ``evaluation.json`` says of it."""
        return {
            "model": str(self.model),
            "adapters": [[str(one.path), one.scale] for one in self.adapters],
            "run": str(self.run) if self.run is not None else None,
            "which": self.which or None,
            "step": self.step,
        }

    def fingerprints(self) -> dict[str, Any]:
        """Tell it from others that have the same names."""
        return {
            "model": model_fingerprint(self.model),
            "adapters": [[adapter_fingerprint(one.content), one.scale] for one in self.adapters],
        }

    @contextmanager
    def adapter_files(self) -> Iterator[list[tuple[str, float]]]:
        """Give adapter files and their scales, as llama.cpp reads them; those of checkpoints live as long as this."""
        with tempfile.TemporaryDirectory(prefix="ggtune-") as folder:
            found = []
            for i, one in enumerate(self.adapters):
                path = one.path
                if one.is_checkpoint:
                    path = Path(folder) / f"adapter-{i}.gguf"
                    write_adapter(path, one.content)
                found.append((str(path), one.scale))
            yield found


def open_subject(what: str | Path | SubjectText, *, force: bool = False) -> Subject:
    """Find the files of a subject, and how it is asked. Nothing is computed, no weights are read.

    Of a run that still goes on ``auto`` and ``last`` are its newest checkpoint. Raises :class:`GgtuneError` for files
    that are not there, are none, or don't fit each other: a checkpoint or adapter of another model only with ``force``.
    """
    text = what if isinstance(what, SubjectText) else SubjectText.parse(str(what))
    if text.run is not None:
        return _of_run(text.run, text.which or "auto", force=force)
    assert text.model is not None
    adapters = tuple(_adapter(path, scale) for path, scale in text.adapters)
    texts = _model_texts(text.model)
    notes = dict(adapters[0].content.notes) if adapters else {}
    asked = AskedWith.of(notes, texts)
    return Subject(
        text.label,
        text.model,
        adapters,
        template=asked.template,
        system=asked.system,
        warnings=_warnings(adapters, text.model, force=force),
    )


def _model_texts(model: Path) -> dict[str, str]:
    structure = gguf_structure(model)
    if structure.text("general.type") == "adapter":
        raise ModelError(f"{model} is an adapter: give its base with it, BASE.gguf+{model}")
    if structure.text("ggtune.checkpoint.state"):
        raise ModelError(f"{model} is a checkpoint: give its run's folder and the step, RUN@STEP")
    return dict(structure.ggtune_texts)


def _adapter(path: Path, scale: float) -> SubjectAdapter:
    if gguf_structure(path).text("ggtune.checkpoint.state"):
        found = load_checkpoint(path)
        return _of_checkpoint(path, found, scale)
    return SubjectAdapter(path, scale, read_adapter(path))


def _of_checkpoint(path: Path, checkpoint: Checkpoint, scale: float = 1.0) -> SubjectAdapter:
    notes = {"base_fingerprint": checkpoint.state.model_fingerprint, **checkpoint.adapter.notes}
    return SubjectAdapter(path, scale, dataclasses.replace(checkpoint.adapter, notes=notes), is_checkpoint=True)


def _warnings(adapters: Sequence[SubjectAdapter], model: Path, *, force: bool) -> tuple[str, ...]:
    return tuple(text for one in adapters for text in check_base(one.path, model, force=force, content=one.content))


def _of_run(folder: Path, which: str, *, force: bool) -> Subject:
    outputs = Outputs.folder(folder)
    newest = _newest(outputs)
    config = newest[1].config if newest is not None else read_settings(folder / "config.json")
    if config is None:
        raise GgtuneError(f"{folder} holds no run: it has neither a checkpoint nor config.json")
    config = from_here(config, folder)
    model = Path(config.model)
    if which != "merged" and not model.is_file():
        raise GgtuneError(f"{model}: there is no such file, but the run in {folder} was trained on it")
    found = _step(folder, which, outputs, newest, config)
    if newest is not None and newest[1].state.started:
        with suppress(ValueError):
            found = dataclasses.replace(found, started=datetime.datetime.fromisoformat(newest[1].state.started))
    texts = dict(newest[1].state.notes) if newest is not None else {}
    asked = AskedWith.of(texts, _model_texts(found.model))
    return dataclasses.replace(
        found,
        template=config.template or asked.template,
        system=config.system or asked.system,
        warnings=_warnings(found.adapters, found.model, force=force),
    )


def _step(
    folder: Path, which: str, outputs: Outputs, newest: tuple[Path, Checkpoint] | None, config: TrainConfig
) -> Subject:
    model = Path(config.model)
    if which == "base":
        return Subject("base", model, run=folder, which=which, config=config)
    if which == "merged":
        merged = folder / "model.gguf"
        if not merged.is_file():
            raise GgtuneError(f"{folder} has no merged model ({merged.name}): `ggtune export-lora` makes one")
        return Subject("merged", merged, run=folder, which=which, config=config)
    if newest is None:
        adapter = outputs.adapter
        if which not in ("auto", "last") or not adapter.exists():
            raise GgtuneError(
                f"{folder} has no checkpoint yet: wait for the first one (--save-every), or give {folder}@base"
            )
        return _at(
            folder, "last", SubjectAdapter(adapter, 1.0, read_adapter(adapter)), config, "no checkpoint is there"
        )
    goes_on = _goes_on(folder)
    if which.isdecimal():
        path = _checkpoint_at(outputs, int(which))
        return _at(folder, "step", _of_checkpoint(path, load_checkpoint(path)), config, "")
    if goes_on and which in ("auto", "last"):
        return _at(folder, "step", _of_checkpoint(*newest), config, "the newest checkpoint of a run that goes on")
    if which == "last":
        return _at(folder, "last", _of_checkpoint(*newest), config, "the last step")
    best = newest[1].state.monitor.get("best_step")
    chosen = chosen_adapter(folder, "best" if which == "best" else "auto")
    is_best = best is not None and chosen.step == best
    if which == "best" and not is_best:
        raise GgtuneError(f"{folder} has no best step: {chosen.reason}")
    named = "best" if is_best else "last"
    return _at(folder, named, SubjectAdapter(chosen.path, 1.0, read_adapter(chosen.path)), config, chosen.reason)


def _at(folder: Path, which: str, adapter: SubjectAdapter, config: TrainConfig, reason: str) -> Subject:
    noted = adapter.content.notes.get("step", "")
    step = int(noted) if noted.isdecimal() else None
    label = f"step-{step}" if which == "step" else which
    return Subject(label, Path(config.model), (adapter,), folder, which, step, config, reason=reason)


def _newest(outputs: Outputs) -> tuple[Path, Checkpoint] | None:
    """The newest whole checkpoint. A run that goes on may remove one between its being found and being read."""
    for attempt in range(_TRIES):
        try:
            found = newest_checkpoint(outputs.checkpoint)
        except CheckpointError:
            if attempt == _TRIES - 1:
                raise
            continue
        return (found[0], found[1]) if found is not None else None
    return None


def _goes_on(folder: Path) -> bool:
    try:
        return read_status(folder).state == RUNNING
    except GgtuneError:
        return False


def _checkpoint_at(outputs: Outputs, step: int) -> Path:
    there = outputs.checkpoints()
    if step in there:
        return there[step]
    steps = ", ".join(str(one) for one in sorted(there))
    raise GgtuneError(
        f"{outputs.checkpoint.parent} has no checkpoint of step {step}; it has those of {steps or 'none'} "
        "(--keep 0 keeps all)"
    )


def from_here(config: TrainConfig, folder: Path) -> TrainConfig:
    """Find the files of a run's settings from here: their paths may be relative to where it was started."""
    started_in = Path(str(read_status_file(folder / "status.json").get("working_folder") or "."))

    def found(name: str) -> str:
        path = Path(name)
        there = started_in / path
        return str(there) if name and not path.is_absolute() and not path.exists() and there.exists() else name

    changes: dict[str, Any] = {"model": found(config.model), "data": found(config.data)}
    if config.more_data:
        parts = [(text, DataPart.parse(text).path) for text in config.more_data]
        changes["more_data"] = tuple(text.replace(path, found(path), 1) for text, path in parts)
    if path := Holdout.parse(config.holdout).path:
        changes["holdout"] = found(path)
    if config.template.endswith(".jinja"):
        changes["template"] = found(config.template)
    return dataclasses.replace(config, **changes)
