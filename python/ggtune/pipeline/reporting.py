"""Reports of runs: read, put together, written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.report.files import check_ours, write_files
from ggtune.report.markdown import markdown
from ggtune.report.page import page
from ggtune.report.reading import names_of, read_record
from ggtune.report.sections import report_of
from ggtune.run.progress import Reporter
from ggtune.run.status import FAILED
from ggtune.train.halving import cost_line

REPORT = "report.html"
_WIDTH, _HEIGHT = 720, 340  # of pictures, in CSS pixels


@dataclass(frozen=True)
class ReportOptions:
    """What :func:`report` is told beside the runs."""

    out: Path | None = None  # the page; by default report.html, in the folder of a single run, else here
    title: str = ""
    png: bool = False  # each figure as a picture, too
    markdown: bool = False  # the report as Markdown, too, with its pictures
    overwrite: bool = False  # a file that no report has written


def report(
    runs: Sequence[str | Path], options: ReportOptions | None = None, reporter: Reporter | None = None
) -> list[Path]:
    """Write the report of one or more run folders and return its files, the page first.

    Runs may still be going. Raises :class:`GgtuneError` for a folder that holds no run, a library that is missing, and
    files that can't be written or are not a report's.
    """
    options, reporter = options or ReportOptions(), reporter or Reporter()
    folders = [Path(run) for run in runs]
    if not folders:
        raise GgtuneError("no run was given")
    twice = [folder for i, folder in enumerate(folders) if folder.resolve() in [f.resolve() for f in folders[:i]]]
    if twice:
        raise GgtuneError(f"{twice[0]} is given twice")
    out = options.out or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT))
    if out.suffix.lower() not in (".html", ".htm"):
        raise GgtuneError(f"--out {out}: a report is an .html file")
    records = [read_record(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]
    if not options.overwrite:
        check_ours(out)
    # around settings that have failed there is nothing to find
    going = [record for record in records if record.status.state != FAILED]
    costs = {record.name: cost_line(record.folder) for record in going} if len(records) == 1 else {}
    made = report_of(records, title=options.title, sweep_costs=costs)
    contents = {out: page(made).encode("utf-8")}
    pictures = {plot.key: out.with_name(f"{out.stem}-{plot.key}.png") for plot in made.plots()}
    if options.markdown:
        contents[out.with_suffix(".md")] = markdown(made, lambda plot: _address(pictures[plot.key])).encode("utf-8")
    if options.png or options.markdown:
        contents |= {pictures[plot.key]: plot.png(_WIDTH, _HEIGHT) for plot in made.plots()}
    write_files(contents, overwrite=options.overwrite)
    for plot in made.plots():
        reporter.note(f"{plot.title}: {plot.description}")
    return list(contents)


def _address(picture: Path) -> str:
    """Name a picture beside the text, as an address."""
    from urllib.parse import quote

    return quote(picture.name)
