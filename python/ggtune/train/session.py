"""From a configuration to a run that is ready to start: model, samples, adapter, engine, plan, checks."""

import dataclasses
import datetime
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ggtune
from ggtune._native import core
from ggtune.config import LINEAR_KINDS_ALL, SaveInterval, TrainConfig
from ggtune.data.load import Dataset, load_samples
from ggtune.data.samples import LossOn, Sample, TooLong
from ggtune.data.split import Holdout
from ggtune.errors import GgtuneError
from ggtune.files import free_bytes
from ggtune.gguf.adapter_file import AdapterFile, adapter_content
from ggtune.gguf.io import model_fingerprint
from ggtune.run.checkpoint import Checkpoint, CheckpointError, State, checkpoint_bytes, restore
from ggtune.run.job import Job
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Progress
from ggtune.system import available_memory, available_threads, format_bytes
from ggtune.train.loop import Loop
from ggtune.train.plan import Plan
from ggtune.train.recomputation import set_recomputation
from ggtune.train.result import Result
from ggtune.train.start import Start, settled

if TYPE_CHECKING:
    from ggtune._core import Adapter, Model, Trainer

_LEAST_MICRO_BATCH = 512
_STEP_BYTES = 400  # of metrics


@dataclass(frozen=True)
class Session:
    """A run that has passed all checks and written nothing yet. ``report`` is for the user."""

    config: TrainConfig
    outputs: Outputs
    engine: "Trainer"
    plan: Plan
    state: State
    initial: Callable[[], AdapterFile]  # makes the adapter before the first step
    report: tuple[str, ...]

    def loop(self, progress: Progress, *, command: Mapping[str, Any] | None = None, overwrite: bool = False) -> Loop:
        """Make the loop; ``command`` and ``overwrite`` as in :class:`~ggtune.run.job.Job`."""
        job = Job(
            self.config, self.outputs, self.plan.known_steps, ggtune.__version__, command or {}, overwrite=overwrite
        )
        return Loop(self.config, self.engine, self.plan, self.outputs, progress, self.state, job, self.initial)


def fine_tune(config: TrainConfig, out: str | Path, *, quiet: bool = False) -> Result:
    """Train an adapter into the run folder ``out``. Raises :class:`GgtuneError` for anything that the user can mend."""
    return prepare(config, Outputs.folder(Path(out))).loop(Progress(quiet=quiet)).run()


def prepare(
    config: TrainConfig, outputs: Outputs, *, checkpoint: Checkpoint | None = None, extra_disk_bytes: int = 0
) -> Session:
    """Load and check everything. Raises :class:`GgtuneError` before anything is written.

    ``extra_disk_bytes`` are what the caller will write beside the run's own files.
    """
    fingerprint = model_fingerprint(config.model)
    if checkpoint is not None:
        check_same_model(config.model, checkpoint.state, fingerprint)
    model = core.Model(config.model)
    start = settled(config, model) if checkpoint is None else Start(config)
    config = start.config
    started = checkpoint.state.started if checkpoint is not None else ""
    started = started or datetime.datetime.now().isoformat(timespec="seconds")
    samples = read_samples(config, model, now=_time(started))
    context, data, training, held_out = samples.context, samples.data, samples.training, samples.held_out
    data_fingerprint = _data_fingerprint(training, held_out)
    if checkpoint is not None and checkpoint.state.data_fingerprint != data_fingerprint:
        raise CheckpointError(
            f"the samples of {config.data} are not those that the checkpoint was trained on "
            f"({checkpoint.config.data}): the data has changed. Give the old file, or start a new run."
        )

    _check_adapter_memory(config, model)
    adapter = make_adapter(config, model)
    engine = make_engine(config, model, adapter, context)
    plan = make_plan(config, samples)
    needed = _check_memory(config, engine, adapter, plan, model.n_layer)
    outputs.check_writable()
    _check_disk(config, outputs, disk_bytes(config, adapter, plan) + extra_disk_bytes)
    if checkpoint is not None:
        state = dataclasses.replace(checkpoint.state, version=ggtune.__version__)
        restore(engine, checkpoint)
    else:
        notes = {**start.notes, **data.report.asked_with(), "base_fingerprint": fingerprint}
        start.fill(adapter)
        state = State(
            0, 0, 0, 0, fingerprint, data_fingerprint, notes=notes, started=started, version=ggtune.__version__
        )
    n_again = engine.recompute_layers
    report = [
        *start.messages,
        *_report(config, model, adapter, data, (len(training), len(held_out)), plan, context),
        f"Memory: {format_bytes(sum(needed.values()))} expected of {format_bytes(available_memory())}"
        + (f", with {n_again} of {model.n_layer} layers computed again for their gradient" if n_again else ""),
        f"Threads: {n_threads(config)} with kernels for {core.kernel_variant()}; seed {config.seed}",
    ]
    return Session(config, outputs, engine, plan, state, lambda: _initial(config, model), tuple(report))


