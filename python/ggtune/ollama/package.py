"""From a GGUF file to a model that Ollama runs: a Modelfile in a folder, the model in a store, or both."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.files import replacing_text
from ggtune.ollama.gguf_header import GgufHeader, read_header
from ggtune.ollama.modelfile import Modelfile
from ggtune.ollama.names import ModelName
from ggtune.ollama.parameters import Parameters, ParameterValue, check_parameters
from ggtune.ollama.store import Progress, StoredModel, check_model_files, default_store, write_model
from ggtune.ollama.templates import OllamaTemplate, choose_ollama_template

# where Ollama's Linux installer puts the home of the user that its service runs as
_SERVICE_HOME = Path("/usr/share/ollama")


@dataclass(frozen=True)
class PackageResult:
    """What was written. ``str`` is for the user: what is where, how to run it, and what to know."""

    name: ModelName
    template: str | None  # name of the template; None: left to the GGUF's own
    system: str | None
    parameters: Parameters
    modelfile: Path | None
    store: Path | None
    stored: StoredModel | None
    messages: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"Template: {self.template or 'left to the model file'}; system text: {self.system or 'none'}"]
        if self.modelfile is not None:
            lines += [f"Modelfile: {self.modelfile}", f"  ollama create {self.name} -f {self.modelfile}"]
        if self.store is not None and self.stored is not None:
            server = "" if self.store == default_store() else f"  (server started with OLLAMA_MODELS={self.store})"
            lines += [f"In the Ollama store {self.store} as {self.name}", f"  ollama run {self.name}{server}"]
        return "\n".join([*lines, *self.messages])


def package_model(
    gguf_path: Path,
    name: str,
    *,
    out_dir: Path | None = None,
    store: Path | None = None,
    template: str | None = None,
    system: str | None = None,
    params: Parameters | None = None,
    license: str | None = None,  # noqa: A002 - Modelfile's word
    adapter: Path | None = None,
    progress: Progress | None = None,
) -> PackageResult:
    """Write ``out_dir/Modelfile`` and put the model into ``store``, whichever of the two is given.

    The Modelfile names the GGUF (and the adapter) by a relative path: nothing is copied beside it. ``template`` is a
    named one or ``model``, by default what the GGUF says it was trained with (``ggtune.template``), else ``model``
    where it has a chat template, else ``plain``. ``system``: None takes the GGUF's ``ggtune.system``, "" is none.
    ``params`` go beside the template's stops. Raises :class:`GgtuneError`;
    nothing is written where the input is at fault.
    """
    if out_dir is None and store is None:
        raise GgtuneError("Nothing to write: give a folder for the Modelfile, an Ollama store, or both.")
    model_name = ModelName.parse(name)
    header = read_header(gguf_path)
    check_model_files(gguf_path, header, adapter)
    ollama_template, messages = _choose_template(gguf_path, header, template)
    if system is None:
        system = header.ggtune_system
    system = system or None
    if ollama_template is not None:
        # the training's own check: some templates have no place for a system text
        ollama_template.source.render(system, "", "")
    parameters = _parameters(ollama_template, params or {})
    modelfile = Modelfile(
        model=_relative(gguf_path, out_dir),
        adapter=_relative(adapter, out_dir) if adapter else None,
        template=ollama_template.text if ollama_template else None,
        system=system,
        license=license,
        parameters=parameters,
    )
    messages += _remarks(model_name, modelfile if out_dir else None, store)

    modelfile_path = out_dir / "Modelfile" if out_dir else None
    stored = None
    with ExitStack() as stack:
        if modelfile_path is not None:
            # it appears when the store has the model
            stack.enter_context(replacing_text(modelfile_path, str(modelfile), mode=0o644))
        if store is not None:
            stored = write_model(
                store,
                model_name,
                gguf_path,
                template=modelfile.template,
                system=system,
                license=license,
                params=parameters,
                adapter=adapter,
                progress=progress,
            )
    return PackageResult(
        name=model_name,
        template=ollama_template.name if ollama_template else None,
        system=system,
        parameters=parameters,
        modelfile=modelfile_path,
        store=store,
        stored=stored,
        messages=tuple(messages),
    )


def _choose_template(
    gguf_path: Path, header: GgufHeader, template: str | None
) -> tuple[OllamaTemplate | None, list[str]]:
    """Choose the template, None for the GGUF's own, and say what the user should know about it."""
    try:
        return choose_ollama_template(
            template or header.ggtune_template or None, header.chat_template, header.special_tokens
        )
    except GgtuneError as error:
        raise GgtuneError(f"{gguf_path}: {error}") from None


def _parameters(template: OllamaTemplate | None, given: Parameters) -> dict[str, ParameterValue]:
    """``given`` with the template's stops in front of its own."""
    parameters: dict[str, ParameterValue] = dict(check_parameters(given))
    own = parameters.get("stop", [])
    stops = [*(template.stops if template else ()), *(own if isinstance(own, list) else [])]
    return parameters | ({"stop": list(dict.fromkeys(stops))} if stops else {})


def _relative(path: Path, folder: Path | None) -> str:
    """Name ``path`` for a Modelfile in ``folder``: with a leading dot, or Ollama could take it for a model's name."""
    if folder is None:
        return str(path)
    try:
        relative = Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return path.resolve().as_posix()
    return relative if relative.startswith("../") else f"./{relative}"


def _remarks(name: ModelName, modelfile: Modelfile | None, store: Path | None) -> list[str]:
    remarks = []
    lost = modelfile.lost_characters() if modelfile else ""
    if lost:
        codes = ", ".join(f"U+{ord(character):04X}" for character in lost)
        remarks.append(f"Ollama drops characters that do not print from a Modelfile: {codes}. A store keeps them.")
    if str(name) != str(name).lower():
        remarks.append(f"{name} has capital letters; registries want names in lower case.")
    if store is not None and store == default_store() and "OLLAMA_MODELS" not in os.environ and _SERVICE_HOME.is_dir():
        remarks.append(
            f"Ollama's service keeps its models in {_SERVICE_HOME / '.ollama' / 'models'}: it finds this one only "
            "there, or through ollama create."
        )
    return remarks
