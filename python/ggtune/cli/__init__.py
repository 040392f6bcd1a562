"""The command ``ggtune``: parses and prints; the work is done elsewhere.

A subcommand's module is imported when it is called, so that ``ggtune --help`` is quick. Errors become messages here and
nowhere else.
"""

import importlib
import os
import sys
from typing import Any

import click

from ggtune.cli.signals import TerminatedError, signals_as_exceptions
from ggtune.errors import DeviceLostError, GgtuneError

ARGUMENTS = "ggtune.arguments"  # key of Context.meta: the command line

_COMMANDS = {
    "run": ("run", "CSV and base model in, model for Ollama out: train, merge and package in one go."),
    "train": ("train", "Train an adapter on questions and answers, or on text."),
    "sweep": ("sweep", "Try several learning rates, ranks, ...: trainings of which the bad ones are left early."),
    "plan": ("plan", "Say how much memory and time a training will take, before it starts."),
    "devices": ("devices", "List the devices (GPUs) that training can use, and how many layers fit."),
    "inspect": ("inspect", "Say what a model file is, and whether it can be trained."),
    "models": ("models", "Say which architectures train, and why others don't."),
    "preview": ("preview", "Show samples as they will be trained on."),
    "check-data": ("check_data", "Say what looks wrong in training data."),
    "resume": ("resume", "Go on with a run that was interrupted, or add to one that has ended."),
    "status": ("status", "Say how runs are doing: all known ones, or one."),
    "watch": ("watch", "Follow a run from another terminal."),
    "board": ("board", "Show all runs as a web page, live."),
    "report": ("report", "Write a page about runs: curves, scores, answers, data, settings, what to try next."),
    "stop": ("stop", "End a run after saving it."),
    "export-lora": ("export_lora", "Merge an adapter into its base model."),
    "quantize": ("quantize", "Quantize a model file, with an importance matrix or without."),
    "import": ("import_model", "Turn a Hugging Face checkpoint or a PEFT adapter into a GGUF file."),
    "export-peft": ("export_peft", "Turn an adapter into a PEFT folder for Hugging Face tools."),
    "verify": ("verify", "Say what a merged file has kept of its adapter."),
    "eval": ("eval", "Say how good a model, an adapter or a run is, on held-out questions."),
    "compare": ("compare", "Say what got better and what got worse: a run against its base, say."),
    "diagnose": ("diagnose", "Say what is wrong with a run: its answers, template, loss or merge."),
    "eval-choice": ("eval_choice", "Score models on multiple-choice questions, as lm-evaluation-harness does."),
    "eval-general": ("eval_general", "Say what a training has done to a general text and general questions."),
    "package": ("package", "Make a Modelfile, and put the model into an Ollama store."),
    "push": ("push", "Send a model from an Ollama store to a Docker registry."),
    "pull": ("pull", "Fetch a model from a Docker registry into an Ollama store."),
    "publish": ("publish", "Upload a model for others to use."),
    "ask": ("ask", "Ask a model a question, many, or talk to it; with or without an adapter."),
    "text": ("text", "Fetch, clean and cut books and notes, to train on as plain text."),
    "convert": ("convert", "Turn a table of questions and answers into <SFT> text, or back."),
    "finetune": ("finetune", "Train with the flags and defaults of llama.cpp's old finetune."),
    "demo": ("demo", "See it all work in a few minutes on a small model that is built in."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command = importlib.import_module(f"ggtune.cli.{_COMMANDS[name][0]}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        given = list(args)
        ctx = super().make_context(info_name, args, parent, **extra)
        ctx.meta[ARGUMENTS] = given
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with signals_as_exceptions():
                return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt as interruption:
            click.echo("Interrupted.", err=True)
            ctx.exit(128 + interruption.signum if isinstance(interruption, TerminatedError) else 130)
        except DeviceLostError as error:
            # what lies on a lost device can't be freed: its libraries would end the process in their own way
            click.echo(f"Error: {error}", err=True)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.exit_status)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            raise _ShownError(error) from error


class _ShownError(click.ClickException):
    def __init__(self, error: Exception) -> None:
        super().__init__(_message(error))
        self.exit_code = error.exit_status if isinstance(error, GgtuneError) else 1  # type: ignore[misc]


def _message(error: Exception) -> str:
    if isinstance(error, GgtuneError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory. Give a smaller --ctx, --micro-batch-tokens or --rank, or --recompute."
    if isinstance(error, OSError):
        return (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))
    return f"unexpected {type(error).__name__}: {error}. `ggtune --debug ...` shows where; please report it."


def _show_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from ggtune.version import version

        click.echo(f"ggtune {version()}")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, envvar="GGTUNE_DEBUG", help="Show where in the program an error comes from.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show it.")
def cli(debug: bool) -> None:
    """Fine-tune quantized GGUF models with LoRA on a plain CPU."""
    # a run's lines are read while it goes on, in a pipe or in nohup.out
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)


def main() -> None:
    """Run the command line.

    The exit status is 0, 1 for an error, 2 for wrong usage, 3 for a run that has diverged, 128 + a signal's number.
    """
    try:
        cli(prog_name="ggtune")
    finally:
        # a log on a full disk or a reader that is gone must not change the exit status
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