def _initial(config: TrainConfig, model: "Model") -> AdapterFile:
    adapter = make_adapter(config, model)
    if config.from_adapter:
        settled(config, model).fill(adapter)
    return adapter_content(adapter, {})


@dataclass(frozen=True)
class RunSamples:
    """The samples of a run."""

    context: int  # tokens of the longest sample: what was asked for, at most what the model was made for
    data: Dataset
    training: list[Sample]
    held_out: list[Sample]


def read_samples(config: TrainConfig, model: "Model", *, now: datetime.datetime | None = None) -> RunSamples:
    """Read the data and hold some of it out. ``now`` is the time for templates that write the date.

    Raises :class:`GgtuneError` for data that can't be used.
    """
    context = min(config.ctx, model.n_ctx_train) if model.n_ctx_train > 0 else config.ctx
    data = _load(config, model, context, now)
    training, held_out = _split(config, data)
    return RunSamples(context, data, training, held_out)


def n_threads(config: TrainConfig) -> int:
    """Return how many threads compute."""
    return config.threads or available_threads()


def make_adapter(config: TrainConfig, model: "Model") -> "Adapter":
    """Make the adapter as it is before the first step. Raises :class:`GgtuneError` for wrong targets."""
    return core.Adapter(
        model,
        rank=config.rank,
        alpha=config.effective_alpha,
        targets=chosen_targets(config, model),
        rslora=config.rslora,
        seed=config.seed,
    )


def make_engine(config: TrainConfig, model: "Model", adapter: "Adapter", context: int) -> "Trainer":
    """Make what computes; ``context`` is that of the samples. Raises :class:`GgtuneError` where it can't be trained."""
    return core.Trainer(
        model,
        adapter,
        context=context,
        threads=n_threads(config),
        precision=config.precision,
        dropout=config.dropout,
        seed=config.seed,
    )


def make_plan(config: TrainConfig, samples: RunSamples) -> Plan:
    """Return which samples every step computes."""
    return Plan(
        samples.training,
        samples.held_out,
        batch=config.batch,
        max_tokens=config.micro_batch_tokens or max(samples.context, _LEAST_MICRO_BATCH),
        seed=config.seed,
        epochs=config.epochs,
        max_steps=config.max_steps,
    )


def check_same_model(path: str, state: State, fingerprint: str | None = None) -> None:
    """Raise :class:`CheckpointError` where a checkpoint is not of the model at ``path``."""
    if (fingerprint or model_fingerprint(path)) != state.model_fingerprint:
        raise CheckpointError(
            f"the checkpoint was made with another model than {path}: give the model that the run was started with"
        )


