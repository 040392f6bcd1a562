"""Training files to token samples: which reader a file gets, and the report of what was left out."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Literal

from ggtune.data.chat_template import TemplatedTokenizer, choose_template, model_template
from ggtune.data.records import has_csv_header, read_csv, read_text
from ggtune.data.samples import LossOn, Sample, TooLong, fit_context, make_sample, text_windows
from ggtune.data.sft import SAMPLE_START, answer_tag, encode_text, find_template, split_samples
from ggtune.data.system_text import SystemText, system_of_prompts, system_of_records
from ggtune.data.templates import TEMPLATES, Template
from ggtune.data.tokenization import TurnEncoder
from ggtune.errors import DataError, GgtuneError

Kind = Literal["csv", "sft", "text"]
_CSV_SUFFIXES = (".csv", ".tsv")
_OTHER_FORMATS = (".json", ".jsonl", ".parquet", ".xlsx", ".ods", ".gguf")
_SHOWN_ROWS = 10


@dataclass
class LoadReport:
    """What became of a file's rows. Numbers are rows of a table (the header is row 1) or lines of a text."""

    path: str
    kind: Kind
    template: str | None = None  # None for plain text
    system: str | None = None  # of every sample, "" for none; None where they differ or it can't be told
    system_differs: bool = False
    n_read: int = 0  # rows, samples or windows with a text
    empty_rows: Sequence[int] = ()
    end_appended: int = 0  # samples whose text had no end token
    cut_rows: Sequence[int] = ()
    skipped_rows: Sequence[int] = ()
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Say the report in sentences, for printing."""
        unit, where = {"csv": ("rows", "rows"), "sft": ("samples", "lines"), "text": ("windows", "windows")}[self.kind]
        form = f", template '{self.template}'" if self.template else ""
        lines = [f"{self.path}: {self.n_read} {unit}{form}"]
        if self.empty_rows:
            lines.append(f"skipped, question or answer empty: {_rows(where, self.empty_rows)}")
        if self.end_appended:
            lines.append(f"end token missing and appended: {self.end_appended} samples")
        if self.cut_rows:
            lines.append(f"cut to the context: {_rows(where, self.cut_rows)}")
        if self.skipped_rows:
            lines.append(f"skipped, too long for the context: {_rows(where, self.skipped_rows)}")
        if self.system_differs:
            lines.append("the samples have different system texts: the adapter names none to ask the model with")
        return lines + self.notes

    def asked_with(self) -> dict[str, str]:
        """Say how a model has to be asked after this training: the ``ggtune.*`` notes of an adapter file."""
        notes = {}
        if self.template:
            notes["template"] = self.template
        if self.system is not None or self.system_differs:
            # also where there is none: the base may have been trained with one
            notes["system"] = self.system or ""
            notes["system_differs"] = str(self.system_differs).lower()
        return notes


@dataclass(frozen=True)
class Dataset:
    """Token samples of a file in its order; ``template`` is None for plain text."""

    samples: tuple[Sample, ...]
    template: Template | None
    report: LoadReport


@dataclass(frozen=True)
class _Options:
    """Arguments of :func:`load_samples` that the readers share."""

    template: Template | str | None
    system: str | None
    loss_on: LossOn
    context: int
    question_column: str | None
    answer_column: str | None
    sample_start: str
    include_sample_start: bool
    now: datetime.datetime | None


def load_samples(
    path: str | Path,
    tokenizer: TemplatedTokenizer,
    *,
    context: int,
    template: Template | str | None = None,
    system: str | None = None,
    loss_on: LossOn = "answer",
    too_long: TooLong = "cut",
    question_column: str | None = None,
    answer_column: str | None = None,
    sample_start: str | None = None,
    include_sample_start: bool = False,
    overlapping_samples: bool = False,
    now: datetime.datetime | None = None,
) -> Dataset:
    """Read a CSV table, ``<SFT>`` text or plain text into token samples of at most ``context`` rows.

    A table is known by its suffix or its header; a text with ``sample_start`` in it (None stands for ``<SFT>``) is
    ``<SFT>`` text; ``sample_start=""`` or, where None is given, a text without marker is plain text, cut into windows.
    ``template`` None stands for the model's own (see :func:`choose_template`), in ``<SFT>`` text for the one whose
    answer tag occurs. ``now`` is the time for a model's template that writes the date: the same time gives the same
    samples. Raises :class:`DataError` for bad data, :class:`GgtuneError` for a template that can't be used.
    """
    text = read_text(path) if Path(path).suffix.lower() not in _OTHER_FORMATS else ""
    kind = _kind_of(Path(path), text, sample_start)
    options = _Options(
        template=template or None,
        system=system or None,
        loss_on=loss_on,
        context=context,
        question_column=question_column or None,
        answer_column=answer_column or None,
        sample_start=sample_start or SAMPLE_START,
        include_sample_start=include_sample_start,
        now=now,
    )
    report = LoadReport(str(path), kind)
    if context < 1:
        raise GgtuneError(f"A context of {context} tokens holds no sample.")
    chosen: Template | None = None
    systems: list[str | None] = []
    prompts: list[str] = []
    if kind == "csv":
        samples, chosen, systems = _from_csv(path, tokenizer, options, report)
    elif kind == "sft":
        samples, chosen, prompts = _from_sft(path, text, tokenizer, options, report)
    else:
        samples = text_windows(tokenizer, text, context, overlapping=overlapping_samples)
        if not samples:
            raise DataError(f"{path}: the text is shorter than two tokens.")
        report.notes.append("plain text: the loss is on every token")
    report.template = chosen.name if chosen else None
    report.n_read = len(samples)
    fitted = fit_context(samples, context, too_long, str(path))
    report.cut_rows, report.skipped_rows = fitted.cut_rows, fitted.skipped_rows
    skipped = set(fitted.skipped_rows)
    kept = [sample.row not in skipped for sample in samples]
    asked = SystemText()
    if kind == "csv":
        asked = system_of_records(compress(systems, kept))
    elif chosen is not None:
        asked = system_of_prompts(list(compress(prompts, kept)), chosen)
        if asked == SystemText():
            report.notes.append(
                f"not all samples have the form of the template '{chosen.name}': their system text, if any, is unknown"
            )
    report.system, report.system_differs = asked.text, asked.differs
    return Dataset(fitted.samples, chosen, report)


def _kind_of(path: Path, text: str, sample_start: str | None) -> Kind:
    suffix = path.suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise DataError(f"{path}: {suffix} files are not read. Convert it to CSV with a question and an answer column.")
    if suffix in _CSV_SUFFIXES:
        return "csv"
    if sample_start == "":
        return "text"
    if (sample_start or SAMPLE_START) in text:
        return "sft"
    if has_csv_header(text):
        return "csv"
    return "text" if sample_start is None else "sft"


def _from_csv(
    path: str | Path, tokenizer: TemplatedTokenizer, options: _Options, report: LoadReport
) -> tuple[list[Sample], Template, list[str | None]]:
    template = options.template
    if template is None or isinstance(template, str):
        template = choose_template(template, tokenizer, now=options.now)
    if options.system:
        template.render_prompt(options.system, "?")  # a refusal is the template's, not a row's
    table = read_csv(path, question_column=options.question_column, answer_column=options.answer_column)
    encoder = TurnEncoder(tokenizer, template)
    samples: list[Sample] = []
    systems = [record.system or options.system for record in table.records]
    for record, system in zip(table.records, systems, strict=True):
        try:
            rendered = template.render(system, record.question, record.answer)
        except GgtuneError as error:
            raise DataError(f"{path}: row {record.row}: {error}") from error
        samples.append(make_sample(*encoder.encode_turn(rendered), options.loss_on, record.row))
    report.empty_rows = table.empty_rows
    report.notes += encoder.notes
    if options.system and options.system not in systems:
        report.notes.append("the given system text is in no sample: every row has one of its own")
    if table.unused_columns:
        report.notes.append("columns not used: " + ", ".join(table.unused_columns))
    return samples, template, systems


def _from_sft(
    path: str | Path, text: str, tokenizer: TemplatedTokenizer, options: _Options, report: LoadReport
) -> tuple[list[Sample], Template | None, list[str]]:
    texts = split_samples(path, text, options.sample_start)
    template = options.template
    if isinstance(template, str):
        template = choose_template(template, tokenizer, now=options.now)
    found = template or find_template(texts, _candidates(tokenizer, options.now))
    tag = answer_tag(found) if found else ""
    if options.loss_on == "answer":
        untagged = [sample.line for sample in texts if not tag or tag not in sample.text]
        if untagged:
            looked_for = f"no answer tag {tag!r} of the template '{found.name}'" if found else "no known answer tag"
            raise DataError(
                f"{path}: {looked_for} in the samples at {_rows('lines', untagged)}: it is unknown where their answers "
                "start. Give their --template, or learn every token with --loss-on all."
            )
    # without known tags: plain has no BOS, suffix or end text of its own
    used = found or TEMPLATES["plain"]
    encoder = TurnEncoder(tokenizer, used)
    prefix = options.sample_start if options.include_sample_start else ""
    samples: list[Sample] = []
    prompts: list[str] = []
    empty: list[int] = []
    for sample in texts:
        turn = encode_text(tokenizer, encoder, used, sample.text, tag=tag, prefix=prefix)
        if not turn.has_answer:
            empty.append(sample.line)
            continue
        report.end_appended += turn.end_appended
        prompts.append(turn.prompt_text)
        samples.append(make_sample(turn.prompt, turn.answer, options.loss_on, sample.line))
    if not samples:
        raise DataError(f"{path}: none of the {len(texts)} samples has an answer.")
    report.empty_rows = empty
    report.notes += encoder.notes
    if options.system:
        report.notes.append("the system text is not put into <SFT> text: its samples are used as they stand")
    return samples, found, prompts


def _candidates(tokenizer: TemplatedTokenizer, now: datetime.datetime | None) -> list[Template]:
    """Templates to look for in a text, the model's own first."""
    named: list[Template] = [template for template in TEMPLATES.values() if template.name != "plain"]
    if not tokenizer.chat_template:
        return named
    try:
        return [model_template(tokenizer, now=now), *named]
    except GgtuneError:
        return named


def _rows(word: str, rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:_SHOWN_ROWS])
    return f"{word} {shown}" + (f", ... ({len(rows)} in all)" if len(rows) > _SHOWN_ROWS else "")
