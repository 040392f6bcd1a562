"""All of it in one go: train, merge, package; and going on with what was interrupted."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.evaluate.before_after import DEFAULT_QUESTIONS
from ggtune.evaluate.general.change import Subject as GeneralSubject
from ggtune.evaluate.proved_merge import ProvedMerge
from ggtune.evaluate.subject import open_subject
from ggtune.evaluate.subject_text import SubjectText
from ggtune.evaluate.verify import samples_of_run
from ggtune.evaluate.worst_rows import WorstRows, worst_rows, write_worst_rows
from ggtune.files import replace_text
from ggtune.gguf.merge import check_outtype, disk_bytes, retyped
from ggtune.ollama.package import PackageResult, check_packaging
from ggtune.pipeline.asked_twice import AskedTwice, Asking
from ggtune.pipeline.checked import Checked, check_run, findings_of
from ggtune.pipeline.merging import MergeOptions, merge, tune_seconds_of
from ggtune.pipeline.packaging import PackageOptions, package
from ggtune.pipeline.training import TrainOptions, claim_folder, find_checkpoint, settings, train, train_for
from ggtune.run.job import read_settings
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Reporter
from ggtune.run.status import read_status_file
from ggtune.train.chosen import Chosen, Which, chosen_adapter
from ggtune.train.result import Result
from ggtune.train.verdict import has_diverged

PROOF = "proof.json"
MERGED = "model.gguf"
_LEAST_WORST_S, _MOST_WORST_S, _WORST_SHARE = 5.0, 60.0, 0.02  # seconds, and share of the training's


@dataclass(frozen=True)
class Packaging:
    """What :func:`run` does after the training."""

    name: str  # in Ollama
    store: Path | None = None  # Ollama's, to put the model into
    outtype: str | None = None  # of the merged tensors
    which: Which = "auto"  # step whose adapter is taken
    merge: bool = True  # False: the base is packaged with the adapter beside it
    questions: str = DEFAULT_QUESTIONS  # asked before and after: a number of held-out rows, or a file
    check: bool = True  # say what the training has broken, and what is wrong with the run
    tune_seconds: float | None = None  # how long the merged file's scales are tuned; None: merging's own, or more

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``status.json``."""
        store = str(self.store.absolute()) if self.store else None
        return {
            "name": self.name,
            "store": store,
            "outtype": self.outtype,
            "which": self.which,
            "merge": self.merge,
            "check": self.check,
            "tune_seconds": self.tune_seconds,
            "questions": self.questions if self.questions.isdecimal() else str(Path(self.questions).absolute()),
        }

    @classmethod
    def from_dict(cls, values: Any) -> "Packaging":
        """Undo :meth:`to_dict`. Raises :class:`GgtuneError` where it is none."""
        try:
            name, store, outtype = values["name"], values["store"], values["outtype"]
            which, merge = values.get("which", "auto"), values.get("merge", True)
        except (TypeError, KeyError, AttributeError):
            raise GgtuneError("status.json does not say how the run was called: use `ggtune run --resume`") from None
        return cls(
            str(name),
            Path(str(store)) if store else None,
            str(outtype) if outtype else None,
            which if which in ("best", "last") else "auto",
            merge=merge is not False,
            questions=str(values.get("questions", DEFAULT_QUESTIONS)),
            check=values.get("check", True) is not False,
            tune_seconds=_seconds(values.get("tune_seconds")),
        )


@dataclass(frozen=True)
class RunResult:
    """What came of :func:`run`. After a training that has diverged nothing is merged or packaged."""

    training: Result
    adapter: Chosen | None = None
    merged: Path | None = None
    merge: ProvedMerge | None = None
    package: PackageResult | None = None
    asked: AskedTwice | None = None  # the questions before and after; None where there were none
    worst: WorstRows | None = None  # training rows that were learned worst; None where they could not be measured
    checked: Checked = field(default_factory=Checked)  # empty where nobody has asked for it


def run(
    config: TrainConfig,
    out: str | Path | Outputs,
    packaging: Packaging,
    options: TrainOptions | None = None,
    reporter: Reporter | None = None,
) -> RunResult:
    """Check what the packaging needs, train into the folder ``out``, merge and prove, package.

    Raises as :func:`~ggtune.pipeline.train`, :func:`~ggtune.pipeline.merge` and :func:`~ggtune.pipeline.package`; what
    can be known to go wrong with the later ones is raised before the training.
    """
    options, reporter = options or TrainOptions(), reporter or Reporter()
    check_outtype(packaging.outtype)
    outputs = out
    if not isinstance(outputs, Outputs):
        outputs = claim_folder(outputs, resume=options.checkpoint is not None, overwrite=options.overwrite)
    folder, base = outputs.adapter.parent, Path(config.model)
    keeps = not options.overwrite and questions_of_run(folder) == packaging.to_dict()["questions"]
    asking = Asking(folder, packaging.questions, reporter, keeps=keeps)
    check_packaging(
        base,
        packaging.name,
        out_dir=folder,
        store=packaging.store,
        template=config.template or None,
        system=config.system or None,
    )
    result = train_for(
        config,
        outputs,
        options,
        reporter,
        {"name": "run", "packaging": packaging.to_dict()},
        extra_disk_bytes=disk_bytes(base, packaging.outtype) if packaging.merge else 0,
        prepared=asking.before,
    )
    if has_diverged(result):
        findings = findings_of(folder, threads=config.threads, reporter=reporter) if packaging.check else ()
        return RunResult(result, checked=Checked(findings=findings))
    chosen = chosen_adapter(folder, packaging.which)
    reporter.note(f"Adapter: {chosen.path}: {chosen.reason}")
    if not packaging.merge:
        beside = PackageOptions(out=folder, store=packaging.store, adapters=[(chosen.path, 1.0)])
        packaged = package(base, packaging.name, beside)
        asked = asking.after(base, [(str(chosen.path), 1.0)], threads=config.threads)
        worst = _worst(folder, chosen, result, reporter)
        checked = _checked(folder, packaging, result, (base, [(chosen.path, 1.0)]), reporter)
        return RunResult(result, chosen, package=packaged, asked=asked, worst=worst, checked=checked)
    merged = folder / MERGED
    reporter.note(f"Merging into {merged} ...")
    proved = _merge(result.config, chosen, merged, packaging, reporter)
    packaged = package(merged, packaging.name, PackageOptions(out=folder, store=packaging.store))
    asked = asking.after(merged, (), threads=config.threads)
    worst = _worst(folder, chosen, result, reporter)
    checked = _checked(folder, packaging, result, (merged, ()), reporter)
    return RunResult(result, chosen, merged, proved, packaged, asked, worst, checked)


