"""Training files to token samples, and the report of what was left out."""

from __future__ import annotations

import datetime
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from ggtune.data.chat_template import TemplatedTokenizer, choose_template, model_template
from ggtune.data.conversation import Conversation, Document
from ggtune.data.dataset import Dataset, LoadReport, row_list
from ggtune.data.doubts import Inspector, NearDuplicates
from ggtune.data.encoding import SampleEncoder
from ggtune.data.options import Learn, LoadOptions
from ggtune.data.parallel import in_order, usual_threads
from ggtune.data.readers import has_reader, reader_for
from ggtune.data.readers.decoding import encoding_of, head_of
from ggtune.data.readers.reader import Findings, Item, ReadOptions
from ggtune.data.readers.sft_samples import TextSample
from ggtune.data.sample_cache import cached
from ggtune.data.samples import LossOn, Sample, TooLong, text_windows
from ggtune.data.sft import answer_tag, find_template, without_bos
from ggtune.data.shapes import Columns
from ggtune.data.sources import files_of
from ggtune.data.store import StoreBuilder
from ggtune.data.system_text import SystemText, system_of_prompts, system_of_records
from ggtune.data.templates import TEMPLATES, Template
from ggtune.data.tokenization import token_text
from ggtune.errors import DataError, GgtuneError, ModelError
from ggtune.setting_texts import DataPart

_Encoded = TypeVar("_Encoded")
_SHOWN_ROWS = 10
_QUIET_S = 2.0  # reading that takes longer shows how far it is
_LOOKED_AT = 1000  # texts from which the template is told
_MOST_PROMPTS, _MOST_CHARACTERS = 20_000, 20_000_000  # kept to find the system text in
_MOST_SYSTEMS = 1000  # different ones: that they differ is known then
_BINARY_HEADS = (b"PAR1", b"ARROW1", b"GGUF", b"PK\x03\x04", b"\x1f\x8b", b"%PDF")


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
    question_column: str | None = None,
    answer_column: str | None = None,
    context_column: str | None = None,
    weight_column: str | None = None,
    data_format: str | None = None,
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
    columns = Columns(question_column or None, answer_column or None, context_column or None, weight_column or None)
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
        read=ReadOptions(data_format or "", columns, sample_start, skip_bad),
        include_sample_start=include_sample_start,
        overlapping_samples=overlapping_samples,
        now=now,
    )
    parts = [DataPart(str(path))] if isinstance(path, (str, Path)) else list(path)
    loader = _Loader(parts, tokenizer, options, threads or usual_threads())
    return cached(parts, tokenizer, options, loader.load)


@dataclass(frozen=True)
class Source:
    """A data file that is being read."""

    path: Path
    kind: str
    items: Iterator[Item]
    findings: Findings


def open_source(path: Path, options: ReadOptions) -> Source:
    """Begin to read a file. Raises :class:`DataError` for one that nothing here reads."""
    head = "" if options.format or has_reader(path) else _head(path)
    reader = reader_for(path, head, options)
    findings = Findings()
    return Source(path, reader.name, reader.read(path, options, findings), findings)


def is_rendered(path: str | Path, options: ReadOptions) -> bool:
    """Whether data are texts (rendered conversations, or plain), not turns. Raises :class:`DataError`."""
    source = open_source(files_of(path)[0], options)
    return not isinstance(next(source.items, None), Conversation)


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}.") from error
    if start.startswith(_BINARY_HEADS):
        return start.decode("latin-1")
    return head_of(path, encoding_of(path, []))


