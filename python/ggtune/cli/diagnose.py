"""``ggtune diagnose``."""

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command("diagnose")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--seconds", type=click.FloatRange(min=1), default=40.0, show_default=True, help="About the most that it may take."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.option("-t", "--threads", type=click.IntRange(min=0), default=0, help="Threads (default: all available).")
def command(folder: Path, seconds: float, as_json: bool, threads: int) -> None:
    """Say what is wrong with the run in FOLDER.

    Looked for are answers that don't belong to their questions, a prompt template that the model does not expect, a
    run that has overfitted or diverged, and a merged model that has lost what was learned. What is found is written to
    diagnosis.json in FOLDER. The exit status is 1 where the run is of no use as it is.
    """
    from ggtune import pipeline
    from ggtune.evaluate.diagnosis import diagnose, write_findings

    reporter = pipeline.Reporter() if as_json else pipeline.Progress()
    findings = diagnose(folder, threads=threads, seconds=seconds, reporter=reporter)
    write_findings(folder, findings)
    if as_json:
        click.echo(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            click.echo(finding.line())
        if not findings:
            click.echo("Nothing was found that is wrong.")
    if any(finding.severity == "error" for finding in findings):
        raise click.exceptions.Exit(1)