def _checked(folder: Path, packaging: Packaging, result: Result, after: GeneralSubject, reporter: Reporter) -> Checked:
    if not packaging.check:
        return Checked()
    return check_run(
        folder,
        (result.config.model, ()),
        after,
        trained_s=result.seconds,
        threads=result.config.threads,
        reporter=reporter,
    )


def _worst(folder: Path, chosen: Chosen, result: Result, reporter: Reporter) -> WorstRows | None:
    """Look for rows that are wrong, in a small part of the time that the training took."""
    seconds = min(_MOST_WORST_S, max(_LEAST_WORST_S, _WORST_SHARE * result.seconds))
    try:
        subject = open_subject(SubjectText(run=folder, which=str(chosen.step)))
        found = worst_rows(subject, threads=result.config.threads, seconds=seconds)
        write_worst_rows(folder, found)
    except GgtuneError as error:  # the model is made and packaged
        reporter.note(f"Which rows were learned worst can't be told: {error}")
        return None
    return found


def questions_of_run(folder: str | Path) -> str | None:
    """What an earlier session of the run in a folder was told to ask; None where it was told nothing."""
    command = read_status_file(Path(folder) / "status.json").get("command")
    packaging = command.get("packaging") if isinstance(command, dict) else None
    found = packaging.get("questions") if isinstance(packaging, dict) else None
    return str(found) if found is not None else None


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _merge(config: TrainConfig, chosen: Chosen, merged: Path, packaging: Packaging, reporter: Reporter) -> ProvedMerge:
    """Merge the adapter of a run, and write what was kept to ``proof.json``."""
    proved = merge(
        config.model,
        [(chosen.path, 1.0)],
        merged,
        MergeOptions(
            packaging.outtype,
            tune_seconds=tune_seconds_of(merged.parent, packaging.tune_seconds),
            name=packaging.name,
            threads=config.threads,
            force=config.force,
        ),
        samples=samples_of_run(merged.parent, config),
        reporter=reporter,
    )
    if changes := retyped(proved.counts):
        reporter.note(f"Other types: {changes}")
    if proved.proof is not None:
        reporter.note(proved.proof.line())
        replace_text(merged.parent / PROOF, json.dumps(proved.proof.to_dict(), indent=2) + "\n")
    return proved


def find_run(folder: str | Path) -> tuple[Outputs, TrainConfig | None]:
    """Name the files of a run to go on with, and read its settings.

    Raises :class:`GgtuneError` where there is none, or where a job is at it.
    """
    outputs = claim_folder(folder, resume=True)
    before = read_settings(Path(folder) / "config.json")
    if before is None and not outputs.checkpoints():
        raise GgtuneError(f"{folder} holds no run: start one with `ggtune train` or `ggtune run`")
    return outputs, before


def resume(
    folder: str | Path,
    given: Mapping[str, Any] | None = None,
    *,
    listed: bool = False,
    reporter: Reporter | None = None,
) -> Result | RunResult:
    """Go on with a run from its newest whole checkpoint, with its own settings and those ``given`` (by their names).

    A run that :func:`run` has started is merged and packaged at its end, as it was asked for there. Raises as that.
    """
    folder, given, reporter = Path(folder), given or {}, reporter or Reporter()
    outputs, before = find_run(folder)
    written = read_status_file(folder / "status.json")
    checkpoint = find_checkpoint(outputs, reporter=reporter)
    known = checkpoint.config if checkpoint is not None else before
    names = ("model", "data") if checkpoint is not None else ("model", "data", "from_adapter")
    moved = _moved(known, written, given, names) if known is not None else {}
    config = settings({**given, **moved}, checkpoint, before, reporter=reporter)
    options = TrainOptions(checkpoint, listed=listed)
    made_by = written.get("command")
    how: dict[str, Any] = made_by if isinstance(made_by, dict) else {}
    if how.get("name") == "run":
        return run(config, outputs, Packaging.from_dict(how.get("packaging")), options, reporter)
    return train(config, outputs, options, reporter)


def _moved(
    config: TrainConfig, written: Mapping[str, Any], given: Mapping[str, Any], names: tuple[str, ...]
) -> dict[str, str]:
    """Find files of relative paths from the folder that the run was started in."""
    found = {}
    for name in names:
        path = Path(getattr(config, name))
        there = Path(str(written.get("working_folder", "."))) / path
        if name not in given and not path.is_absolute() and not path.exists() and there.exists():
            found[name] = str(there)
    return found
