"""The model card of a run: README.md with the metadata that a hub reads, and what a reader should know.

The fields of the metadata are those of the hub's model cards (https://huggingface.co/docs/hub/model-cards). Paths of
the machine that trained are cut to their last part.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ggtune.config import DEVICE_SETTINGS
from ggtune.data.conversation import Conversation
from ggtune.data.readers.reader import ReadOptions
from ggtune.data.sources import open_source
from ggtune.errors import GgtuneError
from ggtune.ollama.store import parameter_count
from ggtune.publish.base_model import License
from ggtune.publish.run_folder import DataFiles, RunFolder
from ggtune.report.answers import before_after
from ggtune.report.curves import number
from ggtune.report.facts import LOSS_HEAD, loss_rows
from ggtune.report.markdown import block_lines, cell, table
from ggtune.report.plots import Plot, loss_figure
from ggtune.report.scores import score_blocks
from ggtune.report.sections import finding_blocks
from ggtune.system import format_bytes

# settings that say nothing of the result
_LEFT_OUT = frozenset(
    [
        *("model", "data", "more_data", "threads", "force", "recompute", "save_every", "keep", "spike"),
        *("micro_batch_tokens", *DEVICE_SETTINGS),
    ]
)
_MAX_PROOF_ROWS = 80
_MOST_EXAMPLES = 5
# from a root, a home or a folder, or with a file's suffix
_PATH = re.compile(r"/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\|\S+[/\\]\S*\.\w{1,8}$")


def metadata(run: RunFolder, license_: License, base_models: Sequence[str]) -> dict[str, Any]:
    """Fields of the card's YAML header, in their order."""
    fields: dict[str, Any] = {"license": license_.id}
    if license_.id == "other":
        fields["license_name"] = license_.slug or "other"
        if license_.link:
            fields["license_link"] = license_.link
    if base_models:
        fields["base_model"] = base_models[0] if len(base_models) == 1 else list(base_models)
        fields["base_model_relation"] = "finetune" if run.merged else "adapter"
    fields["library_name"] = "gguf"
    fields["pipeline_tag"] = "text-generation"
    tags = ["ggtune", "gguf", "lora", "llama.cpp"]
    fields["tags"] = [*tags, "ollama", "conversational"] if run.merged else tags
    return fields


def yaml_header(fields: Mapping[str, Any]) -> str:
    """Write texts and lists of texts between two lines of dashes. A JSON value is YAML too, whatever is in it."""
    lines = ["---"]
    for name, value in fields.items():
        if isinstance(value, list):
            lines += [f"{name}:", *(f"- {json.dumps(item, ensure_ascii=False)}" for item in value)]
        else:
            lines.append(f"{name}: {json.dumps(value, ensure_ascii=False)}")
    return "\n".join([*lines, "---"]) + "\n"


def model_card(
    run: RunFolder,
    repository: str,
    files: Mapping[str, str],
    license_: License,
    base_models: Sequence[str],
    *,
    has_license_file: bool = False,
    examples: bool = True,
) -> str:
    """Write the card.

    ``files`` names those of the repository, ``merged``, ``adapter`` and ``loss`` (a picture), where they are in it;
    ``examples``: with questions and answers, which come from the data.
    """
    sections = [
        ("", _introduction(run, repository, base_models)),
        ("How to use it", _usage(run, repository, files)),
        ("Findings", _findings(run)),
        ("Scores", _scores(run)),
        ("Answers before and after", _examples(run) if examples else []),
        ("Data", _data(run)),
        ("Settings", _settings(run)),
        ("Loss", _loss(run, files.get("loss"))),
        ("Proof of the merge", _proof(run)),
        ("Licence", _license(run, license_, has_license_file)),
    ]
    parts = [yaml_header(metadata(run, license_, base_models))]
    for title, lines in sections:
        if lines:
            parts.append("\n".join([*([f"## {title}", ""] if title else []), *lines]) + "\n")
    return "\n".join(parts)


