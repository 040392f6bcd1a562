"""A comparison for a reader: lines for a terminal, and Markdown."""

import textwrap
from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from ggtune.evaluate.answers import AnsweredSample
from ggtune.evaluate.comparison import Change, Comparison, ScoreRow
from ggtune.evaluate.error_kinds import KINDS
from ggtune.evaluate.side_by_side import rendered, shortened, side_by_side

_GAP = 2
_MOVES = 5  # changes of kind that are said


def lines(comparison: Comparison, *, width: int = 100, rows: int = 3) -> list[str]:
    """Say it for a terminal; ``rows``: how many of those that got better, and of those that got worse, are shown.

    Of several subjects the rows are those of the second against the first.
    """
    found = [line for text in _scores(comparison, width) for line in _wrapped(text, width)]
    found += ["", *_kinds(comparison, width)]
    for subject in range(1, len(comparison.labels)):
        found.append(_counts(comparison, subject))
    return [*found, *_rows(comparison, width, rows)]


def _wrapped(text: str, width: int) -> list[str]:
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    return textwrap.wrap(text, width, subsequent_indent=indent) if len(text) > width else [text]


def summary(comparison: Comparison, subject: int = 1) -> str:
    """One sentence on a subject against the first."""
    better, worse = len(comparison.better(subject)), len(comparison.worse(subject))
    shown = [
        f"{row.metric.title.split(' (')[0]} {verdict.text(row.metric)}"
        for row in comparison.scores
        if (verdict := row.verdicts[subject - 1]) is not None and verdict.better(row.metric) is not None
    ]
    of_rows = f"{better} rows got better and {worse} worse, by {_name(comparison)}"
    text = "; ".join(shown) if shown else f"no difference can be shown with {comparison.n_samples} rows"
    return f"{comparison.labels[subject]} against {comparison.labels[0]}: {text}. {of_rows}."


def _scores(comparison: Comparison, width: int) -> list[str]:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_edge=False)
    table.add_column(no_wrap=True)
    for label in comparison.labels:
        table.add_column(Text(label), justify="right", overflow="fold")
    two = len(comparison.labels) == 2
    if two:
        table.add_column(Text(f"{comparison.labels[1]} is"), overflow="fold")
    for row in comparison.scores:
        cells = [row.metric.title, *_values(row)]
        table.add_row(*(Text(cell) for cell in (*cells, *([_verdict(row, 1)] if two else []))))
    found = rendered(table, width)
    if not two:
        for subject in range(1, len(comparison.labels)):
            found += ["", *_against_first(comparison, subject)]
    return [*found, *_footnote(comparison)]


def _against_first(comparison: Comparison, subject: int) -> list[str]:
    """The scores of one subject against the first; those that say nothing in one line."""
    tested = [(row, verdict) for row in comparison.scores if (verdict := row.verdicts[subject - 1]) is not None]
    shown = [(row, verdict) for row, verdict in tested if verdict.better(row.metric) is not None]
    names = max((len(row.metric.title) for row, _ in shown), default=0)
    found = [f"{comparison.labels[subject]} against {comparison.labels[0]}:"]
    found += [f"  {row.metric.title:<{names}}  {verdict.text(row.metric)}" for row, verdict in shown]
    if rest := [row.metric.title.split(" (")[0] for row, verdict in tested if verdict.better(row.metric) is None]:
        found.append(f"  no difference can be shown with {comparison.n_samples} rows: {', '.join(rest)}")
    return found


def _footnote(comparison: Comparison) -> list[str]:
    if not comparison.n_tests:
        return []
    text = "In brackets and behind ±: 95 % intervals"
    if comparison.n_tests > 1:
        text += f"; p values are corrected for {comparison.n_tests} tests (Holm)"
    found = [f"{text}."]
    if comparison.n_samples < comparison.least_samples:
        found.append(
            f"With {comparison.n_samples} rows no difference could be shown, however large: {comparison.least_samples} "
            "are needed at least. Give --data with more rows, or hold more out in the next training (--holdout)."
        )
    return found


def _values(row: ScoreRow) -> list[str]:
    return [value.text(row.metric.digits) if value is not None else "-" for value in row.values]


def _verdict(row: ScoreRow, subject: int) -> str:
    verdict = row.verdicts[subject - 1]
    return verdict.text(row.metric) if verdict is not None else ""


