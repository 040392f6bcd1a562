"""``ggtune text``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggtune.cli.transfer import retries_option

if TYPE_CHECKING:
    from ggtune.text.catalog import Book
    from ggtune.text.clean_files import CleanedFile
    from ggtune.text.fetch import FetchResult

# the keys of ggtune.text.clean.KINDS; a test holds them together
_KINDS = (
    "gutenberg",
    "encoding",
    "illustrations",
    "notes",
    "contents",
    "pages",
    "wraps",
    "hyphens",
    "whitespace",
)


@click.group("text")
def command() -> None:
    """Fetch, clean and cut books and notes, to train on as plain text.

    In this order: `fetch -o books --topic chemistry --count 20`, `clean books -o clean`, `chunk clean -o
    chunks.parquet`.
    """


@command.command("clean", short_help="Take out what is not the text, mend what is damaged.")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IN...")
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write, or the folder of several, which keep their names.",
)
@click.option(
    "--keep", multiple=True, type=click.Choice(_KINDS), help="Leave this as it is (may be given several times)."
)
@click.option("--encoding", help="What the files are in (default: found out for each).", metavar="NAME")
@click.option(
    "--removed",
    type=click.Path(path_type=Path),
    help="File that gets each passage that was taken out, with its line, as JSONL.",
    metavar="FILE",
)
def clean(
    inputs: tuple[Path, ...], out: Path, keep: tuple[str, ...], encoding: str | None, removed: Path | None
) -> None:
    """Clean text files, and those in folders: .txt, .text, .md.

    Taken out: Project Gutenberg's headers, footers, licences and credits (gutenberg), tables of contents (contents),
    marks of illustrations and pages (illustrations, pages), transcribers' notes (notes). Mended: encodings and mojibake
    (encoding), line breaks inside of paragraphs (wraps) with the hyphens that they brought (hyphens), white space
    (whitespace). Verse, lists and tables keep their lines. What was done to each file is printed; --keep leaves a kind.

    The text is written as UTF-8. Needs ftfy: pip install 'ggtune[text]'.
    """
    from ggtune.errors import DataError
    from ggtune.text.clean_files import clean_files, plan_outputs
    from ggtune.text.sources import find_sources

    pairs = plan_outputs(find_sources(inputs), inputs, out)
    problems = clean_files(pairs, keep=keep, encoding=encoding, removed=removed, done=_show_cleaned)
    if problems:
        raise DataError("\n".join([*problems, f"{len(problems)} of {len(pairs)} files could not be cleaned."]))


def _show_cleaned(file: CleanedFile) -> None:
    from ggtune.text.clean import KINDS

    cleaned = file.cleaned
    click.echo(f"{file.source.path} -> {file.path}: {file.n_characters:,} -> {len(cleaned.text):,} characters")
    if file.encoding not in ("utf-8", "ascii"):
        click.echo(f"  encoding: was {file.encoding}")
    if cleaned.mended_lines:
        click.echo(f"  encoding: {_n(cleaned.mended_lines, 'line')} mended")
    amounts = cleaned.amounts()
    for kind in KINDS:
        if kind in amounts:
            lines, characters = amounts[kind]
            click.echo(f"  {kind}: {_n(lines, 'line')}, {_n(characters, 'character')} taken out")
    if cleaned.joined_lines:
        click.echo(f"  wraps: {_n(cleaned.joined_lines, 'line break')} inside of paragraphs undone")
    if cleaned.joined_words:
        click.echo(f"  hyphens: {_n(cleaned.joined_words, 'divided word')} joined")
    if cleaned.spaces:
        click.echo(f"  whitespace: {_n(cleaned.spaces, 'character')} taken out or exchanged")
    for doubt in cleaned.doubts:
        click.echo(f"  Look: {file.source.path} {doubt}", err=True)


@command.command("chunk", short_help="Cut texts into chunks, in a Parquet or JSONL file.")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IN...")
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write: .parquet or .jsonl.",
    metavar="FILE",
)
@click.option(
    "--characters", type=click.IntRange(min=1), help="Most characters of a chunk (default: 7000).", metavar="N"
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    help="Most tokens of a chunk instead, the model's BOS and EOS included: the --ctx of the training.",
    metavar="N",
)
@click.option(
    "-m", "--model", type=click.Path(path_type=Path), help="GGUF file whose tokens are counted.", metavar="FILE"
)
@click.option(
    "--overlap",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Most characters or tokens that a chunk shares with the one before.",
    metavar="N",
)
def chunk(
    inputs: tuple[Path, ...],
    out: Path,
    characters: int | None,
    tokens: int | None,
    model: Path | None,
    overlap: int,
) -> None:
    """Cut UTF-8 text files, and those in folders (.txt, .text, .md), into chunks of whole paragraphs and sentences.

    The columns are chunk, source (the file), index (of the chunk in its file), offset (of its first character there)
    and size (in characters or tokens). A sentence is cut only where it alone is longer than a chunk.

    Needs semantic-text-splitter and, for Parquet, pyarrow: pip install 'ggtune[text,parquet]'.
    """
    from ggtune.text.chunk import CHARACTERS, Chunker, token_chunker
    from ggtune.text.chunk_file import chunk_files
    from ggtune.text.sources import find_sources

    if (tokens is None) != (model is None):
        raise click.UsageError("--tokens and --model belong together: give both, or neither for characters.")
    if tokens is not None and characters is not None:
        raise click.UsageError("Give --characters or --tokens, not both.")
    sources = find_sources(inputs)
    if tokens is not None:
        from ggtune._native import core

        chunker, unit = token_chunker(core.Model(str(model), vocab_only=True), tokens, overlap), "token"
    else:
        chunker, unit = Chunker(characters or CHARACTERS, overlap), "character"
    most = tokens or characters or CHARACTERS
    settings = {"unit": unit, "most": most, "overlap": overlap, "model": model.name if model else None}
    chunked = chunk_files(sources, out, chunker, settings)
    for path in chunked.empty:
        click.echo(f"{path}: the file is empty.", err=True)
    sizes = chunked.sizes
    click.echo(f"Wrote {_n(len(sizes), 'chunk')} of {_n(len(sources) - len(chunked.empty), 'file')} to {out}")
    middle = sizes[len(sizes) // 2]
    click.echo(f"  {unit}s of a chunk: {sizes[0]:,} to {sizes[-1]:,}, median {middle:,}, {sum(sizes):,} together")


@command.command("fetch", short_help="Fetch books from a Gutendex server.")
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the books.", metavar="FOLDER"
)
@click.option("--topic", default="", help="Words in a book's subjects or bookshelves.", metavar="TEXT")
@click.option(
    "--count", type=click.IntRange(min=1), required=True, help="How many books the folder is to have.", metavar="N"
)
@click.option("--language", default="", help="Languages, as codes: en, or en,fr (default: any).", metavar="CODES")
@click.option("--author", default="", help="Part of an author's name.", metavar="TEXT")
@click.option("--search", default="", help="Words in authors' names and titles.", metavar="TEXT")
@click.option("--copyrighted", is_flag=True, help="Take books, too, that are in copyright in the USA.")
@click.option(
    "--server", default="https://gutendex.com", show_default=True, help="Address of the server.", metavar="URL"
)
@click.option(
    "--pause",
    "pause_s",
    type=click.FloatRange(0, 3600),
    default=2.0,
    show_default=True,
    help="Wait between requests.",
    metavar="SECONDS",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 86400),
    default=60,
    show_default=True,
    help="How long a server may be silent.",
    metavar="SECONDS",
)
@retries_option
def fetch(
    out: Path,
    topic: str,
    count: int,
    language: str,
    author: str,
    search: str,
    copyrighted: bool,
    server: str,
    pause_s: float,
    timeout_s: float,
    retries: int,
) -> None:
    """Fetch the most popular books of a topic as plain text, from a server with Gutendex's list of Project Gutenberg.

    Books that FOLDER has are not fetched again, so that the same command goes on after an interruption. What each file
    is stands in FOLDER/fetch.json. The exit status is 1 where there are fewer books than --count in the end.
    """
    from ggtune.errors import GgtuneError
    from ggtune.ollama.registry.retry import RetryPolicy
    from ggtune.system import format_bytes
    from ggtune.text.catalog import Query
    from ggtune.text.fetch import fetch_books
    from ggtune.text.web import WebOptions

    def progress(result: FetchResult, book: Book, path: Path) -> None:
        click.echo(f"[{len(result.books)}/{count}] {path} ({format_bytes(path.stat().st_size)})")

    query = Query(topic, language.replace(" ", ""), author, search, copyrighted)
    options = WebOptions(timeout_s=timeout_s, pause_s=pause_s, retry=RetryPolicy(retries=retries))
    try:
        result = fetch_books(
            out, server, query, count, options=options, note=lambda text: click.echo(text, err=True), progress=progress
        )
    except KeyboardInterrupt:
        click.echo("The same command goes on from here.", err=True)
        raise
    amounts = f"{result.n_fetched} fetched ({format_bytes(result.n_bytes)}), {result.n_kept} there already"
    skipped = f", {len(result.skipped)} skipped" if result.skipped else ""
    click.echo(f"{_n(len(result.books), 'book')} in {out}: {amounts}{skipped}")
    if result.problem is not None:
        raise GgtuneError(f"{len(result.books)} of {count} books. {result.problem}")


def _n(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