def loss_plot(run: RunFolder) -> Plot | None:
    """Return the figure of the card; None where there is no loss to draw."""
    return loss_figure({"": run.metrics}) if len(run.metrics) > 1 else None


def _introduction(run: RunFolder, repository: str, base_models: Sequence[str]) -> list[str]:
    base = ", ".join(f"[{name}](https://huggingface.co/{name})" for name in base_models)
    name = cell(run.base.name or run.base.file_name or "a model that the run does not name")
    version = f" {run.version}" if run.version else ""
    lines = [f"# {repository.partition('/')[2]}", ""]
    if run.merged:
        size = f"{parameter_count(run.header.n_params)} parameters, {run.header.file_type}"
        lines.append(f"A {cell(run.header.architecture)} model ({size}): {name} with a LoRA adapter merged into it.")
    else:
        lines.append(f"A LoRA adapter for {name} ({cell(run.header.architecture)}).")
    lines.append(
        f"Trained with ggtune{version} on the quantized weights of `{_code(run.base.file_name or 'the base')}`."
    )
    lines += ["", f"Base model: {base}." if base else "The base file does not say from which repository it comes."]
    return lines


def _usage(run: RunFolder, repository: str, files: Mapping[str, str]) -> list[str]:
    base = _code(shlex.quote(run.base.file_name or "BASE.gguf"))
    lines = []
    if "merged" in files:
        tag = run.header.file_type if run.header.file_type in files["merged"] else files["merged"]
        lines += [
            "With Ollama, which takes template, system text and parameters from this repository:",
            "",
            f"    ollama run hf.co/{repository}:{tag}",
            "",
            "With llama.cpp or ggtune:",
            "",
            f"    llama-cli -m {files['merged']} -cnv",
            f'    ggtune ask --model {files["merged"]} "..."',
            "",
        ]
    if "adapter" in files:
        lines += [
            f"The adapter alone, beside the base model `{_code(run.base.file_name or 'the base')}`:",
            "",
            f"    llama-cli -m {base} --lora {files['adapter']} -cnv",
            f'    ggtune ask --model {base} --lora {files["adapter"]} "..."',
            "",
        ]
    if run.template or run.system:
        lines.append(
            f"It was trained with the prompt template `{_code(run.template or 'model')}`, and is to be asked with it."
        )
        if run.system:
            lines += ["The system text of the training:", "", *("    " + line for line in run.system.splitlines())]
    return lines


def _data(run: RunFolder) -> list[str]:
    if not run.data:
        return ["The run folder does not say what it was trained on."]
    facts = [fact for data in run.data for fact in _facts(data, run.settings)]
    loss_on = {"answer": "the answers alone", "all": "all text"}.get(str(run.settings.get("loss_on")))
    facts += [("loss on", loss_on)] if loss_on else []
    holdout = run.settings.get("holdout")
    facts += [("held out", _text(holdout))] if holdout not in (None, "", "0") else []
    return ["The data are not part of this repository.", "", *table(facts)]


