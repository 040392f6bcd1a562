"""From settings to what computes: model, adapter, samples, engine and plan, for a training as for its forecast."""

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggtune._native import core
from ggtune.config import LINEAR_KINDS_ALL, TrainConfig
from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import AdapterFile, adapter_content
from ggtune.run.checkpoint import Checkpoint, CheckpointError, restore
from ggtune.system import available_memory, format_bytes, resolved_threads
from ggtune.train.plan import Plan
from ggtune.train.samples import RunSamples, read_samples
from ggtune.train.start import Start, settled

if TYPE_CHECKING:
    from ggtune._core import Adapter, Model, Trainer

_LEAST_MICRO_BATCH = 512


@dataclass(frozen=True)
class Build:
    """What a run computes with, standing where it begins or goes on."""

    start: Start
    model: "Model"
    samples: RunSamples
    adapter: "Adapter"
    engine: "Trainer"
    plan: Plan

    @property
    def config(self) -> TrainConfig:
        """The settings, none of them open any more."""
        return self.start.config

    def initial(self) -> AdapterFile:
        """Make the adapter as it was before the first step. It may have been a while ago, in another process."""
        adapter = _adapter(self.config, self.model)
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
        raise CheckpointError(
            f"the samples of {config.data} are not those that the checkpoint was trained on "
            f"({checkpoint.config.data}): the data has changed. Give the old file, or start a new run."
        )
    if not header_only:
        _check_adapter_memory(config, model)
    adapter = _adapter(config, model)
    engine = core.Trainer(
        adapter,
        context=samples.context,
        threads=resolved_threads(config.threads),
        precision=config.precision,
        dropout=config.dropout,
        neftune_alpha=config.neftune_alpha,
        seed=config.seed,
    )
    plan = Plan(
        samples.training,
        samples.held_out,
        batch=config.batch,
        max_tokens=config.micro_batch_tokens or max(samples.context, _LEAST_MICRO_BATCH),
        seed=config.seed,
        epochs=config.epochs,
        max_steps=config.max_steps,
    )
    if checkpoint is not None:
        restore(engine, checkpoint)
    elif not header_only:  # such an adapter has no values
        start.fill(adapter)
    return Build(start, model, samples, adapter, engine, plan)


def chosen_targets(config: TrainConfig, model: "Model") -> list[str]:
    """Return the kinds of linears that get an adapter. Raises :class:`GgtuneError` for one that the model has not."""
    kinds = list(dict.fromkeys(linear.kind for linear in model.linears()))
    if config.targets == (LINEAR_KINDS_ALL,):
        return kinds
    unknown = [name for name in config.targets if name not in kinds]
    if unknown and kinds:  # a model without any is the engine's to refuse
        raise GgtuneError(f"--targets: {config.model} has no linear {', '.join(unknown)}; it has {', '.join(kinds)}")
    return list(config.targets)


def _check_adapter_memory(config: TrainConfig, model: "Model") -> None:
    """Refuse an adapter that can't even be made. It takes four times its F32 values: with gradient and two moments."""
    targets = chosen_targets(config, model)
    n_params = sum(config.rank * (linear.n_in + linear.n_out) for linear in model.linears() if linear.kind in targets)
    needed, free = 16 * n_params, available_memory()
    if needed > free and not config.force:
        raise GgtuneError(
            f"more memory is needed than there is: {format_bytes(needed)} for an adapter of rank {config.rank}, "
            f"{format_bytes(free)} are free. Give a smaller --rank or fewer --targets."
        )


def _adapter(config: TrainConfig, model: "Model") -> "Adapter":
    return core.Adapter(
        model,
        rank=config.rank,
        alpha=config.effective_alpha,
        targets=chosen_targets(config, model),
        rslora=config.rslora,
        seed=config.seed,
    )
