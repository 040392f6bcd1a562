"""Which step of a run its adapter is taken from: the best or the last."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import read_adapter, write_adapter
from ggtune.run.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint
from ggtune.run.outputs import Outputs
from ggtune.train.monitor import Monitor

Which = Literal["auto", "best", "last"]


@dataclass(frozen=True)
class Chosen:
    """An adapter file of a run."""

    path: Path
    step: int
    held_out_loss: float | None  # None where it was not measured after this step
    reason: str  # for the user, without a full stop


def chosen_adapter(folder: str | Path, which: Which = "auto") -> Chosen:
    """Return the adapter of a run folder.

    ``"best"`` is the step with the best held-out loss (or the best score, with ``--early-stop-metric``); its checkpoint
    is kept, and ``adapter-best.gguf`` is written
    from it beside ``adapter.gguf``. Where nothing was held out or measured, or that checkpoint is gone, it is the last
    step. ``"auto"`` is the best, but the last where the training loss has stayed under ``--stop-loss``: who names the
    loss to train to wants the step that has it. Raises :class:`GgtuneError` where the folder holds no run.
    """
    outputs = Outputs.folder(Path(folder))
    found = newest_checkpoint(outputs.checkpoint)
    if found is None:
        raise GgtuneError(f"{folder} holds no run: it has no checkpoint")
    last, monitor = found[1], Monitor(**found[1].state.monitor)
    if which == "last":
        return _last(outputs, last, monitor, "")
    step, loss = monitor.best_step, monitor.best_held_out
    if step is None or loss is None:
        return _last(outputs, last, monitor, "no held-out loss was measured")
    config = last.config
    if which == "auto" and monitor.is_under(config.stop_loss, config.stop_patience):
        beside = "" if step == last.state.step else f"; step {step} had {_best(last, monitor)}"
        return _last(outputs, last, monitor, f"the training loss stayed under {config.stop_loss:g}{beside}")
    if step == last.state.step:
        return _last(outputs, last, monitor, _title(last) + _against_base(monitor))
    try:
        best = load_checkpoint(outputs.at_step(outputs.checkpoint, step))
    except GgtuneError as error:
        return _last(outputs, last, monitor, f"the checkpoint of the best, step {step}, can't be used: {error}")
    write_adapter(outputs.best_adapter, best.adapter)
    reason = f"step {step}, {_best(last, monitor, _compared(last, monitor))}{_against_base(monitor)}"
    return Chosen(outputs.best_adapter, step, loss, reason)


def adapter_of_run(folder: str | Path, which: Which = "auto") -> tuple[Path, str]:
    """Return path and reason of :func:`chosen_adapter`; without checkpoints the file that is there, and no reason.

    That file may be missing, too. Raises :class:`GgtuneError` for an adapter that can't be read.
    """
    outputs = Outputs.folder(Path(folder))
    if newest_checkpoint(outputs.checkpoint) is not None:
        chosen = chosen_adapter(folder, which)
        return chosen.path, chosen.reason
    return (outputs.best_adapter if which != "last" and outputs.best_adapter.exists() else outputs.adapter), ""


def _last(outputs: Outputs, last: Checkpoint, monitor: Monitor, why: str) -> Chosen:
    if not outputs.adapter.exists():
        write_adapter(outputs.adapter, last.adapter)
    # a run that goes on, or was killed between the two writes, has a checkpoint of another step
    noted = read_adapter(outputs.adapter).notes.get("step", "")
    step = int(noted) if noted.isdecimal() else last.state.step
    loss = monitor.held_out if monitor.held_out_step == step else None
    reason = f"step {step}, the last" + (f" (held-out loss {loss:.4f})" if loss is not None else "")
    return Chosen(outputs.adapter, step, loss, reason + (f": {why}" if why else ""))


def _title(last: Checkpoint) -> str:
    return f"the best held-out {last.config.early_stop_metric.replace('_', ' ')}"


def _best(last: Checkpoint, monitor: Monitor, more: str = "") -> str:
    """What was best, and how good it was."""
    loss = f"{monitor.best_held_out:.4f}{more}"
    return f"{_title(last)} ({loss if monitor.best_score is None else f'{monitor.best_score:.4f}; loss {loss}'})"


def _compared(last: Checkpoint, monitor: Monitor) -> str:
    if monitor.held_out is None or monitor.held_out_step is None:
        return ""
    name = "the last" if monitor.held_out_step == last.state.step else "later"
    return f"; {name}, step {monitor.held_out_step}, has {monitor.held_out:.4f}"


def _against_base(monitor: Monitor) -> str:
    before, best = monitor.held_out_before, monitor.best_held_out
    if before is None or best is None or best <= before:
        return ""
    return f", but got worse than its start: the base alone had {before:.4f}"
