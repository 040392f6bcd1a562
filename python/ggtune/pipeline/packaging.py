"""A model, or the folder of a run, packaged for Ollama."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.ollama.package import PackageResult, package_model
from ggtune.ollama.parameters import Parameters
from ggtune.ollama.run_folder import packaged_files
from ggtune.run.progress import Reporter
from ggtune.train.chosen import Which


@dataclass(frozen=True)
class PackageOptions:
    """What goes into a package beside the model."""

    out: Path | None = None  # folder of the Modelfile; None: the adapter's, else the model's
    store: Path | None = None  # Ollama's, to put the model into
    adapters: Sequence[tuple[Path, float]] = ()  # (file, factor), beside the model, not merged
    which: Which = "auto"  # step of a run whose adapter is taken
    template: str | None = None  # None: the training's, else the model's own
    system: str | None = None  # None: the training's; "": none
    parameters: Parameters = field(default_factory=dict)
    licenses: Sequence[str] = ()  # texts; none: what the model file says
    messages: Sequence[tuple[str, str]] = ()  # (role, text)
    modelfile: Path | None = None  # to extend; None: the one in ``out``
    force: bool = False  # take an adapter that was trained on another file than this model


def package(
    model: str | Path, name: str, options: PackageOptions | None = None, reporter: Reporter | None = None
) -> PackageResult:
    """Write a Modelfile for a GGUF file, or the folder of a run, and put the model into a store where one is given.

    Of a run its merged model is taken; where it has none, or a step is named, its base with that step's adapter.
    Raises :class:`GgtuneError` as :func:`~ggtune.ollama.package.package_model`.
    """
    options = options or PackageOptions()
    source, adapters = Path(model), list(options.adapters)
    folder = options.out or (adapters[0][0].parent if adapters else None)
    if source.is_dir():
        folder = folder or source
        of_run = packaged_files(source, with_adapter=not adapters, which=options.which)
        source, adapters = of_run.model, adapters or of_run.adapters
        if of_run.reason and reporter is not None:
            reporter.note(f"Adapter: {adapters[0][0]}: {of_run.reason}")
    elif options.which != "auto":
        raise GgtuneError(f"a step ({options.which}) is one of a run, and {source} is no folder of one")
    return package_model(
        source,
        name,
        out_dir=folder or source.parent,
        store=options.store,
        template=options.template,
        system=options.system,
        params=options.parameters,
        license=options.licenses,
        said=options.messages,
        adapters=adapters,
        modelfile=options.modelfile,
        force=options.force,
    )
