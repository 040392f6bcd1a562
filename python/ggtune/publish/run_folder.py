"""What a run folder holds that can be published."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggtune.data.sources import files_of
from ggtune.errors import GgtuneError, ModelError
from ggtune.gguf.asked_with import AskedWith
from ggtune.gguf.header import GgufHeader, read_header
from ggtune.gguf.io import gguf_structure, model_fingerprint
from ggtune.ollama.modelfile import Modelfile
from ggtune.ollama.store import check_model_files
from ggtune.publish.base_model import BaseModel, read_base, read_base_of_merged
from ggtune.report.reading import RunRecord, read_record
from ggtune.run.status import FINISHED, RUNNING, read_status, read_status_file
from ggtune.setting_texts import DataPart
from ggtune.train.chosen import adapter_of_run


@dataclass(frozen=True)
class DataFiles:
    """A data file of a run, or a folder of them; ``files`` is empty where they are gone or have changed since."""

    path: str  # as the settings name it
    files: tuple[Path, ...]
    is_folder: bool = False


@dataclass(frozen=True)
class RunFolder:
    """The files of a finished run. ``adapter`` and ``merged`` are None where they are not there or not wanted."""

    path: Path
    adapter: Path | None
    merged: Path | None
    header: GgufHeader  # of the merged file, else of the adapter
    modelfile: Modelfile | None
    settings: Mapping[str, Any]  # config.json
    record: RunRecord  # what a report has of it
    proof: Mapping[str, Any]  # proof.json; empty where there is none
    template: str | None  # what the training asked with, as the adapter says
    system: str | None
    base: BaseModel
    data: tuple[DataFiles, ...]  # what it was trained on
    version: str  # of ggtune, that trained it
    ending: str  # how the run ended
    adapter_step: str  # of the adapter; "" where its file does not say

    @property
    def metrics(self) -> Sequence[Mapping[str, Any]]:
        """The records of its steps."""
        return self.record.metrics


def read_run(path: Path, *, merged: bool = True, adapter: bool = True) -> RunFolder:
    """Look at a run folder; ``merged`` and ``adapter`` say what of it is wanted, where it is there.

    Raises :class:`GgtuneError` for a folder of another kind, a run that goes on, files that can't be used or don't fit
    each other, and where nothing is left to publish.
    """
    state = read_status(path)
    if state.state == RUNNING:
        raise GgtuneError(f"{path}: the run is still going. Wait for its end, or end it with `ggtune stop {path}`.")
    status = read_status_file(path / "status.json")
    settings = _read_json(path / "config.json")
    merged_file = path / "model.gguf"
    adapter_file = _adapter_file(path, merged_file)
    found_merged = merged_file if merged and merged_file.exists() else None
    found_adapter = adapter_file if adapter and adapter_file.exists() else None
    if found_merged is None and found_adapter is None:
        wanted = " nor ".join(
            file.name for file, is_wanted in ((adapter_file, adapter), (merged_file, merged)) if is_wanted
        )
        raise GgtuneError(
            f"{path}: nothing to publish: " + (f"no {wanted} is there." if wanted else "all is left out.")
        )
    header = read_header(found_merged or adapter_file)
    if found_merged is not None:
        check_model_files(found_merged, header, found_adapter)
    elif header.kind != "adapter" or header.adapter_kind != "lora":
        raise ModelError(f"{adapter_file}: not a LoRA adapter (general.type {header.kind}).")
    trained = AskedWith.of(read_header(adapter_file).asked_with if adapter_file.exists() else {}, header.asked_with)
    step = gguf_structure(adapter_file).text("ggtune.step") if adapter_file.exists() else ""
    return RunFolder(
        path=path,
        adapter=found_adapter,
        merged=found_merged,
        header=header,
        modelfile=_read_modelfile(path / "Modelfile") if found_merged else None,
        settings=settings,
        record=read_record(path, recover=False),
        proof=_read_json(path / "proof.json"),
        template=trained.template,
        system=trained.system,
        base=_base(status, settings, merged_file, adapter_file),
        data=_data(status, settings),
        version=str(status.get("version") or ""),
        # what made a run fail can be about the machine, and is left out
        ending=state.reason if state.state == FINISHED else f"the run was not finished ({state.state})",
        adapter_step=step if step.isdecimal() else "",
    )


def _adapter_file(folder: Path, merged_file: Path) -> Path:
    """Choose the adapter that the merged file was made of; without one as `ggtune run` would have."""
    if not merged_file.exists():
        return adapter_of_run(folder)[0]
    best, last = folder / "adapter-best.gguf", folder / "adapter.gguf"
    of_merged = gguf_structure(merged_file).text("general.finetune")
    return best if of_merged == best.stem and best.exists() else last


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise GgtuneError(f"{path}: can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise GgtuneError(f"{path}: not JSON ({error}). Mend or remove it.") from error
    if not isinstance(values, dict):
        raise GgtuneError(f"{path}: not a JSON object. Mend or remove it.")
    return values


def _read_modelfile(path: Path) -> Modelfile:
    from ggtune.data.readers.decoding import read_text

    if not path.exists():
        raise GgtuneError(
            f"{path}: there is no Modelfile, which says how the model is asked. Make one with `ggtune package "
            f"{path.with_name('model.gguf')} --name NAME --no-store`, or leave the model out: --no-merged."
        )
    try:
        return Modelfile.parse(read_text(path))
    except GgtuneError as error:
        raise GgtuneError(f"{path}: {error}") from error


def _there(status: Mapping[str, Any], name: Any) -> Path | None:
    """Find a file or folder of the settings: its path may be relative to where the run was started."""
    if not isinstance(name, str) or not name:
        return None
    path = Path(str(status.get("working_folder") or "")) / name
    return path if path.exists() else None


def _data(status: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[DataFiles, ...]:
    """Find the data of the settings. Files that were written after the start of the run are not those of it."""
    more = settings.get("more_data")
    names = [settings.get("data"), *(DataPart.parse(str(text)).path for text in more or () if text)]
    started = status.get("started")
    found = []
    for name in names:
        if not isinstance(name, str) or not name:
            continue
        path = _there(status, name)
        try:
            files = tuple(files_of(path)) if path is not None else ()
        except GgtuneError:  # a folder without data now
            files = ()
        if isinstance(started, (int, float)) and any(file.stat().st_mtime > started for file in files):
            files = ()
        found.append(DataFiles(name, files, path is not None and path.is_dir()))
    return tuple(found)


def _base(status: Mapping[str, Any], settings: Mapping[str, Any], merged_file: Path, adapter_file: Path) -> BaseModel:
    name = settings.get("model")
    file_name = Path(name).name if isinstance(name, str) else ""
    path = _there(status, name)
    if path is not None and path.is_file() and _is_trained_on(path, adapter_file):
        return read_base(path)
    if merged_file.exists():
        return read_base_of_merged(merged_file, file_name)
    return BaseModel(Path(file_name).stem, None, (), file_name)


def _is_trained_on(base: Path, adapter_file: Path) -> bool:
    """Whether ``base`` is still what it was: another model may have taken its name, with another licence."""
    recorded = gguf_structure(adapter_file).text("ggtune.base_fingerprint") if adapter_file.exists() else ""
    return not recorded or recorded == model_fingerprint(base)