class _Loader:
    def __init__(
        self, parts: Sequence[DataPart], tokenizer: TemplatedTokenizer, options: LoadOptions, threads: int
    ) -> None:
        self._parts, self._tokenizer, self._options, self._threads = parts, tokenizer, options, threads
        self._part = parts[0]
        self._path = Path(parts[0].path)
        self._builder = StoreBuilder()
        self._report = LoadReport(", ".join(part.path for part in parts), "")
        self._cut: list[int] = []
        self._skipped: list[int] = []
        self._lengths: list[int] = []  # of samples that did not fit
        self._systems: set[str | None] = set()
        self._prompts: dict[str, None] = {}
        self._template: Template | None = None
        self._encoder: SampleEncoder | None = None
        self._inspector = Inspector(NearDuplicates() if options.near_duplicates else None)
        self._groups = array("q")
        self._dropped: dict[str, list[int]] = {}
        self._empty: list[int] = []
        self._bad: list[tuple[int, str]] = []

    def load(self) -> Dataset:
        options, report = self._options, self._report
        if options.context < 1:
            raise GgtuneError(f"A context of {options.context} tokens holds no sample.")
        for part in self._parts:
            self._part, self._path = part, Path(part.path)
            for file in files_of(self._path):
                source = open_source(file, options.read)
                report.kind = source.kind
                self._load(source)
                report.unit = source.findings.unit
                self._take(source)
        if not len(self._builder):
            raise self._nothing()
        report.empty_rows, report.bad_rows = self._empty, self._bad
        report.cut_rows, report.skipped_rows = self._cut, self._skipped
        report.too_long_lengths = [n + 1 for n in self._lengths]
        if self._template is not None:
            report.template, report.title = self._template.name, self._template.title
        if self._options.loss_on == "all" and (self._options.learn != "all-assistant" or self._options.prompt_weight):
            report.notes.append("loss on all: every token counts, whatever learn and prompt_weight say")
        if self._encoder is not None:
            report.end_appended = self._encoder.end_appended
            report.notes = [*dict.fromkeys([*self._encoder.notes, *report.notes])]
            report.notes += self._encoder.notes_on_thinking(report.unit)
        asked = self._asked()
        report.system, report.system_differs = asked.text, asked.differs
        report.doubts, report.dropped = self._inspector.finish(), self._dropped
        return Dataset(self._builder.build(), self._template, report, np.frombuffer(self._groups, np.int64))

    def _load(self, source: Source) -> None:
        first = next(source.items, None)
        if first is None:
            return
        items = chain([first], source.items)
        if isinstance(first, Conversation):
            self._conversations(items, source)
        elif source.findings.rendered or self._options.read.sample_start:
            self._rendered(items, source)
        else:
            self._plain(items, source)

    def _conversations(self, items: Iterable[Item], source: Source) -> None:
        options = self._options
        if self._template is None or self._encoder is None:
            template = options.template
            if template is None or isinstance(template, str):
                template = choose_template(template, self._tokenizer, now=options.now)
            if options.system:
                template.render_prompt(options.system, "?")  # a refusal is the template's, not a row's
            self._template, self._encoder = template, SampleEncoder(self._tokenizer, template, options)
        encoder = self._encoder

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
            group, kinds = self._inspector.add(item)
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
        found = template or self._that_wrote(samples)
        everything: Iterable[Item] = chain(looked_at, iterator)
        if source.kind != "sft" and (found is None or not any(answer_tag(found) in item.text for item in texts)):
            self._plain(everything, source)
            return
        # without known tags: plain has no BOS, suffix or end text of its own
        used = found or TEMPLATES["plain"]
        self._template = found
        self._encoder = encoder = SampleEncoder(self._tokenizer, used, options)
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
            looked_at_it = self._inspector.add_rendered(item.row, prompt, answer)
            if self._fit(sample, *looked_at_it) and len(self._prompts) < _MOST_PROMPTS and n_characters > 0:
                n_characters -= len(prompt)
                self._prompts[prompt] = None
        if untagged and not (options.read.skip_bad and len(self._builder)):
            looked_for = f"no answer tag {tag!r} of the template '{found.title}'" if found else "no known answer tag"
            where = row_list(f"{source.findings.unit}s", untagged)
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
        n_documents = 0

        def cut(item: Item) -> list[Sample]:
            if not isinstance(item, Document):
                return []
            return text_windows(self._tokenizer, item.text, options.context, overlapping=options.overlapping_samples)

        for item, windows in self._in_order(cut, items):
            if not isinstance(item, Document):
                raise DataError(f"{self._path}: row {item.row} is a conversation, and the rows before are texts.")
            n_documents += 1
            if not item.weight:
                source.findings.add_bad(item.row, "nothing of it would be learned: its weight is 0")
                continue
            group, kinds = self._inspector.add(item)
            for window in windows:
                row = window.row if source.kind == "text" else item.row
                weights = window.weights * np.float32(item.weight)
                self._fit(replace(window, row=row, weights=weights), group, kinds)
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
        if unwanted := [kind for kind in self._options.drop if kind in kinds]:
            if counted:
                self._dropped.setdefault(unwanted[0], []).append(sample.row)
            return False
        if sample.n_rows > self._options.context:
            weights = sample.weights[: self._options.context + 1]
            self._lengths.append(sample.n_rows)
            # of what is left, more than what the model is given has to count
            given = 1.001 * self._options.prompt_weight * float(sample.weights.max())  # weights are rounded to float32
            if self._options.too_long == "skip" or float(weights.max()) <= given:
                if counted or self._skipped[-1:] != [sample.row]:
                    self._skipped.append(sample.row)
                return False
            tokens = sample.tokens[: self._options.context + 1]
            sample = Sample(tokens, weights, min(sample.n_prompt, len(tokens)), sample.row)
            if counted or self._cut[-1:] != [sample.row]:
                self._cut.append(sample.row)
        if self._part.weight != 1:
            sample = replace(sample, weights=sample.weights * np.float32(self._part.weight))
        for _ in range(self._part.repeat):
            self._builder.append(sample)
            self._groups.append(group)
        return True

    def _take(self, source: Source) -> None:
        """Note what the reader found; raise for bad rows that are not to be skipped."""
        findings = source.findings
        findings.bad.sort()  # the reader is a little ahead of the encoder
        findings.check(source.path, self._options.read)
        self._empty += findings.empty
        self._bad += findings.bad
        alone = len(self._parts) == 1 and source.path == self._path
        name = "" if alone else f"{source.path.name}: "
        self._report.notes += [name + note for note in findings.notes]
        if findings.unused:
            self._report.notes.append(f"{name}columns not used: " + ", ".join(findings.unused))

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
        if self._systems:
            if self._options.system and self._options.system not in self._systems:
                self._report.notes.append("the given system text is in no sample: every row has one of its own")
            return system_of_records(self._systems)
        if self._prompts and self._template is not None:
            found = system_of_prompts(list(self._prompts), self._template)
            if found == SystemText():
                self._report.notes.append(
                    f"not all samples have the form of the template '{self._template.title}': their system text, if "
                    "any, is unknown"
                )
            return found
        return SystemText()

    def _that_wrote(self, samples: Sequence[TextSample]) -> Template | None:
        """Find the template that the texts were made with: one that writes such prompts, if there is one."""
        candidates = self._candidates()
        found = find_template(samples, candidates)
        if found is None:
            return None
        tag = answer_tag(found)
        heads = [sample.text.partition(tag)[0] for sample in samples if tag in sample.text]
        alike = [found, *(other for other in candidates if other is not found and answer_tag(other) == tag)]
        # the model's own may put a system text of its own where the texts have none
        return next((other for other in alike if self._wrote(other, heads, tag)), found)

    def _wrote(self, template: Template, heads: Sequence[str], tag: str) -> bool:
        """Whether a template writes such texts in front of the answer tag."""
        bos = token_text(self._tokenizer, self._tokenizer.bos_token)
        is_tag = bool(bos) and template.render_prompt(None, "?").prompt.startswith(bos)
        prompts = [without_bos(head, [template.bos] if is_tag else [bos, template.bos]) + tag for head in heads]
        return system_of_prompts(prompts, template) != SystemText()

    def _candidates(self) -> list[Template]:
        """Templates to look for in a text, the model's own first."""
        named: list[Template] = [template for template in TEMPLATES.values() if template.name != "plain"]
        if not self._tokenizer.chat_template:
            return named
        try:
            return [model_template(self._tokenizer, now=self._options.now), *named]
        except GgtuneError:
            return named


def _size(item: Item) -> int:
    return len(item.text) if isinstance(item, Document) else sum(len(turn.text) for turn in item.turns)