def _time(text: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        raise CheckpointError(f"the checkpoint has a wrong time of its start: {text[:40]!r}") from None


def _load(config: TrainConfig, model: "Model", context: int, now: datetime.datetime | None) -> Dataset:
    return load_samples(
        config.data,
        model,
        context=context,
        template=config.template or None,
        system=config.system or None,
        loss_on=cast(LossOn, config.loss_on),
        too_long=cast(TooLong, config.too_long),
        question_column=config.question_column or None,
        answer_column=config.answer_column or None,
        sample_start=config.sample_start,
        include_sample_start=config.include_sample_start,
        overlapping_samples=config.overlapping_samples,
        now=now,
    )


def _split(config: TrainConfig, data: Dataset) -> tuple[list[Sample], list[Sample]]:
    training, held_out = Holdout.parse(config.holdout).split(len(data.samples), config.seed)
    return [data.samples[i] for i in training], [data.samples[i] for i in held_out]


def _data_fingerprint(training: Sequence[Sample], held_out: Sequence[Sample]) -> str:
    digest = hashlib.sha256(f"{len(training)} {len(held_out)}".encode())
    for sample in [*training, *held_out]:
        digest.update(f"|{len(sample.tokens)}|".encode())
        digest.update(sample.tokens.tobytes())
        digest.update(sample.weights.tobytes())
    return digest.hexdigest()


def chosen_targets(config: TrainConfig, model: "Model") -> list[str]:
    """Return the kinds of linears that get an adapter. Raises :class:`GgtuneError` for one that the model has not."""
    kinds = list(dict.fromkeys(linear.kind for linear in model.linears()))
    if config.targets == (LINEAR_KINDS_ALL,):
        return kinds
    if unknown := [name for name in config.targets if name not in kinds]:
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


def snapshot_bytes(adapter: "Adapter") -> dict[str, int]:
    """Return what a run holds beside the engine: adapter and both moments as a checkpoint is written."""
    return {"checkpoint": 12 * adapter.n_params}


def _check_memory(
    config: TrainConfig, engine: "Trainer", adapter: "Adapter", plan: Plan, n_layer: int
) -> dict[str, int]:
    free = available_memory()
    parts = set_recomputation(engine, config.recompute, n_layer, plan.largest, free, snapshot_bytes(adapter))
    needed = sum(parts.values())
    if not config.force and needed > free:
        recompute = ", or --recompute" if config.recompute == "none" else ""
        raise GgtuneError(
            f"more memory is needed than there is: {format_bytes(needed)} for {plan.largest[0]} tokens at once ("
            + ", ".join(f"{name} {format_bytes(n)}" for name, n in parts.items())
            + f"), {format_bytes(free)} are free. Give a smaller --ctx, --micro-batch-tokens or --rank{recompute}; "
            "--force starts all the same."
        )
    return parts


def disk_bytes(config: TrainConfig, adapter: "Adapter", plan: Plan) -> int:
    """Estimate what all files of the run will take, and one more that is written before an old one goes."""
    names = adapter.tensor_names()
    per_checkpoint = checkpoint_bytes(adapter.n_params, 3 * len(names))
    per_adapter = 4 * adapter.n_params + 600 * len(names)
    every = SaveInterval.parse(config.save_every).steps
    n_saves = plan.total_steps // every + 1 if plan.total_steps and every else 1
    n_kept = min(config.keep, n_saves) if config.keep else n_saves
    best = 1 if plan.held_out else 0
    return (n_kept + best + 1) * per_checkpoint + (2 + best) * per_adapter + _STEP_BYTES * (plan.total_steps or 0)


def _check_disk(config: TrainConfig, outputs: Outputs, n_bytes: int) -> None:
    there = sum(path.stat().st_size for path in outputs.existing())
    needed = max(0, n_bytes - there)
    free = free_bytes(outputs.checkpoint.parent)
    if needed > free and not config.force:
        raise GgtuneError(
            f"{outputs.checkpoint.parent}: the disk has too little room for the run: {format_bytes(needed)} for "
            f"what it writes, {format_bytes(free)} are free. Make room, give a smaller --keep or "
            "--rank, or another --out; --force starts all the same."
        )


def _report(
    config: TrainConfig,
    model: "Model",
    adapter: "Adapter",
    data: Dataset,
    n_samples: tuple[int, int],
    plan: Plan,
    context: int,
) -> list[str]:
    packing = plan.packing()
    steps = f"{plan.total_steps} steps" if plan.total_steps else "no last step"
    if config.until_stop_loss:
        steps = f"at most {plan.total_steps} steps"
    capped = f" (the model's; {config.ctx} were asked for)" if context < config.ctx else ""
    return [
        f"Model: {config.model}: {model.architecture}, {model.n_params / 1e6:.1f}M parameters, "
        f"{format_bytes(model.n_bytes)}",
        f"Adapter: rank {config.rank}, alpha {config.effective_alpha:g}, {adapter.n_params / 1e6:.2f}M parameters on "
        f"{len(adapter.tensor_names()) // 2} linears",
        *(f"Data: {line}" for line in data.report.lines()),
        f"Samples: {n_samples[0]} to train on, {n_samples[1]} held out; context {context}{capped}, "
        f"loss on {'every token' if config.loss_on == 'all' else 'the answers'}",
        f"Steps: {plan.steps_per_epoch} per epoch, {steps}, {config.batch} samples per step in "
        f"{packing.micro_batches_per_step:.2f} micro-batches of at most {plan.max_tokens} tokens, "
        f"{100 * packing.efficiency:.0f} % packing efficiency",
        *(_end(config, plan) if config.until_stop_loss else ()),
    ]


def _end(config: TrainConfig, plan: Plan) -> list[str]:
    """Say when a run ends that goes until its ``stop_loss``."""
    ends = [f"when the loss of {config.stop_patience} steps in a row was under {config.stop_loss:g}"]
    if config.stop_plateau:
        ends.append("when it no longer falls, at a lower rate neither")
    ceiling = plan.total_steps or 0
    ends.append(f"after {ceiling} steps ({ceiling / plan.steps_per_epoch:.0f} epochs)")
    return [f"Rate: {config.lr:g}, {config.schedule}", "The run ends " + ", or ".join(ends)]
