"""From a GGUF file to a model that Ollama runs: a Modelfile in a folder, the model in a store, or both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.files import check_replaceable, check_writable, replacing, replacing_text
from ggtune.gguf.adapter_file import write_adapter
from ggtune.gguf.asked_with import AskedWith
from ggtune.gguf.header import GgufHeader, read_header
from ggtune.gguf.io import gguf_bytes
from ggtune.ollama.adapters import Adapters, read_adapters
from ggtune.ollama.modelfile import Modelfile, check_role
from ggtune.ollama.modelfile_edit import extend, is_signed, read_modelfile, signed
from ggtune.ollama.names import ModelName
from ggtune.ollama.parameters import Parameters, ParameterValue, plain_parameters
from ggtune.ollama.store import StoredModel, check_model_files, check_store, default_store, write_model
from ggtune.ollama.templates import OllamaTemplate, choose_ollama_template

# where Ollama's Linux installer puts the home of the user that its service runs as
_SERVICE_HOME = Path("/usr/share/ollama")


@dataclass(frozen=True)
class PackageResult:
    """What was written. ``str`` is for the user: what is where, how to run it, and what to know."""

    name: ModelName
    template: str | None  # name of the template; None: the Modelfile's own, or left to the GGUF's
    system: str | None
    parameters: Parameters
    content: Modelfile  # what Modelfile and store say
    modelfile: Path | None
    store: Path | None
    stored: StoredModel | None
    messages: tuple[str, ...]

    def __str__(self) -> str:
        template = self.template or ("the Modelfile's own" if self.content.template else "left to the model file")
        lines = [f"Template: {template}; system text: {self.system or 'none'}"]
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
    license: str | Sequence[str] = (),  # noqa: A002 - Modelfile's word
    said: Sequence[tuple[str, str]] = (),
    adapters: Sequence[tuple[Path, float]] = (),
    modelfile: Path | None = None,
    force: bool = False,
) -> PackageResult:
    """Write ``out_dir/Modelfile`` and put the model into ``store``, whichever of the two is given.

    The Modelfile names the GGUF and the adapter by a relative path: nothing is copied beside it. ``adapters`` are
    (file, factor), not merged; several become one file in ``out_dir``. ``template`` is a named one or ``model``, by
    default the one of the training, as the adapter or else the GGUF says (``ggtune.template``), else ``model`` where
    the GGUF has a chat template, else ``plain``. ``system``: None takes the training's (``ggtune.system``), "" is none.
    ``params`` go beside the template's stops; ``license`` are texts, by default what the GGUF says; ``said`` are
    MESSAGEs: (role, text).

    A Modelfile that is there, or the one at ``modelfile``, is extended: it keeps what it says unless an argument here
    says otherwise, and the store gets the same. One that ggtune wrote, and nobody changed, is replaced.

    Raises :class:`GgtuneError`; nothing is written where the input is at fault. ``force`` takes an adapter that says
    that it was trained on another file than this base.
    """
    if out_dir is None and store is None:
        raise GgtuneError("Nothing to write: give a folder for the Modelfile, an Ollama store, or both.")
    licenses = (license,) if isinstance(license, str) else tuple(license)
    wishes = _Wishes(template, system, params or {}, licenses, tuple(said), modelfile)
    model_name = ModelName.parse(name)
    header = read_header(gguf_path)
    check_model_files(gguf_path, header, None)
    for path, _ in adapters:
        check_model_files(gguf_path, header, path)
    found = read_adapters(gguf_path, adapters, out_dir, force=force)
    plan = _plan(gguf_path, header, found, wishes, out_dir, store)
    modelfile_path = out_dir / "Modelfile" if out_dir else None
    stored = None
    with ExitStack() as stack:
        if modelfile_path is not None and plan.text is not None:
            # it appears when the store has the model
            stack.enter_context(replacing_text(modelfile_path, plan.text, mode=0o644))
        adapter = found.path if found else None
        if found is not None and found.sum is not None:
            needed = gguf_bytes({}, found.sum.tensors)
            adapter = stack.enter_context(replacing(found.path, needed_bytes=needed, mode=0o644))
            write_adapter(adapter, found.sum)
        if store is not None:
            stored = write_model(
                store,
                model_name,
                gguf_path,
                template=plan.modelfile.template,
                system=plan.modelfile.system,
                license=plan.modelfile.license,
                params=plan.modelfile.parameters,
                messages=plan.modelfile.messages,
                adapter=adapter,
            )
    return PackageResult(
        name=model_name,
        template=plan.template,
        system=plan.modelfile.system,
        parameters=plan.modelfile.parameters,
        content=plan.modelfile,
        modelfile=modelfile_path,
        store=store,
        stored=stored,
        messages=(*plan.remarks, *_remarks(model_name, plan.modelfile if out_dir else None, store)),
    )


def check_packaging(
    model: Path,
    name: str,
    *,
    out_dir: Path | None,
    store: Path | None,
    template: str | None,
    system: str | None,
    params: Parameters | None = None,
    model_bytes: int | None = None,
) -> None:
    """Raise now what :func:`package_model` would raise after a training of ``model``; writes nothing.

    ``template`` and ``system`` are those of the training, ``model_bytes`` the size of the model that is to be packaged
    (by default that of ``model``). With ``template`` None the training chooses it, and checks itself that it has a
    place for the system text. Checked are the name, template, system text and parameters, a Modelfile that is there,
    and room and rights in ``out_dir`` and ``store``. Raises :class:`GgtuneError`.
    """
    model_name = ModelName.parse(name)
    # what the file says of an earlier training will not hold for the next
    header = replace(read_header(model), asked_with={})
    check_model_files(model, header, None)
    wishes = _Wishes(template, system, params or {}, template_known=template is not None)
    _plan(model, header, None, wishes, out_dir, store)
    if out_dir is not None:
        check_replaceable(out_dir / "Modelfile")
        check_writable(out_dir)
    if store is not None:
        check_store(store, model_name, model.stat().st_size if model_bytes is None else model_bytes)


@dataclass(frozen=True)
class _Wishes:
    """What the caller says of the Modelfile."""

    template: str | None
    system: str | None
    params: Parameters
    license: tuple[str, ...] = ()
    said: tuple[tuple[str, str], ...] = ()
    modelfile: Path | None = None
    template_known: bool = True  # False: the training will find it

    def given(self) -> set[str]:
        """Return the kinds of statements that are asked for, as :func:`~ggtune.ollama.modelfile_edit.extend` wants."""
        said = {
            "TEMPLATE": self.template is not None,
            "SYSTEM": self.system is not None,
            "LICENSE": bool(self.license),
            "MESSAGE": bool(self.said),
        }
        return {word for word, is_given in said.items() if is_given} | {f"PARAMETER {name}" for name in self.params}


@dataclass(frozen=True)
class _Plan:
    """All that can be known before anything is written."""

    modelfile: Modelfile
    text: str | None  # of the Modelfile; None where none is written
    template: str | None
    remarks: tuple[str, ...]


def _plan(
    gguf_path: Path,
    header: GgufHeader,
    adapters: Adapters | None,
    wishes: _Wishes,
    out_dir: Path | None,
    store: Path | None,
) -> _Plan:
    """Make the Modelfile. Raises :class:`GgtuneError` for whatever is wrong with it."""
    for role, _ in wishes.said:
        check_role(role)
    remarks = list(adapters.remarks) if adapters else []
    trained = AskedWith.of(adapters.notes if adapters else {}, header.asked_with)
    chosen, about_template = _choose_template(gguf_path, header, trained.template_or(wishes.template))
    if wishes.template and trained.template and wishes.template != trained.template:
        remarks.append(f"The training used the template {trained.template}, not {wishes.template}.")
    system, said = _choose_system(trained, wishes.system)
    remarks += said
    wanted = Modelfile(
        model=_relative(gguf_path, out_dir),
        adapter=_relative(adapters.path, out_dir) if adapters else None,
        template=chosen.text if chosen else None,
        system=system,
        license=list(wishes.license) or ([header.license] if header.license else []),
        parameters=_parameters(chosen, wishes.params),
        messages=list(wishes.said),
    )
    there = _existing(out_dir, wishes.modelfile)
    if there is None:
        if wishes.template_known:
            _check_system(chosen, wanted)
        text = signed(str(wanted)) if out_dir else None
        return _Plan(wanted, text, chosen.name if chosen else None, (*about_template, *remarks))

    path, text = there
    before = Modelfile.parse(text, path=str(path))
    if before.template and wishes.template is None and before.template != wanted.template:
        about_template = [
            f"The TEMPLATE of {path} was kept, though it is not the one of the training"
            f"{f' ({chosen.name})' if chosen else ''}: --template sets another."
        ]
        wanted = replace(wanted, parameters=_parameters(None, wishes.params))  # the stops are the other template's
        chosen = None
    if before.system and wishes.system is None and before.system != (wanted.system or ""):
        remarks.append(
            f"The SYSTEM of {path} was kept, though it is not the text of the training: --system sets another."
        )
    if before.model != wanted.model:
        remarks.append(f"The FROM of {path} was {before.model}.")
    if before.adapter and not adapters:
        remarks.append(f"The ADAPTER of {path} was taken out: the package has none.")
    extended = extend(text, wanted, wishes.given(), path=str(path))
    kept = [f"Kept from {path}: {extended.what_stays}"] if extended.what_stays else []
    result = Modelfile.parse(extended.text, path=str(path))
    if wishes.template_known or chosen is None:
        _check_system(chosen, result)
    kept_from = [word for word in ("renderer", "parser", "requires") if getattr(result, word)]
    if store is not None and kept_from:
        raise GgtuneError(
            f"{path} has {', '.join(kept_from).upper()}, which only `ollama create` can put into a model: take it out, "
            "or give --no-store."
        )
    text = extended.text if out_dir else None
    return _Plan(result, text, chosen.name if chosen else None, (*kept, *about_template, *remarks))


def _existing(out_dir: Path | None, given: Path | None) -> tuple[Path, str] | None:
    """Find the Modelfile to extend, and read it. Raises :class:`GgtuneError` where another one would be lost."""
    own = out_dir / "Modelfile" if out_dir else None
    users = None
    if own is not None and own.is_file() and not is_signed(text := read_modelfile(own)):
        users = (own, text)
    if given is None:
        return users
    text = read_modelfile(given)
    if users is not None and not users[0].samefile(given):
        raise GgtuneError(f"{own} is there and was not written by ggtune: move it away, or give another --out.")
    return given, text


def _choose_template(
    gguf_path: Path, header: GgufHeader, template: str | None
) -> tuple[OllamaTemplate | None, list[str]]:
    """Choose the template, None for the GGUF's own, and say what the user should know about it."""
    try:
        return choose_ollama_template(template, header.chat_template, header.special_tokens)
    except GgtuneError as error:
        raise GgtuneError(f"{gguf_path}: {error}") from None


def _choose_system(trained: AskedWith, given: str | None) -> tuple[str | None, list[str]]:
    """Choose the system text, and say where it is not what the training had."""
    chosen = trained.system_or(given)
    if given is None and trained.system_differs:
        return None, [
            "No SYSTEM was written: the samples of the training had different system texts. Choose one by --system."
        ]
    if trained.system is not None and not trained.system_differs and chosen != (trained.system or None):
        had = f"the system text {trained.system!r}" if trained.system else "no system text"
        return chosen, [f"The samples of the training had {had}."]
    return chosen, []


def _check_system(template: OllamaTemplate | None, modelfile: Modelfile) -> None:
    """Raise the training's own error where a template has no place for the system text."""
    if modelfile.system and template is not None:
        template.check_system(modelfile.system)
    elif modelfile.system and modelfile.template and not any(w in modelfile.template for w in (".System", ".Messages")):
        raise GgtuneError(
            "The Modelfile's TEMPLATE has no place for its SYSTEM: take one of them out, or give --template."
        )


def _parameters(template: OllamaTemplate | None, given: Parameters) -> dict[str, ParameterValue]:
    """``given`` with the template's stops in front of its own."""
    parameters: dict[str, ParameterValue] = dict(plain_parameters(given))
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
