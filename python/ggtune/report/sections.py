"""The parts of a report, from what run folders hold: one run, or several side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ggtune.report.answers import before_after, samples_while_training, worst_rows
from ggtune.report.blocks import Block, Figure, Items, Paragraph, Report, Section, Table, Tone
from ggtune.report.data import data_blocks
from ggtune.report.facts import LOSS_HEAD, UNKNOWN, differing_settings, loss_rows, main_numbers, setting_rows
from ggtune.report.plots import all_figures
from ggtune.report.reading import RunRecord
from ggtune.report.scores import score_blocks
from ggtune.run.status import DEAD, FAILED, INTERRUPTED, RUNNING
from ggtune.train.outlook import Outlook, outlook_of_run
from ggtune.version import version

_TONES: Mapping[str, Tone] = {"error": "error", "warning": "warning", "note": "note"}


def report_of(runs: Sequence[RunRecord], *, title: str = "", sweep_costs: Mapping[str, str] | None = None) -> Report:
    """Put together the report of one or more runs.

    ``sweep_costs`` are sentences that say what a sweep would cost, by the names of runs.
    """
    single = len(runs) == 1
    futures = [_future(run) for run in runs]
    numbers = [main_numbers(run) for run in runs]
    findings = [_found(run, single=single) for run in runs]
    made: list[tuple[str, str, Sequence[Block]]] = [
        ("findings", "What was found", [block for blocks in findings for block in blocks]),
        ("next", "What to try next", _advice(runs, sweep_costs or {}, futures)),
        ("numbers", "Main numbers", _numbers(runs, numbers)),
        ("curves", "Curves", _curves(runs, futures[0] if single else None)),
        ("differences", "Settings that differ", _differences(runs)),
        ("scores", "Scores", score_blocks(runs)),
        ("general", "What it broke", _of_each(runs, _general)),
        ("answers", "Answers before and after", before_after(runs)),
        ("samples", "Answers while training", _of_each(runs, samples_while_training)),
        ("worst-rows", "Rows that are worst learned", _of_each(runs, worst_rows)),
        ("data", "Data", data_blocks(runs)),
        ("proof", "What the merged file has kept", _proof(runs)),
        ("settings", "Settings", _settings(runs)),
    ]
    return Report(
        title=title or ", ".join(run.name for run in runs),
        subtitle=_subtitle(runs, numbers[0]),
        state=runs[0].status.state if single else "",
        sections=[Section(key, name, blocks) for key, name, blocks in made if blocks],
        made=f"Made {time.strftime('%Y-%m-%d %H:%M')} by ggtune {version()}",
    )


def _subtitle(runs: Sequence[RunRecord], numbers: Mapping[str, str]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs side by side"
    parts = [numbers["Base model"], numbers["Data"], numbers["Steps"]]
    return " · ".join(part for part in parts if part != UNKNOWN)


def _of_each(runs: Sequence[RunRecord], blocks_of: Callable[[RunRecord], Sequence[Block]]) -> list[Block]:
    """Put the same part of each run below each other, under its name where there are several."""
    found: list[Block] = []
    for run in runs:
        blocks = blocks_of(run)
        if blocks and len(runs) > 1:
            found.append(Paragraph("", label=run.name))
        found += blocks
    return found


def finding_blocks(run: RunRecord, label: str = "") -> list[Block]:
    """What ``diagnosis.json`` says; ``label`` is the run's name, where there are several."""
    blocks: list[Block] = []
    for finding in run.findings:
        kind = str(finding.get("kind", ""))
        name = f"{label}: {kind}" if label else _sentence(kind)
        tone = _TONES.get(str(finding.get("severity")), "warning")
        blocks.append(Paragraph(str(finding.get("text", "")), tone, name))
    return blocks


def _found(run: RunRecord, *, single: bool) -> list[Block]:
    """Say what went wrong: the findings of the diagnosis, how the run stands, what could not be read."""
    label = "" if single else run.name
    blocks = finding_blocks(run, label)
    status = run.status
    if status.state in (FAILED, DEAD, INTERRUPTED):
        if not any(status.reason == str(finding.get("text")) for finding in run.findings):
            tone: Tone = "warning" if status.state == INTERRUPTED else "error"
            name = "Diverged" if "diverged" in status.reason else _sentence(status.state)
            name = f"{label}: {name.lower()}" if label else name
            blocks.append(Paragraph(status.reason or "the run has not come to its end", tone, name))
    elif status.state == RUNNING:
        eta = f"step {status.step}" + (f" of {status.total_steps}" if status.total_steps else "")
        blocks.append(Paragraph(f"The run is still going ({eta}): this is how it stands.", "note", label))
    blocks += [Paragraph(f"{problem}.", "warning", label) for problem in run.problems]
    if not blocks:
        diagnosed = (run.folder / "diagnosis.json").exists()
        text = (
            "Nothing that looks wrong."
            if diagnosed
            else f"No diagnosis was made of this run: ggtune diagnose {run.folder}"
        )
        blocks.append(Paragraph(text, "good" if diagnosed else "plain", label))
    return blocks


def _future(run: RunRecord) -> Outlook | None:
    """Say what going on would bring: to its end of a run that goes on, else of another epoch."""
    if run.status.state == FAILED:  # the curve of a run that has diverged promises nothing
        return None
    return outlook_of_run(run.folder)


