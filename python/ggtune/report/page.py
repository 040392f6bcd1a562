"""A report as one web page that needs nothing else: no script, no address, and under 2 MB whatever is in the runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ggtune.errors import GgtuneError
from ggtune.report.blocks import Block, Figure, Report
from ggtune.report.plots import DARK_CSS, LIGHT_CSS, Plot
from ggtune.report.texts import shown_text
from ggtune.version import version

GENERATOR = "ggtune report"
MOST_BYTES = 2_000_000
_LIMITS = (3000, 1200, 400, 120, 40)  # characters of a text: the first with which the page is small enough
_FOLDER = Path(__file__).parent / "templates"


def page(report: Report) -> str:
    """Write a report as HTML. Long texts are cut, shorter where there are very many of them."""
    drawn: dict[tuple[int, str], Markup] = {}

    def svg(plot: Plot, width: int, height: int, name: str) -> Markup:
        key = (id(plot), name)
        if key not in drawn:
            drawn[key] = Markup(plot.svg(width, height, name=f"{plot.key}-{name}" if name else plot.key))
        return drawn[key]

    for limit in _LIMITS:
        text = (
            _environment(limit)
            .get_template("page.html")
            .render(report=report, css=_css(), svg=svg, generator=f"{GENERATOR} {version()}")
        )
        if len(text.encode("utf-8", "replace")) <= MOST_BYTES:
            return text
    raise GgtuneError("the report would be larger than 2 MB: give fewer runs")


def _environment(limit: int) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = lambda text: shown_text(str(text), limit)
    environment.filters["grouped"] = _grouped
    return environment


def _grouped(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Put figures that follow each other together, everything else alone."""
    group: list[Block] = []
    for block in blocks:
        if group and not (isinstance(block, Figure) and isinstance(group[-1], Figure)):
            yield group
            group = []
        group.append(block)
    if group:
        yield group


@lru_cache
def _css() -> Markup:
    text = (_FOLDER / "page.css").read_text(encoding="utf-8")
    return Markup(text.replace("LIGHT_PLOTS", LIGHT_CSS).replace("DARK_PLOTS", DARK_CSS))
