"""Training files to token samples, and the report of what was left out."""

from __future__ import annotations

import datetime
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ggtune.data.chat_template import TemplatedTokenizer, choose_template
from ggtune.data.conversation import Conversation, Document
from ggtune.data.dataset import Dataset, FileRows, LoadReport
from ggtune.data.doubts import Inspector, NearDuplicates
from ggtune.data.encoding import SampleEncoder
from ggtune.data.options import Learn, LoadOptions
from ggtune.data.parallel import in_order, usual_threads
from ggtune.data.readers.reader import Item, ReadOptions
from ggtune.data.readers.sft_samples import TextSample
from ggtune.data.rendered import template_that_wrote
from ggtune.data.sample_cache import cached
from ggtune.data.samples import LossOn, Sample, TooLong, WindowCutter, text_tokens
from ggtune.data.sft import answer_tag
from ggtune.data.sources import Source, files_of, open_source
from ggtune.data.store import Column, StoreBuilder
from ggtune.data.system_text import SystemText, system_of_prompts, system_of_records
from ggtune.data.templates import TEMPLATES, Template
from ggtune.data.tokenization import IntArray
from ggtune.errors import DataError, GgtuneError, ModelError
from ggtune.setting_texts import DataPart

_Encoded = TypeVar("_Encoded")
_QUIET_S = 2.0  # reading that takes longer shows how far it is
_LOOKED_AT = 1000  # texts from which the template is told
_MOST_PROMPTS, _MOST_CHARACTERS = 20_000, 20_000_000  # kept to find the system text in
_MOST_SYSTEMS = 1000  # different ones: that they differ is known then


def load_samples(
    path: str | Path | Sequence[DataPart],
    tokenizer: TemplatedTokenizer,
    *,
    context: int,
    template: Template | str | None = None,
    system: str | None = None,
    loss_on: LossOn = "answer",
    learn: Learn = "all-assistant",
    prompt_weight: float = 0.0,
    split_turns: bool = True,
    too_long: TooLong = "cut",
    drop: Sequence[str] = (),
    near_duplicates: bool = False,
    read: ReadOptions | None = None,
    skip_bad: bool = False,
    sample_start: str | None = None,
    include_sample_start: bool = False,
    overlapping_samples: bool = False,
    now: datetime.datetime | None = None,
    threads: int = 0,
) -> Dataset:
    """Read data files or folders (:mod:`ggtune.data.readers`) into token samples of at most ``context`` rows.

    ``template`` None stands for the model's own (see :func:`choose_template`), in rendered text for the one whose
    answer tag occurs. Any number of ``threads`` (0: one for each core, at most four) gives the same samples. Raises
    :class:`DataError` for bad data (all bad rows in one, unless ``skip_bad``), and :class:`GgtuneError` for a template
    that can't be used.
    """
    options = LoadOptions(
        context=context,
        template=template or None,
        system=system or None,
        loss_on=loss_on,
        learn=learn,
        prompt_weight=prompt_weight,
        split_turns=split_turns,
        too_long=too_long,
        drop=tuple(drop),
        near_duplicates=near_duplicates,
        read=read or ReadOptions(sample_start=sample_start, skip_bad=skip_bad),
        include_sample_start=include_sample_start,
        overlapping_samples=overlapping_samples,
        now=now,
    )
    parts = [DataPart(str(path))] if isinstance(path, (str, Path)) else list(path)
    return load_parts(parts, tokenizer, options, threads=threads)


def load_parts(
    parts: Sequence[DataPart], tokenizer: TemplatedTokenizer, options: LoadOptions, *, threads: int = 0
) -> Dataset:
    """Read data files or folders, as :func:`load_samples` does, with all that may be said about them."""
    return cached(parts, tokenizer, options, _Loader(parts, tokenizer, options, threads or usual_threads()).load)


