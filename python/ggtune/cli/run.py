"""``ggtune run``."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggtune.cli.background import detach_option, start_detached
from ggtune.cli.echo import say
from ggtune.cli.options import ConfigCommand, config_options, which_option
from ggtune.cli.training import (
    STATUSES,
    claim_folder,
    earlier_settings,
    end_of_run,
    execute,
    find_checkpoint,
    resume_command,
    settings,
)
from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError

if TYPE_CHECKING:
    from ggtune.evaluate.proved_merge import ProvedMerge
    from ggtune.run.checkpoint import Checkpoint
    from ggtune.run.outputs import Outputs
    from ggtune.train.chosen import Which
    from ggtune.train.samples import RunSamples

PROOF = "proof.json"


@click.command("run", cls=ConfigCommand, epilog=STATUSES)
@click.argument("data", required=False)
@config_options("train", leave_out=("data",))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for everything.")
@click.option("--name", help="Name in Ollama (default: the name of --out).")
@click.option("--store", type=click.Path(path_type=Path), help="Also put the model into this Ollama store.")
@click.option(
    "--outtype",
    help="Type of the merged tensors: same (each one's own, the default), auto (raised where that loses too much), or "
    "one for all, such as q8_0 or f16.",
    metavar="TYPE",
)
@click.option("--no-merge", is_flag=True, help="Package the base with the adapter beside it, not a merged model.")
@which_option
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out; options not given stay.")
@click.option("--overwrite", is_flag=True, help="Start anew in a folder that already holds a run.")
@detach_option
@click.pass_context
def command(
    context: click.Context,
    /,
    data: str | None,
    out: Path,
    name: str | None,
    store: Path | None,
    outtype: str | None,
    no_merge: bool,
    which: "Which",
    resume: bool,
    overwrite: bool,
    detach: bool,
    **_: Any,
) -> None:
    """Train on the questions and answers in DATA, merge, and package: a model for Ollama in one go.

    The folder --out gets adapter.gguf, model.gguf (the merged model) and proof.json (what it has kept of the adapter),
    both not with --no-merge, Modelfile, metrics.jsonl and checkpoints.
    """
    from ggtune.gguf.merge import check_outtype
    from ggtune.ollama.names import ModelName

    check_outtype(outtype)
    if no_merge and outtype is not None:
        raise click.UsageError("--outtype is a type of merged tensors: leave it out with --no-merge.")
    name = name or re.sub(r"[^a-z0-9_.-]+", "-", out.resolve().name.lower()).strip("-.") or "model"
    ModelName.parse(name)
    outputs = claim_folder(out, resume=resume, overwrite=overwrite)
    if detach:
        start_detached(context, out)
        return
    checkpoint = find_checkpoint(outputs, resume=resume, checkpoint_in=None)
    config = settings(context, "train", checkpoint, before=earlier_settings(outputs) if resume else None)
    run(config, outputs, checkpoint, Packaging(name, store, outtype, which, merge=not no_merge), overwrite=overwrite)


@dataclass(frozen=True)
class Packaging:
    """What ``run`` does after the training."""

    name: str
    store: Path | None = None
    outtype: str | None = None
    which: "Which" = "auto"
    merge: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``status.json``."""
        store = str(self.store.absolute()) if self.store else None
        return {
            "name": self.name,
            "store": store,
            "outtype": self.outtype,
            "which": self.which,
            "merge": self.merge,
        }

    @classmethod
    def from_dict(cls, values: Any) -> "Packaging":
        """Undo :meth:`to_dict`. Raises :class:`GgtuneError` where it is none."""
        try:
            name, store, outtype = values["name"], values["store"], values["outtype"]
            which, merge = values.get("which", "auto"), values.get("merge", True)
        except (TypeError, KeyError, AttributeError):
            raise GgtuneError("status.json does not say how the run was called: use `ggtune run --resume`") from None
        return cls(
            str(name),
            Path(str(store)) if store else None,
            str(outtype) if outtype else None,
            which if which in ("best", "last") else "auto",
            merge=merge is not False,
        )


def run(
    config: TrainConfig,
    outputs: "Outputs",
    checkpoint: "Checkpoint | None",
    packaging: Packaging,
    *,
    overwrite: bool = False,
) -> None:
    """Check what the packaging needs, train, merge, package. A run that has diverged is not packaged."""
    from ggtune.evaluate.verify import samples_of_run
    from ggtune.gguf.merge import disk_bytes
    from ggtune.ollama.package import check_packaging, package_model
    from ggtune.train.chosen import chosen_adapter
    from ggtune.train.verdict import has_diverged

    out = outputs.adapter.parent
    base, merged = Path(config.model), out / "model.gguf"
    check_packaging(
        base,
        packaging.name,
        out_dir=out,
        store=packaging.store,
        template=config.template or None,
        system=config.system or None,
    )
    result = execute(
        config,
        outputs,
        checkpoint,
        resume_hint=resume_command(out),
        overwrite=overwrite,
        command={"name": "run", "packaging": packaging.to_dict()},
        extra_disk_bytes=disk_bytes(base, packaging.outtype) if packaging.merge else 0,
    )
    if has_diverged(result):
        say(f"Nothing is packaged. The adapter of the last step: {result.adapter}")
        end_of_run(result)
    chosen = chosen_adapter(out, packaging.which)
    say(f"Adapter: {chosen.path}: {chosen.reason}")
    proved = None
    if packaging.merge:
        proved = merge(config, chosen.path, merged, samples_of_run(out, result.config), packaging)
        package = package_model(merged, packaging.name, out_dir=out, store=packaging.store)
        asked = str(merged)
    else:
        adapters = [(chosen.path, 1.0)]
        package = package_model(base, packaging.name, out_dir=out, store=packaging.store, adapters=adapters)
        asked = f"{base} --lora {chosen.path}"
    say(str(package))
    say(f'Or without Ollama: ggtune ask --model {asked} "..."')
    if not packaging.merge and merged.exists():
        say(f"{merged} was there before and is not of this training.")
    advice = proved.advice() if proved is not None else []
    for line in advice:
        say(line)
    end_of_run(result)
    if advice:
        raise click.exceptions.Exit(1)


def merge(
    config: TrainConfig, adapter: Path, merged: Path, samples: "RunSamples", packaging: Packaging
) -> "ProvedMerge":
    """Merge the adapter of a run into its base, and write what was kept to ``proof.json``.

    Raises :class:`GgtuneError`.
    """
    from ggtune.evaluate.proved_merge import merge_and_prove
    from ggtune.files import replace_text
    from ggtune.gguf.merge import retyped

    say(f"Merging into {merged} ...")
    result = merge_and_prove(
        config.model,
        [(str(adapter), 1.0)],
        merged,
        trained=samples.training,
        held_out=samples.held_out,
        outtype=packaging.outtype,
        name=packaging.name,
        threads=config.threads,
        force=config.force,
        say=say,
    )
    if changes := retyped(result.counts):
        say(f"Other types: {changes}")
    if result.proof is not None:
        say(result.proof.line())
        replace_text(merged.parent / PROOF, json.dumps(result.proof.to_dict(), indent=2) + "\n")
    return result
