"""Samples as they are trained on: each token's text, whether it is a special one, and its weight in the loss."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ggtune.data.dataset import Dataset
from ggtune.data.samples import Sample
from ggtune.data.tokenization import Tokenizer, token_text


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of one kind."""

    text: str
    weight: float
    special: bool
    n_tokens: int


@dataclass(frozen=True)
class SampleView:
    """A sample to look at."""

    row: int
    n_tokens: int
    n_learned: int  # tokens with a weight
    runs: tuple[Run, ...]
    part: int = 0  # which of the row's samples it is, from 0
    n_parts: int = 1

    def title(self, name: str) -> str:
        """Say which sample it is; ``name`` is that of its row."""
        share = 100 * self.n_learned / max(1, self.n_tokens)
        part = f", sample {self.part + 1} of {self.n_parts}" if self.n_parts > 1 else ""
        return f"{name}{part}: {self.n_tokens} tokens, {self.n_learned} of them learned ({share:.0f} %)"


def samples_of_row(data: Dataset, index: int) -> list[int]:
    """Indices of the different samples that were made of the same row as the one at ``index``, in order."""
    if data.report.plain:  # the windows of a text are as many as it is long
        return [index]
    rows, groups = data.samples.rows, data.groups

    def same(other: int) -> bool:
        return bool(rows[other] == rows[index] and groups[other] == groups[index])

    first = last = index
    while first > 0 and same(first - 1):
        first -= 1
    while last + 1 < len(data.samples) and same(last + 1):
        last += 1
    # a row that is repeated has each sample several times
    different = {data.samples[i].tokens.tobytes(): i for i in reversed(range(first, last + 1))}
    return sorted(different.values())


def view_of(data: Dataset, index: int, tokenizer: Tokenizer) -> SampleView:
    """Look at the sample at ``index``."""
    sample = data.samples[index]
    of_row = [data.samples[i].tokens.tobytes() for i in samples_of_row(data, index)]
    return replace(view(sample, tokenizer), part=of_row.index(sample.tokens.tobytes()), n_parts=len(of_row))


def view(sample: Sample, tokenizer: Tokenizer) -> SampleView:
    """Take a sample apart into runs of tokens that are shown alike."""
    runs: list[Run] = []
    pending: list[int] = []
    weight = 0.0

    def flush() -> None:
        if pending:
            text = tokenizer.detokenize(pending, special=False).decode("utf-8", "replace")
            runs.append(Run(text, weight, False, len(pending)))
            pending.clear()

    for token, token_weight in zip(sample.tokens.tolist(), sample.weights.tolist(), strict=True):
        # what is shown only on request is a control token
        special = not tokenizer.detokenize([token], special=False) and bool(token_text(tokenizer, token))
        if special or token_weight != weight:
            flush()
        weight = token_weight
        if special:
            runs.append(Run(token_text(tokenizer, token), weight, True, 1))
        else:
            pending.append(token)
    flush()
    n_learned = int((sample.weights != 0).sum())
    return SampleView(sample.row, len(sample.tokens), n_learned, tuple(runs))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.3rem; }} h2 {{ font-size: 1rem; margin: 2rem 0 .4rem; font-weight: 600; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #8888; border-radius: .4rem; padding: .8rem;
  font: 14px/1.6 ui-monospace, monospace; margin: 0; }}
.given {{ color: #666; }}
.learned {{ background: #2a83; border-radius: .2rem; }}
.some {{ background: #ca03; border-radius: .2rem; }}
.special {{ border: 1px solid #88f9; border-radius: .3rem; padding: 0 .2rem; font-size: .85em; color: #44b; }}
.line::before {{ content: "\\23ce"; opacity: .5; }}
@media (prefers-color-scheme: dark) {{ .given {{ color: #aaa; }} .special {{ color: #aaf; }}
  .learned {{ background: #2a86; }} .some {{ background: #ca06; }} }}
@media print {{ .learned, .some {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }} }}
ul {{ padding-left: 1.2rem; }}
</style></head><body>
<h1>{title}</h1>
<ul>{notes}</ul>
<p><span class="learned">learned</span>{others}
<span class="given">given</span> <span class="special">special token</span></p>
{samples}
</body></html>
"""


def page(title: str, notes: Sequence[str], views: Iterable[SampleView], names: Iterable[str]) -> str:
    """Write samples, named by their rows, as a web page that needs nothing else."""
    shown = list(views)
    samples = "\n".join(
        f"<h2>{html.escape(one.title(name))}</h2>\n<pre>{''.join(_spans(one.runs))}</pre>"
        for one, name in zip(shown, names, strict=True)
    )
    weights = sorted({run.weight for one in shown for run in one.runs} - {0, 1})
    listed_weights = ", ".join(f"{weight:g}" for weight in weights)
    others = f' <span class="some">learned with the weight {listed_weights}</span>' if weights else ""
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return _PAGE.format(title=html.escape(title), notes=listed, samples=samples, others=others)


def _spans(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        kind = "given" if run.weight == 0 else "learned" if run.weight == 1 else "some"
        shown = html.escape(run.text)
        if run.weight != 0:  # a line end that is learned can't be seen by its colour
            shown = shown.replace("\n", '<span class="line"></span>\n')
        title = f' title="weight {run.weight:g}"' if run.weight not in (0, 1) else ""
        if run.special:  # the tag may hold its own line end
            shown = f'<span class="special">{shown}</span>'
        yield f'<span class="{kind}"{title}>{shown}</span>'