class _Loader:
    def __init__(
        self, parts: Sequence[DataPart], tokenizer: TemplatedTokenizer, options: LoadOptions, threads: int
    ) -> None:
        self._parts, self._tokenizer, self._options, self._threads = parts, tokenizer, options, threads
        self._part = parts[0]
        self._path = self._file = Path(parts[0].path)
        self._unit = "row"
        self._builder = StoreBuilder()
        self._report = LoadReport(", ".join(part.path for part in parts), "")
        # rows of the samples, numbered on from file to file
        self._before = self._last = 0
        self._cut, self._skipped = array("I"), array("I")
        self._lengths = array("I")  # of samples that did not fit
        self._systems: set[str | None] = set()
        self._prompts: dict[str, None] = {}
        self._template: Template | None = None
        self._template_file = Path()  # that was the first in this template
        self._encoders: list[SampleEncoder] = []
        self._by_template: SampleEncoder | None = None  # of conversations
        self._inspector = Inspector(NearDuplicates() if options.near_duplicates else None, self._report.row)
        self._groups = Column("q")
        self._dropped: dict[str, array[int]] = {}
        self._empty = array("I")
        self._bad: list[tuple[int, str]] = []

    def load(self) -> Dataset:
        options, report = self._options, self._report
        if options.context < 1:
            raise GgtuneError(f"A context of {options.context} tokens holds no sample.")
        files = [(part, file) for part in self._parts for file in files_of(part.path)]
        names = _names([file for _, file in files])
        found: list[FileRows] = []
        all_plain = True
        for (self._part, file), name in zip(files, names, strict=True):
            self._path = Path(self._part.path)
            source = open_source(file, options.read)
            self._before = self._last
            report.kind, report.plain = source.kind, False
            self._load(source)
            report.unit = source.findings.unit
            found.append(FileRows(name, report.unit, self._before))
            if len(files) > 1:
                report.files = tuple(found)
            all_plain = all_plain and report.plain
            self._take(source, name if len(files) > 1 else "")
        report.plain = all_plain
        if not len(self._builder):
            raise self._nothing()
        report.empty_rows, report.bad_rows = self._empty, self._bad
        report.cut_rows, report.skipped_rows = self._cut, self._skipped
        report.too_long_lengths = array("I", (n + 1 for n in self._lengths))
        if self._template is not None:
            report.template, report.title = self._template.name, self._template.title
        report.end_appended = sum(encoder.end_appended for encoder in self._encoders)
        if self._options.loss_on == "all" and (self._options.learn != "all-assistant" or self._options.prompt_weight):
            report.notes.append("loss on all: every token counts, whatever learn and prompt_weight say")
        notes = [note for encoder in self._encoders for note in encoder.notes]
        report.notes = [*dict.fromkeys([*notes, *report.notes])]
        unit = report.unit if len(report.files) < 2 else "row"
        report.notes += [note for encoder in self._encoders for note in encoder.notes_on_thinking(unit)]
        asked = self._asked()
        report.system, report.system_differs = asked.text, asked.differs
        report.doubts, report.dropped = self._inspector.finish(), self._dropped
        del self._inspector  # its hashes take more memory than the samples
        groups: NDArray[np.int64] = self._groups.values()
        return Dataset(self._builder.build(), self._template, report, groups)

    def _load(self, source: Source) -> None:
        first = next(source.items, None)
        if first is None:
            return
        self._file, self._unit = source.path, source.findings.unit
        self._report.unit = self._unit
        items = chain([first], source.items)
        if isinstance(first, Conversation):
            self._conversations(items, source)
        elif source.findings.rendered or self._options.read.sample_start:
            self._rendered(items, source)
        else:
            self._plain(items, source)

    def _conversations(self, items: Iterable[Item], source: Source) -> None:
        options = self._options
        if self._by_template is None:
            template = options.template
            if template is None or isinstance(template, str):
                template = choose_template(template, self._tokenizer, now=options.now)
            if options.system:
                template.render_prompt(options.system, "?")  # a refusal is the template's, not a row's
            self._use(template, source.path)
            self._by_template = SampleEncoder(self._tokenizer, template, options)
            self._encoders.append(self._by_template)
        encoder = self._by_template

        def encode(item: Item) -> list[Sample] | GgtuneError | None:
            try:
                return (
                    encoder.conversation(item.with_system(options.system)) if isinstance(item, Conversation) else None
                )
            except GgtuneError as error:
                return error

        for item, samples in self._in_order(encode, items):
            if not isinstance(item, Conversation) or samples is None:
                source.findings.add_bad(item.row, "is a text, and the rows before are conversations")
                continue
            if isinstance(samples, ModelError):  # not the row's fault
                raise samples
            if isinstance(samples, GgtuneError):
                source.findings.add_bad(item.row, str(samples))
                continue
            own = item.system
            group, kinds = self._inspector.add(item, self._before + item.row)
            added = [self._fit(sample, group, kinds, counted=i == 0) for i, sample in enumerate(samples)]
            if any(added):
                system = own or options.system
                if len(self._systems) < _MOST_SYSTEMS or system == options.system:
                    self._systems.add(system)

    def _rendered(self, items: Iterable[Item], source: Source) -> None:
        """Texts that hold a template's tags, or none in any: then they are plain."""
        options = self._options
        iterator = iter(items)
        looked_at = list(islice(iterator, _LOOKED_AT))
        texts = [item for item in looked_at if isinstance(item, Document)]
        template = options.template
        if isinstance(template, str):
            template = choose_template(template, self._tokenizer, now=options.now)
        samples = [TextSample(item.text, item.row) for item in texts]
        found = template or template_that_wrote(samples, self._tokenizer, now=options.now)
        everything: Iterable[Item] = chain(looked_at, iterator)
        if source.kind != "sft" and (found is None or not any(answer_tag(found) in item.text for item in texts)):
            self._plain(everything, source)
            return
        # without known tags: plain has no BOS, suffix or end text of its own
        used = found or TEMPLATES["plain"]
        if found is not None:
            self._use(found, source.path)
        encoder = SampleEncoder(self._tokenizer, used, options)
        self._encoders.append(encoder)
        tag = answer_tag(found) if found else ""
        untagged: list[int] = []
        n_characters = _MOST_CHARACTERS

        def encode(item: Item) -> tuple[Sample, str] | DataError | None:
            if not isinstance(item, Document) or (options.loss_on == "answer" and (not tag or tag not in item.text)):
                return None
            try:
                return encoder.text(item, tag)
            except DataError as error:
                return error

        for item, encoded in self._in_order(encode, everything):
            if not isinstance(item, Document):
                source.findings.add_bad(item.row, "is a conversation, and the rows before are texts")
                continue
            if options.loss_on == "answer" and (not tag or tag not in item.text):
                untagged.append(item.row)
                continue
            if isinstance(encoded, DataError):
                source.findings.add_bad(item.row, str(encoded))
                continue
            if encoded is None:
                source.findings.empty.append(item.row)
                continue
            sample, prompt = encoded
            answer = item.text.partition(tag)[2] if tag else item.text
            looked_at_it = self._inspector.add_rendered(self._before + item.row, prompt, answer)
            if self._fit(sample, *looked_at_it) and len(self._prompts) < _MOST_PROMPTS and n_characters > 0:
                n_characters -= len(prompt)
                self._prompts[prompt] = None
        if untagged and not (options.read.skip_bad and len(self._builder)):
            looked_for = f"no answer tag {tag!r} of the template '{found.title}'" if found else "no known answer tag"
            where = LoadReport(str(source.path), source.kind, source.findings.unit).row_list(untagged)
            raise DataError(
                f"{source.path}: {looked_for} in the samples at {where}: it is unknown where their answers start. Give "
                "their --template, or learn every token with --loss-on all."
            )
        for row in untagged:
            source.findings.add_bad(row, "has no answer tag")
        if options.system:
            self._report.notes.append("the system text is not put into <SFT> text: its samples are used as they stand")

    def _plain(self, items: Iterable[Item], source: Source) -> None:
        options = self._options
        self._report.plain = True
        n_documents, group, cutter = 0, 0, WindowCutter(self._tokenizer, options.context)

        def tokens_of(item: Item) -> IntArray | None:
            return text_tokens(self._tokenizer, item.text, item.before) if isinstance(item, Document) else None

        for item, tokens in self._in_order(tokens_of, items):
            if not isinstance(item, Document) or tokens is None:
                raise DataError(f"{source.path}: row {item.row} is a conversation, and the rows before are texts.")
            is_first = not item.before
            n_documents += is_first
            if not item.weight:
                source.findings.add_bad(item.row, "nothing of it would be learned: its weight is 0")
                continue
            if is_first:
                cutter = WindowCutter(self._tokenizer, options.context, overlapping=options.overlapping_samples)
            by_window = source.kind == "text"
            row = cutter.n_windows + 1 if by_window else item.row
            found, kinds = self._inspector.add(item, self._before + row)
            group = found if is_first else group
            for window in cutter.add(tokens, last=not item.goes_on):
                weights = window.weights * np.float32(item.weight)
                # windows of one text may be held out singly, but for those that share half of their tokens
                part = group if options.overlapping_samples else _of_window(group, window.row)
                self._fit(replace(window, row=window.row if by_window else item.row, weights=weights), part, kinds)
        self._report.notes.append("plain text: the loss is on every token")
        if n_documents > 1:
            self._report.notes.append(f"{n_documents} texts, each with an end token behind it")

    def _in_order(self, encode: Callable[[Item], _Encoded], items: Iterable[Item]) -> Iterator[tuple[Item, _Encoded]]:
        """Encode in threads, and show how far it is where that takes long."""
        bar = tqdm(items, desc="Tokenizing", unit=f" {self._report.unit}s", delay=_QUIET_S, leave=False, disable=None)
        with bar:
            yield from in_order(encode, bar, size=_size, threads=self._threads)

    def _fit(self, sample: Sample, group: int, kinds: set[str], *, counted: bool = True) -> bool:
        """Add a sample, cut to the context, and say whether it was added.

        Skipped is what is too long or has no target left, and what has a doubt of a kind that is not wanted. Further
        samples of one row are not ``counted``.
        """
        self._report.n_read += counted
        row = sample.row
        if self._before:
            sample = replace(sample, row=self._before + row)
        self._last = max(self._last, sample.row)
        if unwanted := [kind for kind in self._options.drop if kind in kinds]:
            if counted:
                self._dropped.setdefault(unwanted[0], array("I")).append(sample.row)
            return False
        if sample.n_rows > self._options.context:
            weights = sample.weights[: self._options.context + 1]
            self._lengths.append(sample.n_rows)
            # of what is left, more than what the model is given has to count
            given = 1.001 * self._options.prompt_weight * float(sample.weights.max())  # weights are rounded to float32
            if self._options.too_long == "skip" or float(weights.max()) <= given:
                if counted or list(self._skipped[-1:]) != [sample.row]:
                    self._skipped.append(sample.row)
                return False
            tokens = sample.tokens[: self._options.context + 1]
            sample = Sample(tokens, weights, min(sample.n_prompt, len(tokens)), sample.row)
            if counted or list(self._cut[-1:]) != [sample.row]:
                self._cut.append(sample.row)
        if self._part.weight != 1:
            sample = replace(sample, weights=sample.weights * np.float32(self._part.weight))
        for _ in range(self._part.repeat):
            try:
                self._builder.append(sample)
            except DataError as error:
                raise DataError(f"{self._file}: {self._unit} {row}: {error}.") from error
            self._groups.append(group)
        return True

    def _use(self, template: Template, file: Path) -> None:
        """Take the template of a file for that of all. Raises :class:`DataError` where another file has another."""
        if self._template is not None and self._template.name != template.name:
            raise DataError(
                f"{file} is in the template '{template.title}', and {self._template_file} in '{self._template.title}': "
                "a model is asked by one template after a training. Give the one of rendered text by --template, so "
                "that the conversations of the other files are written in it, or train on files of one template."
            )
        if self._template is None:
            self._template, self._template_file = template, file

    def _take(self, source: Source, name: str) -> None:
        """Note what the reader found; raise for bad rows that are not to be skipped."""
        findings = source.findings
        findings.bad.sort()  # the reader is a little ahead of the encoder
        findings.check(source.path, self._options.read)
        self._empty.extend(self._before + number for number in findings.empty)
        self._bad += [(self._before + number, reason) for number, reason in findings.bad]
        numbers = (*findings.empty, *(number for number, _ in findings.bad))
        self._last = max(self._last, self._before + max(numbers, default=0))
        in_file = f"{name}: " if name else ""
        self._report.notes += [in_file + note for note in findings.notes]
        if findings.unused:
            self._report.notes.append(f"{in_file}columns not used: " + ", ".join(findings.unused))

    def _nothing(self) -> GgtuneError:
        if self._dropped:
            return DataError(f"{self._path}: no row is left: all of them were left out by --drop.")
        if self._skipped:
            return DataError(
                f"{self._path}: no sample fits into a context of {self._options.context} tokens: the shortest needs "
                f"{min(self._lengths)}, all of them {max(self._lengths)}. Use a larger --ctx."
            )
        if self._report.kind == "sft" and self._empty:
            return DataError(f"{self._path}: none of the {len(self._empty)} samples has an answer.")
        if self._empty or self._bad:
            reason = f"question or answer is empty in all {len(self._empty)}" if self._empty else "all rows are bad"
            return DataError(f"{self._path}: no usable row: {reason}.")
        if self._report.kind == "text":
            return DataError(f"{self._path}: the text is shorter than two tokens.")
        return DataError(f"{self._path}: no usable row: there is only a header.")

    def _asked(self) -> SystemText:
        found: list[SystemText] = []
        if self._systems:
            if self._options.system and self._options.system not in self._systems:
                self._report.notes.append("the given system text is in no sample: every row has one of its own")
            found.append(system_of_records(self._systems))
        if self._prompts and self._template is not None:
            found.append(system_of_prompts(list(self._prompts), self._template))
            if found[-1] == SystemText():
                self._report.notes.append(
                    f"not all samples have the form of the template '{self._template.title}': their system text, if "
                    "any, is unknown"
                )
        if len(found) > 1 and found[0] != found[1] and SystemText() not in found:
            return SystemText(differs=True)
        return next((text for text in found if text == SystemText()), found[0] if found else SystemText())


def _names(files: Sequence[Path]) -> list[str]:
    """Name files for a reader: by their last part where no two have the same."""
    counts = Counter(file.name for file in files)
    return [str(file) if counts[file.name] > 1 else file.name for file in files]


def _of_window(group: int, number: int) -> int:
    """Hash of a window of a text, the text's own for the first one."""
    mixed = (group + (number - 1) * 0x9E3779B97F4A7C15) & (2**64 - 1)
    return mixed - 2**64 if mixed >= 2**63 else mixed


def _size(item: Item) -> int:
    return len(item.text) if isinstance(item, Document) else sum(len(turn.text) for turn in item.turns)
