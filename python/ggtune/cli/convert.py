"""``ggtune convert``."""

from pathlib import Path

import click


@click.command("convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="File to write: .csv or a text file.")
@click.option("--template", default="llama2", show_default=True, help="Prompt template of the text.", metavar="NAME")
@click.option("--system", help="System text for every question.", metavar="TEXT")
@click.option("--sample-start", default="<SFT>", show_default=True, help="What starts each sample.", metavar="TEXT")
@click.option("--question-column", help="Column of the questions (default: found by its name).", metavar="NAME")
@click.option("--answer-column", help="Column of the answers (default: found by its name).", metavar="NAME")
@click.option("--encoding", default="", help="Encoding of SOURCE (default: found by its content).", metavar="NAME")
def command(
    source: Path,
    out: Path,
    template: str,
    system: str | None,
    sample_start: str,
    question_column: str | None,
    answer_column: str | None,
    encoding: str,
) -> None:
    """Turn a CSV table of questions and answers into <SFT> text, or <SFT> text back into a table.

    The suffix of --out says which: .csv is a table, anything else is text.
    """
    from ggtune.data.records import read_csv, write_csv
    from ggtune.data.sft import read_sft, write_sft
    from ggtune.data.templates import TEMPLATES
    from ggtune.files import replace_text

    if template not in TEMPLATES:
        raise click.UsageError(f"There is no template {template!r} here; there are {', '.join(TEMPLATES)}.")
    if out.exists() and out.samefile(source):
        raise click.UsageError("--out is the source itself.")
    if out.suffix.lower() == ".csv":
        table = read_sft(source, TEMPLATES[template], sample_start=sample_start, encoding=encoding)
        write_csv(out, table.records)
    else:
        table = read_csv(source, question_column=question_column, answer_column=answer_column, encoding=encoding)
        text = write_sft(source, table.records, TEMPLATES[template], system=system, sample_start=sample_start)
        replace_text(out, text)
    skipped = f"; {len(table.empty_rows)} left out, question or answer empty" if table.empty_rows else ""
    click.echo(f"Wrote {len(table.records)} samples to {out}{skipped}.")
