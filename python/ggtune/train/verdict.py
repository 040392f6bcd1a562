"""What a user has to be told at the very end of a run that did not go as it should."""

import math

from ggtune.train.monitor import Monitor
from ggtune.train.result import Result

DIVERGED_STATUS = 3  # of the process

_FEW_STEPS = 30
_ENOUGH_STEPS = 100
_LITTLE_SHARE = 0.05  # of the loss at the start: to have fallen by less is to have learned nothing
_MUCH_SHARE = 0.5  # so much can be learned in few steps all the same
_WORSE_FACTOR, _WORSE_LOSS = 1.25, 0.25  # a training loss so much above the start's is divergence, no noise
_BOTH_WORSE_FACTOR, _BOTH_WORSE_LOSS = 1.1, 0.1  # both losses so much above theirs at the start are, too


def is_divergence(
    *,
    first_loss: float | None,
    start_loss: float | None,
    smoothed_loss: float,
    held_out_before: float | None,
    held_out_loss: float | None,
) -> bool:
    """Tell whether the training loss is much worse than at the start, or both losses are, or one is not finite.

    ``first_loss`` is that of the first step, ``start_loss`` the mean of the first ones. A held-out loss that has got
    worse beside a training loss that has not is overfitting.
    """
    if held_out_loss is not None and not math.isfinite(held_out_loss):
        return True
    if first_loss is None or start_loss is None:
        return False
    if not math.isfinite(smoothed_loss):
        return True
    # the mean is steadier, but a run may diverge within the steps that it is of
    start = min(start_loss, _WORSE_FACTOR * first_loss)
    if smoothed_loss > _WORSE_FACTOR * start + _WORSE_LOSS:
        return True
    if held_out_before is None or held_out_loss is None:
        return False
    return all(
        after > max(_BOTH_WORSE_FACTOR * before, before + _BOTH_WORSE_LOSS)
        for before, after in ((start, smoothed_loss), (held_out_before, held_out_loss))
    )


def has_diverged(result: Result) -> bool:
    """Tell whether a run has ended in divergence."""
    return is_divergence(
        first_loss=result.first_loss,
        start_loss=result.start_loss,
        smoothed_loss=result.smoothed_loss,
        held_out_before=result.held_out_before,
        held_out_loss=result.held_out_loss,
    )


def verdicts(result: Result) -> list[str]:
    """Return the lines that a user should see last: what went wrong and what to do, nothing for a good run."""
    if has_diverged(result):
        loss = f"the training loss is {result.smoothed_loss:.4g}, {result.first_loss or math.nan:.4g} at the start"
        if result.held_out_loss is not None and not math.isfinite(result.held_out_loss):
            loss = "the held-out loss is not finite"
        return [
            f"The run has diverged: {loss}. What it has learned is of no use: start anew with a smaller --lr than "
            f"{result.config.lr:g} or a longer --warmup."
        ]
    found = (_worse(result) or _overfitted(result), _missed(result), _too_little(result))
    return [text for text in found if text]


def turn_text(monitor: Monitor) -> str:
    """Say while a run goes on that it has begun to overfit, and what to do."""
    return (
        f"warning: the held-out loss turns up ({monitor.lowest_held_out:.4f} after step {monitor.lowest_step}, "
        f"{monitor.held_out:.4f} now) while the training loss falls ({monitor.lowest_smoothed:.4f} then, "
        f"{monitor.smoothed:.4f} now): the run learns its rows by heart. The step before the turn is kept and handed "
        "on; more steps hardly help: stop now, give --early-stop 2 next time, or fewer --epochs, a smaller --lr or "
        "--rank, more rows."
    )


def _worse(result: Result) -> str:
    before, after, best = result.held_out_before, result.held_out_loss, result.best_held_out
    if before is None or after is None or after <= before:
        return ""
    text = f"The held-out loss got worse than its start: {before:.4f} before the training, {after:.4f} after it"
    if best is not None and best < before:
        text += f"; step {result.best_step} had the best, {best:.4f}."
        if result.is_under:
            return f"{text} Learning by heart costs that; for questions of another kind take that step by --which best."
        return f"{text} Give fewer --epochs, a smaller --lr or more rows, or take that step by --which best."
    return (
        f"{text}, and no step was better: on questions that it was not trained on the base alone does better. Give "
        "more rows or a smaller --lr; where the trained rows alone count, --holdout 0."
    )


def _overfitted(result: Result) -> str:
    """Learning by heart that nobody asked for, at the end of a run that has gone on past its best step."""
    if not result.turned_up or result.is_under or result.exhausted or result.best_held_out is None:
        return ""
    return (
        f"The run has overfitted: its held-out loss was {result.best_held_out:.4f} after step {result.best_step} and "
        f"is {result.held_out_loss:.4f} now, while the training loss went on falling. Step {result.best_step} is what "
        "is handed on; the steps after it were of no use. --early-stop 2 ends such a run by itself; fewer --epochs, a "
        "smaller --lr or --rank, or more rows are other ways."
    )


def _missed(result: Result) -> str:
    config = result.config
    if not config.stop_loss or result.is_under:
        return ""
    text = f"--stop-loss {config.stop_loss:g} was missed: the training loss is {result.smoothed_loss:.4f}"
    if result.is_flat:
        return (
            f"{text} and no longer falls. Look for questions that are there with different answers; else give a higher "
            "--rank, or another --lr with --epochs."
        )
    more = _length(result, 2 * result.steps)
    return f"{text} after {result.steps} steps. Go on by `ggtune resume` with {more}, or start anew with a higher --lr."


def _too_little(result: Result) -> str:
    config = result.config
    start, now = result.start_loss, result.smoothed_loss
    if start is None or result.is_under or result.exhausted:
        return ""
    fallen = 1 - now / start if start > 0 else 0.0
    how = f"the training loss went from {start:.4f} to {now:.4f}"
    if result.n_updates < _FEW_STEPS and fallen < _MUCH_SHARE:
        return (
            f"Only {result.n_updates} steps were taken, too few to learn much ({how}): give "
            f"{_length(result, _ENOUGH_STEPS)}, a smaller --batch than {config.batch}, or a higher --lr than "
            f"{config.lr:g}."
        )
    if fallen < _LITTLE_SHARE:
        return f"Hardly anything was learned: {how}. Give more --epochs or a higher --lr than {config.lr:g}."
    return ""


def _length(result: Result, steps: int) -> str:
    """Return the option that makes a run so many steps long."""
    if result.config.max_steps and result.steps >= result.config.max_steps:
        return f"--max-steps {steps}"
    return f"--epochs {math.ceil(steps / result.steps_per_epoch)}"
