"""How a run ended, and what the user is told of it."""

from dataclasses import dataclass
from pathlib import Path

from ggtune.config import TrainConfig
from ggtune.run.progress import format_duration
from ggtune.system import format_bytes, peak_memory


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    config: TrainConfig  # none of its settings open
    steps: int
    stop_reason: str
    loss: float | None  # of the last step, per weighted token; None where no step was taken
    smoothed_loss: float
    held_out_loss: float | None
    held_out_before: float | None
    best_held_out: float | None  # of those measured after a step
    best_step: int | None
    first_loss: float | None  # of the run's first step: the base's own
    start_loss: float | None  # mean of the run's first steps
    n_updates: int  # steps that were not dropped, of the whole run
    steps_per_epoch: int
    is_under: bool  # the loss has stayed under ``stop_loss``
    is_flat: bool  # it no longer fell
    n_tokens: int  # computed in this session, held-out ones left out
    seconds: float  # of this session
    adapter: Path
    turned_up: bool = False  # the held-out loss has risen from its lowest while the training loss fell
    exhausted: bool = False  # ``early_stop`` measurements brought nothing better
    paused: bool = False  # an observer has ended it; it can go on
    outlook: tuple[str, ...] = ()  # what going on would be worth


def describe(result: Result) -> list[str]:
    """Say how a run ended, for the user."""
    lines = [f"Stopped after step {result.steps}: {result.stop_reason}."]
    if result.loss is not None:
        lines.append(f"Training loss {result.loss:.4f}, smoothed {result.smoothed_loss:.4f}.")
    if result.held_out_loss is not None and result.held_out_before is not None:
        lines.append(f"Held-out loss {result.held_out_before:.4f} before, {result.held_out_loss:.4f} after.")
    lines += result.outlook
    if result.seconds > 0:
        lines.append(
            f"{result.n_tokens} tokens in {format_duration(result.seconds)}, "
            f"{result.n_tokens / result.seconds:.0f} tokens/s; peak memory {format_bytes(peak_memory())}."
        )
    return lines
