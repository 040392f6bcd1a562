"""From a configuration to a run that is ready to start: model, samples, adapter, engine, plan, checks."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ggtune._native import core
from ggtune.config import LINEAR_KINDS_ALL, TrainConfig
from ggtune.data.load import Dataset, load_samples
from ggtune.data.samples import LossOn, Sample, TooLong
from ggtune.data.split import Holdout
from ggtune.errors import GgtuneError
from ggtune.system import available_memory, available_threads, format_bytes
from ggtune.train.checkpoint import Checkpoint, CheckpointError, State
from ggtune.train.files import model_fingerprint, replacing
from ggtune.train.loop import Loop, Result
from ggtune.train.outputs import Outputs
from ggtune.train.plan import Plan
from ggtune.train.progress import Progress

if TYPE_CHECKING:
    from ggtune._core import Adapter, Model, Trainer

_LEAST_MICRO_BATCH = 512


@dataclass(frozen=True)
class Session:
    """A run that has passed all checks and written nothing yet. ``report`` is for the user."""

    config: TrainConfig
    outputs: Outputs
    engine: "Trainer"
    plan: Plan
    state: State
    report: tuple[str, ...]

    def loop(self, progress: Progress) -> Loop:
        """Write the configuration and make the loop."""
        if self.outputs.config is not None:
            with replacing(self.outputs.config) as temporary:
                temporary.write_text(self.config.to_json() + "\n", encoding="utf-8")
        return Loop(self.config, self.engine, self.plan, self.outputs, progress, self.state)


def fine_tune(config: TrainConfig, out: str | Path, *, quiet: bool = False) -> Result:
    """Train an adapter into the run folder ``out``. Raises :class:`GgtuneError` for anything that the user can mend."""
    return prepare(config, Outputs.folder(Path(out))).loop(Progress(quiet=quiet)).run()


def prepare(config: TrainConfig, outputs: Outputs, *, checkpoint: Checkpoint | None = None) -> Session:
    """Load and check everything. Raises :class:`GgtuneError` before anything is written."""
    fingerprint = model_fingerprint(config.model)
    if checkpoint is not None:
        check_same_model(config.model, checkpoint.state, fingerprint)
    model = core.Model(config.model, gpu_layers=config.gpu_layers)
    context = min(config.ctx, model.n_ctx_train) if model.n_ctx_train > 0 else config.ctx
    data = _load(config, model, context)
    training, held_out = _split(config, data)
    data_fingerprint = _data_fingerprint(training, held_out)
    if checkpoint is not None and checkpoint.state.data_fingerprint != data_fingerprint:
        raise CheckpointError(
            f"the samples of {config.data} are not those that the checkpoint was trained on "
            f"({checkpoint.config.data}): the data has changed. Give the old file, or start a new run."
        )

    threads = config.threads or available_threads()
    targets = _targets(config, model)
    _check_adapter_memory(config, model, targets)
    adapter = core.Adapter(
        model,
        rank=config.rank,
        alpha=config.effective_alpha,
        targets=targets,
        rslora=config.rslora,
        seed=config.seed,
    )
    engine = core.Trainer(
        model,
        adapter,
        context=context,
        threads=threads,
        recompute=config.recompute,
        dropout=config.dropout,
        seed=config.seed,
    )
    plan = Plan(
        training,
        held_out,
        batch=config.batch,
        max_tokens=config.micro_batch_tokens or max(context, _LEAST_MICRO_BATCH),
        seed=config.seed,
        epochs=config.epochs,
        max_steps=config.max_steps,
    )
    needed = _check_memory(config, engine, plan)
    outputs.check_writable()
    if checkpoint is not None:
        state = checkpoint.state
        _restore(engine, checkpoint)
    else:
        notes = {"system": config.system} if config.system else {}
        if data.report.template:
            notes["template"] = data.report.template
        state = State(0, 0, 0, 0, fingerprint, data_fingerprint, notes={**notes, "base_fingerprint": fingerprint})
    report = _report(config, model, adapter, data, (len(training), len(held_out)), plan, threads, context, needed)
    return Session(config, outputs, engine, plan, state, tuple(report))


def check_same_model(path: str, state: State, fingerprint: str | None = None) -> None:
    """Raise :class:`CheckpointError` where a checkpoint is not of the model at ``path``."""
    if (fingerprint or model_fingerprint(path)) != state.model_fingerprint:
        raise CheckpointError(
            f"the checkpoint was made with another model than {path}: give the model that the run was started with"
        )


def _load(config: TrainConfig, model: "Model", context: int) -> Dataset:
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


def _targets(config: TrainConfig, model: "Model") -> list[str]:
    kinds = list(dict.fromkeys(linear.kind for linear in model.linears()))
    if config.targets == (LINEAR_KINDS_ALL,):
        return kinds
    if unknown := [name for name in config.targets if name not in kinds]:
        raise GgtuneError(f"--targets: {config.model} has no linear {', '.join(unknown)}; it has {', '.join(kinds)}")
    return list(config.targets)


def _check_adapter_memory(config: TrainConfig, model: "Model", targets: Sequence[str]) -> None:
    """Refuse an adapter that can't even be made. It takes four times its F32 values: with gradient and two moments."""
    n_params = sum(config.rank * (linear.n_in + linear.n_out) for linear in model.linears() if linear.kind in targets)
    needed, free = 16 * n_params, available_memory()
    if needed > free and not config.force:
        raise GgtuneError(
            f"more memory is needed than there is: {format_bytes(needed)} for an adapter of rank {config.rank}, "
            f"{format_bytes(free)} are free. Give a smaller --rank or fewer --targets."
        )


def _check_memory(config: TrainConfig, engine: "Trainer", plan: Plan) -> dict[str, int]:
    n_tokens, n_targets, n_sequences = plan.largest
    parts = engine.memory(n_tokens, n_targets, n_sequences)
    needed, free = sum(parts.values()), available_memory()
    if not config.force and needed > free:
        recompute = "" if config.recompute else ", or --recompute"
        raise GgtuneError(
            f"more memory is needed than there is: {format_bytes(needed)} for {n_tokens} tokens at once ("
            + ", ".join(f"{name} {format_bytes(n)}" for name, n in parts.items())
            + f"), {format_bytes(free)} are free. Give a smaller --ctx, --micro-batch-tokens or --rank{recompute}; "
            "--force starts all the same."
        )
    return parts


def _restore(engine: "Trainer", checkpoint: Checkpoint) -> None:
    expected, found = set(engine.adapter.tensor_names()), set(checkpoint.adapter.tensors)
    if expected != found:
        raise CheckpointError(f"the checkpoint has no adapter of this shape: {sorted(expected ^ found)[0]} differs")
    for name, values in checkpoint.adapter.tensors.items():
        engine.adapter.set(name, values)
    engine.set_moments(checkpoint.moments)
    engine.n_steps = checkpoint.state.step
    engine.n_micro_batches = checkpoint.state.n_micro_batches


def _report(
    config: TrainConfig,
    model: "Model",
    adapter: "Adapter",
    data: Dataset,
    n_samples: tuple[int, int],
    plan: Plan,
    threads: int,
    context: int,
    needed: dict[str, int],
) -> list[str]:
    packing = plan.packing()
    steps = f"{plan.total_steps} steps" if plan.total_steps else "no last step"
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
        f"{100 * packing.efficiency:.0f} % full",
        f"Memory: {format_bytes(sum(needed.values()))} expected of {format_bytes(available_memory())}; "
        f"{threads} threads; seed {config.seed}",
    ]
