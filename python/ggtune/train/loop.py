"""The training loop: steps, held-out evaluation, metrics, checkpoints, stopping."""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.system import format_bytes, peak_memory
from ggtune.train.adapter_file import adapter_content, write_adapter
from ggtune.train.checkpoint import Checkpoint, State, remove_old_checkpoints, save_checkpoint
from ggtune.train.interrupts import Interrupts, RunInterruptedError
from ggtune.train.metrics import MetricsFile
from ggtune.train.monitor import Monitor
from ggtune.train.outputs import Outputs
from ggtune.train.plan import Plan
from ggtune.train.progress import Progress, format_duration
from ggtune.train.schedule import Schedule

if TYPE_CHECKING:
    from ggtune._core import Trainer

_ETA_STEPS = 50  # the last steps, whose mean time tells when the run ends


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    steps: int
    stop_reason: str
    loss: float | None  # of the last step, per weighted token; None where no step was taken
    smoothed_loss: float
    held_out_loss: float | None
    held_out_before: float | None
    n_tokens: int  # computed in this session, held-out ones left out
    seconds: float  # of this session
    adapter: Path


class Loop:
    """One session of a run: from ``state`` to the end, an interruption or a failure.

    A step is whole or it has not happened: signals wait outside of the engine's long calls (:class:`Interrupts`).
    """

    def __init__(
        self, config: TrainConfig, engine: "Trainer", plan: Plan, outputs: Outputs, progress: Progress, state: State
    ) -> None:
        self._config = config
        self._engine = engine
        self._plan = plan
        self._outputs = outputs
        self._progress = progress
        self._state = state
        self._monitor = Monitor(**state.monitor)
        self._total = plan.total_steps
        self._schedule = Schedule.for_run(
            config.schedule,
            config.lr,
            warmup=config.warmup,
            decay_steps=config.decay_steps,
            min_ratio=config.min_lr_ratio,
            total_steps=self._total,
        )
        self._interrupts = Interrupts()
        self._started = time.monotonic()
        self._step_times_s: deque[float] = deque(maxlen=_ETA_STEPS)
        self._elapsed_before_s = state.elapsed_s
        self._n_tokens = 0
        self._last_loss: float | None = None
        self._saved_step = state.step if state.step else None

    def run(self) -> Result:
        """Train. Raises :class:`RunInterruptedError` for a signal, when what there is has been saved."""
        with ExitStack() as stack:
            stack.enter_context(self._interrupts)
            after = self._state.step - (1 if self._state.pending else 0)
            metrics = stack.enter_context(MetricsFile(self._outputs.metrics, after_step=after))
            stack.enter_context(self._progress)
            try:
                reason = self._steps(metrics)
            except KeyboardInterrupt:
                self._engine.zero_gradients()
                self._engine.n_micro_batches = self._state.n_micro_batches
                saved = self._save() if self._state.step else None
                assert self._interrupts.received is not None
                raise RunInterruptedError(self._interrupts.received, self._state.step, saved) from None
            self._save()
            self._save_adapter()  # of a run that had nothing left to do, too
        return Result(
            steps=self._state.step,
            stop_reason=reason,
            loss=self._last_loss,
            smoothed_loss=self._monitor.smoothed,
            held_out_loss=self._monitor.held_out,
            held_out_before=self._monitor.held_out_before,
            n_tokens=self._n_tokens,
            seconds=self._session_s(),
            adapter=Outputs.at_step(self._outputs.adapter, self._state.step),
        )

    def _steps(self, metrics: MetricsFile) -> str:
        if self._state.pending:
            self._finish(metrics, dict(self._state.pending))
            self._saved_step = None  # the checkpoint that is there lacks the held-out loss
        elif self._monitor.held_out_before is None and self._plan.held_out and not self._state.step:
            before = self._evaluate()
            self._monitor.held_out_before = self._monitor.held_out = before
            self._progress.note(f"held-out loss before training: {before:.4f}")
        self._progress.start(step=self._state.step, total_steps=self._total)
        while True:
            reason = self._monitor.stop_reason(self._config.stop_loss, self._config.stop_patience)
            if reason:
                return reason
            if self._total is not None and self._state.step >= self._total:
                return f"all {self._total} steps are done"
            record = self._step()
            at_epoch_end = self._state.cursor == self._plan.steps_per_epoch
            if self._plan.held_out and (at_epoch_end or self._state.step == self._total):
                self._state = dataclasses.replace(self._state, pending=record)
            self._finish(metrics, record)
            if self._config.save_every and self._state.step % self._config.save_every == 0:
                self._save()

    def _step(self) -> dict[str, Any]:
        """Take one optimizer step and return its metrics."""
        epoch, cursor = self._state.epoch, self._state.cursor
        if cursor == self._plan.steps_per_epoch:
            epoch, cursor = epoch + 1, 0
        started = time.monotonic()
        loss_sum = weight_sum = 0.0
        n_tokens = 0
        batches = self._plan.micro_batches(epoch, cursor)
        for batch in batches:
            with self._interrupts.allowed():
                result = self._engine.accumulate(
                    batch.tokens, batch.positions, batch.sequences, batch.targets, batch.weights
                )
            loss_sum += result.loss_sum
            weight_sum += result.weight_sum
            n_tokens += result.n_tokens
        loss = loss_sum / weight_sum if weight_sum else math.nan
        if not math.isfinite(loss):
            raise GgtuneError(
                f"the loss of step {self._state.step + 1} is {loss}: the run has diverged. Start again from an older "
                "checkpoint or from the beginning, with a smaller --lr or a longer --warmup."
            )
        config = self._config
        lr = self._schedule.rate(self._state.step)
        norm = self._engine.step(
            lr,
            beta1=config.beta1,
            beta2=config.beta2,
            epsilon=config.epsilon,
            weight_decay=config.weight_decay,
            clip=config.clip,
        )
        self._monitor.update(loss, config.stop_loss)
        self._last_loss = loss
        self._n_tokens += n_tokens
        seconds = time.monotonic() - started
        self._step_times_s.append(seconds)
        self._state = dataclasses.replace(
            self._state,
            step=self._state.step + 1,
            n_micro_batches=self._engine.n_micro_batches,
            epoch=epoch,
            cursor=cursor + 1,
            elapsed_s=self._elapsed_before_s + self._session_s(),
            pending=None,
        )
        return {
            "step": self._state.step,
            "epoch": epoch + (cursor + 1) / self._plan.steps_per_epoch,
            "loss": loss,
            "smoothed_loss": self._monitor.smoothed,
            "lr": lr,
            "grad_norm": norm,
            "n_tokens": n_tokens,
            "n_target_weight": weight_sum,
            "n_micro_batches": len(batches),
            "tokens_per_second": n_tokens / seconds if seconds > 0 else 0.0,
            "elapsed_s": self._state.elapsed_s,
        }

    def _finish(self, metrics: MetricsFile, record: dict[str, Any]) -> None:
        """Measure the held-out loss where it is due, then write and show the step."""
        if self._state.pending:
            self._monitor.held_out = record["held_out_loss"] = self._evaluate()
            self._state = dataclasses.replace(self._state, pending=None)
        metrics.write(record)
        self._show(record)

    def _show(self, record: Mapping[str, Any]) -> None:
        eta = None
        if self._total is not None and self._step_times_s:
            mean_s = sum(self._step_times_s) / len(self._step_times_s)
            eta = mean_s * (self._total - self._state.step)
        self._progress.step(record, held_out=self._monitor.held_out, total_steps=self._total, eta_s=eta)

    def _evaluate(self) -> float:
        loss_sum = weight_sum = 0.0
        for batch in self._plan.held_out:
            with self._interrupts.allowed():
                result = self._engine.evaluate(
                    batch.tokens, batch.positions, batch.sequences, batch.targets, batch.weights
                )
            loss_sum += result.loss_sum
            weight_sum += result.weight_sum
        return loss_sum / weight_sum if weight_sum else math.nan

    def _session_s(self) -> float:
        return time.monotonic() - self._started

    def _save(self) -> Path:
        """Write checkpoint and adapter of the last whole step."""
        step, outputs = self._state.step, self._outputs
        path = Outputs.at_step(outputs.checkpoint, step)
        if self._saved_step != step or not path.exists():
            state = dataclasses.replace(self._state, monitor=self._monitor.state())
            content = adapter_content(self._engine.adapter, state.notes)
            save_checkpoint(path, Checkpoint(content, self._engine.moments(), state, self._config))
            outputs.update_latest(outputs.checkpoint, step)
            self._save_adapter()
            remove_old_checkpoints(outputs.checkpoint, self._config.keep)
            self._saved_step = step
        return path

    def _save_adapter(self) -> None:
        step, outputs = self._state.step, self._outputs
        content = adapter_content(self._engine.adapter, self._state.notes)
        write_adapter(Outputs.at_step(outputs.adapter, step), content)
        outputs.update_latest(outputs.adapter, step)


def describe(result: Result) -> list[str]:
    """Say how a run ended, for the user."""
    lines = [f"Stopped after step {result.steps}: {result.stop_reason}."]
    if result.loss is not None:
        lines.append(f"Training loss {result.loss:.4f}, smoothed {result.smoothed_loss:.4f}.")
    if result.held_out_loss is not None and result.held_out_before is not None:
        lines.append(f"Held-out loss {result.held_out_before:.4f} before, {result.held_out_loss:.4f} after.")
    if result.seconds > 0:
        lines.append(
            f"{result.n_tokens} tokens in {format_duration(result.seconds)}, "
            f"{result.n_tokens / result.seconds:.0f} tokens/s; peak memory {format_bytes(peak_memory())}."
        )
    return lines