def _facts(data: DataFiles, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name a data file or a folder, and say what it holds."""
    name = Path(data.path).name
    if not data.files:
        return [("file", name), ("size, SHA-256, rows", "not known: it is gone or has changed since")]
    size = ("size", format_bytes(sum(file.stat().st_size for file in data.files)))
    if not data.is_folder:
        return [("file", name), size, ("SHA-256", _sha256(data.files[0])), *_rows(data, settings)]
    # one line for each file, as sha256sum writes them
    lines = "".join(f"{_sha256(file)}  {file.name}\n" for file in data.files)
    listed = hashlib.sha256(lines.encode()).hexdigest()
    n_files = f"{len(data.files)} file{'s' * (len(data.files) > 1)}"
    facts = [("folder", f"{name}: {n_files}"), size, ("SHA-256 of the files' sha256sum lines", listed)]
    return [*facts, *_rows(data, settings)]


def _rows(data: DataFiles, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Count the questions of tables; a file that changed its form since is not worth an error."""
    options = ReadOptions.of_settings(settings, skip_bad=True)
    try:
        n_conversations = sum(
            isinstance(item, Conversation) for file in data.files for item in open_source(file, options).items
        )
    except GgtuneError:
        return []
    return [("questions and answers", str(n_conversations))] if n_conversations else []


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _settings(run: RunFolder) -> list[str]:
    shown = [
        (name, _text(value))
        for name, value in run.settings.items()
        if name not in _LEFT_OUT and value not in (None, "", [], False)
    ]
    if layers := run.record.status.layers_text:
        shown.append(("layers", layers))
    return table(shown) if shown else ["The run folder does not say them."]


def _findings(run: RunFolder) -> list[str]:
    folders = (str(run.path.resolve()), str(run.path))
    told = [{**found, "text": _without(str(found.get("text", "")), folders)} for found in run.record.findings]
    return block_lines(finding_blocks(replace(run.record, findings=told)), _no_picture)


def _without(text: str, folders: Sequence[str]) -> str:
    """Leave out where on the machine the run lies."""
    for folder in folders:
        text = text.replace(folder, Path(folder).name)
    return text


def _scores(run: RunFolder) -> list[str]:
    return block_lines(score_blocks([run.record], examples=False), _no_picture)


def _examples(run: RunFolder) -> list[str]:
    return block_lines(before_after([run.record], most=_MOST_EXAMPLES), _no_picture)


def _no_picture(plot: Plot) -> None:
    return None


def _loss(run: RunFolder, picture: str | None) -> list[str]:
    if not run.metrics:
        return ["The run folder has no record of it."]
    last = run.metrics[-1]
    ending = f" The end: {cell(run.ending)}." if run.ending else ""
    taken = f" The adapter is that of step {run.adapter_step}." if run.adapter_step else ""
    lines = [f"{last['step']} steps, {number(last, 'epoch') or 0:.2f} epochs.{ending}{taken}", ""]
    plot = loss_plot(run)
    if plot is not None and picture:
        lines += [f"![{cell(plot.description)}]({picture})", ""]
    return [*lines, *table(loss_rows(run.metrics), LOSS_HEAD, numbers=True)]


def _proof(run: RunFolder) -> list[str]:
    if not run.proof:
        return ["None was made: `ggtune verify` compares base, adapter and merged file on the training data."]
    rows = list(_flattened(run.proof))
    lines = table(rows[:_MAX_PROOF_ROWS])
    if len(rows) > _MAX_PROOF_ROWS:
        lines += ["", f"... and {len(rows) - _MAX_PROOF_ROWS} more values."]
    return ["Base, live adapter and merged file, measured by `ggtune verify`:", "", *lines]


def _license(run: RunFolder, license_: License, has_license_file: bool) -> list[str]:
    shown = cell(license_.name or license_.id)
    if license_.link:
        shown = f"[{shown}](<{license_.link}>)"
    if run.base.license is None:
        lines = [
            f"{shown}, as whoever published this model says: no file of the base model that names one was at hand."
        ]
    elif run.base.license == license_:
        lines = [f"{shown}: the licence of the base model, as its file names it. It holds for what is made from it."]
    else:
        own = cell(run.base.license.name or run.base.license.id)
        lines = [f"{shown}, as whoever published this model says. The file of the base model names {own}."]
    return [*lines, *(["", "Its text is in [LICENSE](LICENSE)."] if has_license_file else [])]


def _flattened(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flattened(item, f"{name}.{_text(key)}" if name else _text(key))
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for i, item in enumerate(value, start=1):
            yield from _flattened(item, f"{name}.{i}" if name else str(i))
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    """Show one value; of a path only its last part, which is nobody's business beyond that."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, str) and _PATH.match(value):
        return value.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return "" if value is None else str(value)


def _code(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")
