"""The conversation of ``ggtune ask --chat``, at a terminal or in a pipe."""

import contextlib
import json
import sys
from typing import TYPE_CHECKING

import click

from ggtune.cli.signals import TerminatedError
from ggtune.errors import GgtuneError

if TYPE_CHECKING:
    from ggtune.generate import Chat

_COMMANDS = "/new forgets what was said, /exit or Ctrl-D ends, Ctrl-C ends an answer."


def talk(chat: "Chat", *, as_json: bool) -> None:
    """Answer questions until there are no more. In a pipe each line is one, and nothing but the answers is written."""
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() edits lines with it
        click.echo(_COMMANDS, err=True)
    while (question := _next_line(at_terminal)) is not None:
        if question == "/exit":
            return
        if question == "/new":
            chat.forget()
        elif question == "/help":
            click.echo(_COMMANDS, err=True)
        elif question:
            _answer(chat, question, at_terminal=at_terminal, as_json=as_json)


def _next_line(at_terminal: bool) -> str | None:
    while True:
        try:
            line = input("> ") if at_terminal else sys.stdin.readline()
        except EOFError:
            click.echo()
            return None
        except UnicodeDecodeError as error:
            raise GgtuneError(f"standard input: a question can't be read as {error.encoding} text") from error
        except TerminatedError:
            raise
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            click.echo("\n/exit or Ctrl-D ends the conversation.", err=True)
            continue
        return line.strip() if line or at_terminal else None


def _answer(chat: "Chat", question: str, *, at_terminal: bool, as_json: bool) -> None:
    forgotten, said = chat.n_forgotten, ""
    pieces = chat.pieces(question)
    try:
        for piece in pieces:
            said += piece
            if not as_json:
                click.echo(piece, nl=False)
                sys.stdout.flush()
    except TerminatedError:
        raise
    except KeyboardInterrupt:
        if not at_terminal:
            raise
    except GgtuneError as error:
        if not at_terminal:
            raise
        click.echo(f"Error: {error}", err=True)
        return
    finally:
        pieces.close()  # what was said is kept
    if chat.n_forgotten > forgotten:
        click.echo("\n(The conversation is longer than the context: its beginning is forgotten.)", err=True, nl=False)
    click.echo(json.dumps({"question": question, "answer": said.strip()}, ensure_ascii=False) if as_json else "")