def _advice(
    runs: Sequence[RunRecord], sweep_costs: Mapping[str, str], futures: Sequence[Outlook | None]
) -> list[Block]:
    texts: list[str] = []
    for run, future in zip(runs, futures, strict=True):
        who = f"{run.name}: " if len(runs) > 1 else ""
        texts += [who + advice for f in run.findings if (advice := str(f.get("advice") or ""))]
        if run.status.state in (INTERRUPTED, DEAD):
            texts.append(f"{who}Go on with it: ggtune resume {run.folder}")
        if future is not None:
            lines = future.lines() if run.status.state == RUNNING else future.lines()[:1]
            texts += [who + _sentence(line.removeprefix("Outlook: ")) for line in lines]
    texts += [cost if len(runs) == 1 else f"{name}: {cost}" for name, cost in sweep_costs.items() if cost]
    return [Items(list(dict.fromkeys(texts)))] if texts else []


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _general(run: RunRecord) -> list[Block]:
    """What the training did to a general text and general questions."""
    lines = run.general.get("lines")
    return [Items([_sentence(str(line)) for line in lines])] if isinstance(lines, list) and lines else []


def _numbers(runs: Sequence[RunRecord], columns: Sequence[Mapping[str, str]]) -> list[Block]:
    rows = [
        [name, *(column[name] for column in columns)]
        for name in columns[0]
        if any(column[name] != UNKNOWN for column in columns) and not _is_dull(name, columns)
    ]
    head = ["", *(run.name for run in runs)] if len(runs) > 1 else []
    return [Table(head, rows)]


def _is_dull(name: str, columns: Sequence[Mapping[str, str]]) -> bool:
    return name == "Dropped steps" and all(column[name] == "0" for column in columns)


def _curves(runs: Sequence[RunRecord], future: Outlook | None) -> list[Block]:
    fit_to = (future.total_steps or future.step) if future is not None else None  # the rate of no later step is known
    plots = all_figures({run.name: run.metrics for run in runs}, fit=future, fit_to=fit_to)
    blocks: list[Block] = [Figure(plot, main=plot.key == "loss") for plot in plots]
    for run in runs if len(runs) <= 4 else ():
        if rows := loss_rows(run.metrics):
            title = "The losses in numbers" + (f": {run.name}" if len(runs) > 1 else "")
            blocks.append(Table(LOSS_HEAD, rows, title=title, numbers=True, folded=True))
    return blocks or [Paragraph("Nothing was recorded yet.", "note")]


def _differences(runs: Sequence[RunRecord]) -> list[Block]:
    if len(runs) < 2:
        return []
    rows = differing_settings(runs)
    if not rows:
        return [Paragraph("The runs have the same settings.")]
    return [Table(["", *(run.name for run in runs)], rows)]


def _settings(runs: Sequence[RunRecord]) -> list[Block]:
    blocks: list[Block] = []
    for run in runs:
        of = f" of {run.name}" if len(runs) > 1 else ""
        if not run.settings:
            blocks.append(Paragraph(f"The run folder does not say them{of}."))
            continue
        changed, same = setting_rows(run.settings)
        head = ("setting", "value", "")
        blocks.append(Table(head, changed, title=f"Other than the defaults{of}", folded=len(runs) > 1, notes=True))
        if same:
            blocks.append(Table(head, same, title=f"As by default{of}", folded=True, notes=True))
    return blocks


def _proof(runs: Sequence[RunRecord]) -> list[Block]:
    proofs = [run.proof for run in runs]
    if not any(proofs):
        return []
    rows = []
    for name, title in (("trained", "trained samples"), ("held_out", "held-out samples")):
        for key, what in (("base", "base"), ("live", "adapter"), ("merged", "merged file")):
            rows.append([f"Loss of the {what}, {title}", *(_of(proof, name, key, 4) for proof in proofs)])
        rows.append([f"Share of the gain that is kept, {title}", *(_of(proof, name, "kept", 3) for proof in proofs)])
    rows += [
        ["Mean probability of the end token, adapter", *(_of(proof, "", "end_live", 3) for proof in proofs)],
        ["Mean probability of the end token, merged file", *(_of(proof, "", "end_merged", 3) for proof in proofs)],
        ["Answers that are the same", *(map(_same_answers, proofs))],
        ["KL divergence (nats per token)", *(_of(proof, "", "kl", 4) for proof in proofs)],
    ]
    rows = [row for row in rows if any(cell != UNKNOWN for cell in row[1:])]
    head = ["", *(run.name for run in runs)] if len(runs) > 1 else []
    bad = [run for run in runs if run.proof.get("good") is False]
    blocks: list[Block] = [
        Paragraph("The merged file has lost much of what was learned.", "error", run.name if len(runs) > 1 else "")
        for run in bad
    ]
    return [*blocks, Table(head, rows, numbers=True)]


def _of(proof: Mapping[str, Any], part: str, key: str, digits: int) -> str:
    found = proof.get(part) if part else proof
    value = found.get(key) if isinstance(found, Mapping) else None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:.{digits}f}" if is_number else UNKNOWN


def _same_answers(proof: Mapping[str, Any]) -> str:
    n, same = proof.get("n_answers"), proof.get("n_same_answers")
    return f"{same} of {n}" if n and same is not None else UNKNOWN