def _kinds(comparison: Comparison, width: int) -> list[str]:
    counts = comparison.kinds()
    if not any(counts):
        return []
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_edge=False)
    table.add_column("Kinds of answers", no_wrap=True)
    for label in comparison.labels:
        table.add_column(Text(label), justify="right")
    for kind in KINDS:
        if any(kind in count for count in counts):
            table.add_row(kind, *(str(count.get(kind, 0)) for count in counts))
    found = rendered(table, width)
    for subject in range(1, len(comparison.labels)):
        if moves := comparison.moves(subject)[:_MOVES]:
            listed = ", ".join(f"{before} -> {after} {n}" for before, after, n in moves)
            found.append(f"{comparison.labels[subject]}: {listed}")
    return [*found, ""]


def _counts(comparison: Comparison, subject: int) -> str:
    better, worse = len(comparison.better(subject)), len(comparison.worse(subject))
    same = len(comparison.rows) - better - worse
    return (
        f"{comparison.labels[subject]} against {comparison.labels[0]}, row by row ({_name(comparison)}): {better} "
        f"better, {worse} worse, {same} the same"
    )


def _rows(comparison: Comparison, width: int, most: int) -> Iterator[str]:
    for title, changes in (("Better", comparison.better()), ("Worse", comparison.worse())):
        for change in changes[:most]:
            yield ""
            yield from _change(comparison, change, title, width)
    yield ""


def _change(comparison: Comparison, change: Change, title: str, width: int) -> Iterator[str]:
    before = change.samples[0]
    category = f" [{before.category}]" if before.category else ""
    yield f"{title}, {before.where}{category}: {_change_text(comparison, before, change.samples[1])}"
    yield f"  Q: {shortened(before.question)}"
    if before.answer is None:
        yield f"  reference: {shortened(before.reference)}"
        return
    kinds = [f" ({kind})" if kind else "" for kind in change.kinds]
    titles = ["reference", *(label + kind for label, kind in zip(comparison.labels, kinds, strict=True))]
    texts = [before.reference, *(sample.answer or "" for sample in change.samples)]
    yield from (f"  {line}" for line in side_by_side(titles, texts, width - 2))


def _change_text(comparison: Comparison, before: AnsweredSample, after: AnsweredSample) -> str:
    name = comparison.by.name
    if name == "loss":
        return f"loss {_per_target(before)} -> {_per_target(after)}"
    digits = comparison.by.digits
    return f"{_name(comparison)} {before.scores[name]:.{digits}f} -> {after.scores[name]:.{digits}f}"


def _per_target(sample: AnsweredSample) -> str:
    return f"{sample.loss / sample.weight:.3f}" if sample.weight > 0 else "-"


def _name(comparison: Comparison) -> str:
    return comparison.by.title.split(" (")[0]


def markdown(comparison: Comparison, *, title: str = "Comparison", rows: int = 10) -> str:
    """Write it as a page."""
    labels = [_escaped(label) for label in comparison.labels]
    parts = [f"# {title}", ""]
    parts += [f"- {_escaped(summary(comparison, subject))}" for subject in range(1, len(labels))]
    parts += ["", f"{comparison.n_samples} samples, {comparison.n_questions} questions answered.", ""]
    against = [f"{label} is" for label in labels[1:]]
    parts += _table(
        ["Score", *labels, *against],
        [
            [row.metric.title, *_values(row), *(_verdict(row, i) for i in range(1, len(labels)))]
            for row in comparison.scores
        ],
    )
    parts += [*_footnote(comparison), ""]
    counts = comparison.kinds()
    if any(counts):
        listed = [kind for kind in KINDS if any(kind in count for count in counts)]
        parts += ["## Kinds of answers", ""]
        parts += _table(["Kind", *labels], [[kind, *(str(c.get(kind, 0)) for c in counts)] for kind in listed])
    for subject in range(1, len(labels)):
        for name, changes in (("better", comparison.better(subject)), ("worse", comparison.worse(subject))):
            parts += [f"## What got {name}: {labels[subject]} ({len(changes)} rows)", ""]
            parts += _table(
                ["Where", "Question", "Reference", labels[0], labels[subject], _name(comparison)],
                [_cells(comparison, subject, change) for change in changes[:rows]],
            )
    return "\n".join(parts)


def _cells(comparison: Comparison, subject: int, change: Change) -> list[str]:
    before, after = change.samples[0], change.samples[subject]
    answers = [shortened(one.answer or "") if one.answer is not None else "" for one in (before, after)]
    texts = [before.where, shortened(before.question), shortened(before.reference), *answers]
    return [*texts, _change_text(comparison, before, after)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in rows),
        "",
    ]


def _escaped(text: str) -> str:
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", "<br>")
