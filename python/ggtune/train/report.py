"""What the user is told of a run before it starts."""

from typing import TYPE_CHECKING

from ggtune._native import core
from ggtune.data.store import lengths_of
from ggtune.system import available_memory, format_bytes, resolved_threads
from ggtune.train.build import Build
from ggtune.train.placing import PlacedRun, use_lines

if TYPE_CHECKING:
    from ggtune.config import TrainConfig
    from ggtune.train.plan import Plan

_SHOWN = 8


def first_lines(placed: PlacedRun) -> list[str]:
    """Describe model, adapter, data, steps, memory, and where the layers lie."""
    built = placed.built
    config, model, adapter, samples, plan = built.config, built.model, built.adapter, built.samples, built.plan
    packing = plan.packing()
    n_tokens = float(lengths_of(samples.training).sum() - len(samples.training))
    steps = f"{plan.total_steps} steps" if plan.total_steps else "no last step"
    if config.until_stop_loss:
        steps = f"at most {plan.total_steps} steps"
    capped = f" (the model's; {config.ctx} were asked for)" if samples.context < config.ctx else ""
    memory = "Main memory" if placed.devices else "Memory"
    n_again = built.engine.recompute_layers
    return [
        *built.start.messages,
        f"Model: {config.model}: {model.architecture}, {model.n_params / 1e6:.1f}M parameters, "
        f"{format_bytes(model.n_bytes)}",
        f"Adapter: rank {config.rank}, alpha {config.effective_alpha:g}, {adapter.n_params / 1e6:.2f}M parameters on "
        f"{len(adapter.tensor_names()) // 2} linears" + (f" ({built.experts})" if built.experts else ""),
        *_left_out(built),
        *(f"Data: {line}" for line in samples.data.report.lines()),
        f"Samples: {len(samples.training)} to train on, {len(samples.held_out)} held out; "
        f"context {samples.context}{capped}, loss on {'every token' if config.loss_on == 'all' else 'the answers'}",
        f"Steps: {plan.steps_per_epoch} per epoch, {steps}, {config.batch} samples per step in "
        f"{packing.micro_batches_per_step:.2f} micro-batches of at most {plan.max_tokens} tokens, "
        f"{100 * packing.efficiency:.0f} % packing efficiency",
        *(_end(config, plan) if config.until_stop_loss else ()),
        *placed.measured.lines(n_tokens / len(samples.training) * config.batch),
        *placed.lines,
        *(f"Layers on {line}" for line in use_lines(placed.devices)),
        f"{memory}: {format_bytes(sum(placed.needed.values()))} expected of {format_bytes(available_memory())}"
        + (f", with {n_again} of {model.n_layer} layers computed again for their gradient" if n_again else ""),
        f"Threads: {resolved_threads(config.threads)} with kernels for {core.kernel_variant()}; seed {config.seed}",
    ]


def _left_out(built: Build) -> list[str]:
    """Name the linears that were asked for by a group or a kind, and get no adapter."""
    lines = []
    if built.targets.narrow:
        lines.append(f"Left out, narrower than the rank: {', '.join(built.targets.narrow)}")
    if dropped := built.adapter.dropped:
        more = f" and {len(dropped) - _SHOWN} more" if len(dropped) > _SHOWN else ""
        lines.append(f"Left out, the loss does not depend on them: {', '.join(dropped[:_SHOWN])}{more}")
    return lines


def _end(config: "TrainConfig", plan: "Plan") -> list[str]:
    """Say when a run ends that goes until its ``stop_loss``."""
    ends = [f"when the loss of {config.stop_patience} steps in a row was under {config.stop_loss:g}"]
    if config.stop_plateau:
        ends.append("when it no longer falls, at a lower rate neither")
    ceiling = plan.total_steps or 0
    ends.append(f"after {ceiling} steps ({ceiling / plan.steps_per_epoch:.0f} epochs)")
    return [f"Rate: {config.lr:g}, {config.schedule}", "The run ends " + ", or ".join(ends)]
