"""From settings to what computes: model, adapter, samples, engine and plan, for a training as for its forecast."""

import dataclasses
import datetime
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ggtune._native import core
from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import AdapterFile, adapter_content
from ggtune.run.checkpoint import Checkpoint, CheckpointError, restore
from ggtune.setting_texts import Holdout
from ggtune.system import available_memory, format_bytes, resolved_threads
from ggtune.train.placement import Places
from ggtune.train.plan import Plan
from ggtune.train.samples import RunSamples, read_samples
from ggtune.train.start import Start, settled
from ggtune.train.targets import BYTES_PER_PARAMETER, Targets, chosen_targets, experts_share, n_params, smaller_targets

if TYPE_CHECKING:
    from ggtune._core import Adapter, Model, Trainer

_LEAST_MICRO_BATCH = 512
_MOST_MICRO_BATCH = 2048
_ROWS_PER_EXPERT = 64  # from so many on, an expert's products run at the speed of dense ones


@dataclass(frozen=True)
class Build:
    """What a run computes with, standing where it begins or goes on."""

    start: Start
    model: "Model"
    samples: RunSamples
    adapter: "Adapter"
    targets: Targets
    engine: "Trainer"
    plan: Plan
    places: Places = field(default_factory=Places)

    @property
    def config(self) -> TrainConfig:
        """The settings, none of them open any more."""
        return self.start.config

    @property
    def experts(self) -> str:
        """How much of the adapter is for experts, "" where none is."""
        return experts_share(self.targets.of(self.model.linears()), self.config.rank)

    def initial(self) -> AdapterFile:
        """Make the adapter as it was before the first step. It may have been a while ago, in another process."""
        adapter = _adapter(self.config, self.model, self.targets)
        if self.adapter.dropped:
            adapter.drop(self.adapter.dropped)
        if self.config.from_adapter:
            settled(self.config, self.model).fill(adapter)
        return adapter_content(adapter, {})


def build(
    config: TrainConfig,
    *,
    checkpoint: Checkpoint | None = None,
    header_only: bool = False,
    now: datetime.datetime | None = None,
) -> Build:
    """Make all of it; ``config`` is the checkpoint's, or one that goes on with it, where there is one.

    ``header_only`` reads no weights: enough to ask the engine for memory and time, with an adapter of any size.
    ``now`` is the time for templates that write the date. Raises :class:`GgtuneError` for what can't be trained, and
    :class:`CheckpointError` for a checkpoint of other samples or another adapter.
    """
    model = core.Model(config.model, header_only=header_only)
    start = settled(config, model) if checkpoint is None else Start(config)
    config = start.config
    samples = read_samples(config, model, now=now)
    if checkpoint is not None and checkpoint.state.data_fingerprint != samples.fingerprint():
        changed = ", ".join(samples.changed_files(checkpoint.state.data_files)) or config.data
        before = [checkpoint.config.data, *checkpoint.config.more_data]
        if Holdout.parse(checkpoint.config.holdout).path:
            before.append(checkpoint.config.holdout)
        raise CheckpointError(
            f"the samples of {changed} are not those that the checkpoint was trained on ({', '.join(before)}): the "
            "data has changed. Give the old file, or start a new run."
        )
    targets = chosen_targets(config.targets, model.linears(), config.rank, config.model)
    if not header_only:
        _check_adapter_memory(config, model, targets)
    adapter = _adapter(config, model, targets)
    engine = _engine(config, adapter, samples)
    plan = Plan(
        samples.training,
        samples.held_out,
        batch=config.batch,
        max_tokens=config.micro_batch_tokens or default_micro_batch(samples.context, model, engine),
        seed=config.seed,
        epochs=config.epochs,
        max_steps=config.max_steps,
        graphs=engine.graphs if engine.needs_equal_lengths else None,
    )
    built = Build(start, model, samples, adapter, targets, engine, plan)
    if not header_only:
        _begin(built, checkpoint)
    return built


def placed(built: Build, places: Places, *, checkpoint: Checkpoint | None = None, header_only: bool = False) -> Build:
    """Make the same with the model's layers in other places, of which another may be the header alone.

    Raises :class:`ggtune.errors.DeviceMemoryError` where the weights don't fit a device.
    """
    config = built.config
    if not header_only:
        _check_adapter_memory(config, built.model, built.targets)
    model = core.Model(config.model, header_only=header_only, **places.arguments())
    adapter = _adapter(config, model, built.targets)
    engine = _engine(config, adapter, built.samples)
    found = dataclasses.replace(built, model=model, adapter=adapter, engine=engine, places=places)
    if not header_only:
        _begin(found, checkpoint)
    return found


def _begin(built: Build, checkpoint: Checkpoint | None) -> None:
    """Put the values in that a run begins or goes on with."""
    if checkpoint is not None:
        restore(built.engine, checkpoint)
    else:
        built.start.fill(built.adapter)


def _engine(config: TrainConfig, adapter: "Adapter", samples: RunSamples) -> "Trainer":
    return core.Trainer(
        adapter,
        context=samples.context,
        threads=resolved_threads(config.threads),
        precision=config.precision,
        dropout=config.dropout,
        neftune_alpha=config.neftune_alpha,
        seed=config.seed,
    )


def default_micro_batch(context: int, model: "Model", engine: "Trainer") -> int:
    """Return how many tokens are computed at once by default.

    More where each goes through a few of many experts, as far as there is memory for it.
    """
    least = max(context, _LEAST_MICRO_BATCH)
    wanted = min(_tokens_for_experts(model), _MOST_MICRO_BATCH)
    if wanted <= least:
        return least
    n_sequences = max(1, wanted // context)
    needed = sum(engine.memory(wanted, wanted, n_sequences).values())
    return wanted if needed <= available_memory() else least


def _tokens_for_experts(model: "Model") -> int:
    """Count the tokens that give every expert its rows, where all are chosen equally often; 0 without experts."""
    metadata = model.metadata()

    def number(key: str) -> int:
        text = metadata.get(f"{model.architecture}.{key}", "0")
        return int(text) if text.isdigit() else 0

    n_expert, n_used = number("expert_count"), number("expert_used_count")
    return _ROWS_PER_EXPERT * n_expert // n_used if n_expert and n_used else 0


def _check_adapter_memory(config: TrainConfig, model: "Model", targets: Targets) -> None:
    """Refuse an adapter that can't even be made."""
    linears = targets.of(model.linears())
    needed, free = BYTES_PER_PARAMETER * n_params(linears, config.rank), available_memory()
    if needed > free and not config.force:
        raise GgtuneError(
            f"more memory is needed than there is: {format_bytes(needed)} for an adapter of rank {config.rank}, "
            f"{format_bytes(free)} are free. Give a smaller --rank or fewer --targets"
            f"{smaller_targets(experts_share(linears, config.rank))}."
        )


def _adapter(config: TrainConfig, model: "Model", targets: Targets) -> "Adapter":
    return core.Adapter(
        model,
        rank=config.rank,
        alpha=config.effective_alpha,
        targets=targets.kinds,
        rslora=config.rslora,
        seed=config.seed,
    )
