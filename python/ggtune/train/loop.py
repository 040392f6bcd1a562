"""The training loop: steps, held-out evaluation, metrics, checkpoints, stopping, and going back after divergence."""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ggtune.errors import DivergedError, GgtuneError, NotFiniteError
from ggtune.gguf.adapter_file import adapter_content, write_adapter
from ggtune.run.checkpoint import Checkpoint, State, load_checkpoint, restore, set_aside_later
from ggtune.run.interrupts import Interrupts, RunInterruptedError
from ggtune.run.job import Job
from ggtune.run.metrics import MetricsFile
from ggtune.run.outputs import Outputs, numbered
from ggtune.run.progress import Reporter
from ggtune.run.saver import Saver
from ggtune.run.watchdog import MAX_DROPPED_IN_A_ROW, MemoryWatch, spike_text
from ggtune.setting_texts import SaveInterval
from ggtune.train.build import Build
from ggtune.train.monitor import Monitor
from ggtune.train.result import Result
from ggtune.train.schedule import Schedule
from ggtune.train.verdict import has_diverged, verdicts

_ETA_STEPS = 50  # the last steps, whose mean time tells when the run ends


class Loop:
    """One session of a run: from ``state`` to the end, an interruption or a failure.

    A step is whole or it has not happened: signals wait outside of the engine's long calls (:class:`Interrupts`).
    """

    def __init__(
        self,
        built: Build,
        outputs: Outputs,
        progress: Reporter,
        state: State,
        job: Job,
    ) -> None:
        config, plan = built.config, built.plan
        self._config = config
        self._engine = built.engine
        self._plan = plan
        self._outputs = outputs
        self._progress = progress
        self._state = state
        self._job = job
        self._monitor = Monitor(**state.monitor)
        self._total = plan.total_steps
        self._shown_total = plan.known_steps
        self._schedule = Schedule.for_run(
            config.schedule,
            config.lr,
            warmup=config.warmup,
            decay_steps=config.decay_steps,
            min_ratio=config.min_lr_ratio,
            total_steps=self._total,
        )
        self._interrupts = Interrupts()
        self._saver = Saver(outputs, config.keep)
        self._save_interval = SaveInterval.parse(config.save_every)
        self._memory = MemoryWatch()
        self._started = time.monotonic()
        self._saved_at = self._started
        self._step_times_s: deque[float] = deque(maxlen=_ETA_STEPS)
        self._elapsed_before_s = state.elapsed_s
        self._n_tokens = 0
        self._last_loss: float | None = None
        self._saved_step = state.step if state.step else None
        self._start_step = state.step
        # to go back to, until a good checkpoint is there
        self._initial = built.initial if not state.step or state.n_dropped_in_a_row else None

    def run(self) -> Result:
        """Train.

        Raises :class:`RunInterruptedError` for a signal, when what there is has been saved, and :class:`GgtuneError`
        where the folder is another job's, the run has diverged, or its end can't be written.
        """
        with ExitStack() as stack:
            stack.enter_context(self._interrupts)
            stack.enter_context(self._job)
            for path in set_aside_later(self._outputs.checkpoint, self._state.step):
                self._progress.note(f"set aside: {path}")
            after = self._state.step - (1 if self._state.pending else 0)
            metrics = stack.enter_context(MetricsFile(self._outputs.metrics, after_step=after))
            stack.enter_context(self._saver)
            stack.enter_context(self._progress)
            try:
                reason = self._steps(metrics)
            except KeyboardInterrupt:
                raise self._interrupted(metrics) from None
            self._save_last(metrics)
            result = self._result(reason)
            if has_diverged(result):
                self._job.failed(verdicts(result)[0], self._state.step)
            else:
                self._job.finished(reason, self._state.step)
        return result

    def _result(self, reason: str) -> Result:
        return Result(
            config=self._config,
            steps=self._state.step,
            stop_reason=reason,
            loss=self._last_loss,
            smoothed_loss=self._monitor.smoothed,
            held_out_loss=self._monitor.held_out,
            held_out_before=self._monitor.held_out_before,
            best_held_out=self._monitor.best_held_out,
            best_step=self._monitor.best_step,
            first_loss=self._monitor.first_loss,
            start_loss=self._monitor.start_loss,
            n_updates=self._state.n_updates,
            steps_per_epoch=self._plan.steps_per_epoch,
            is_under=self._monitor.is_under(self._config.stop_loss, self._config.stop_patience),
            is_flat=self._monitor.is_flat(self._config.stop_plateau),
            n_tokens=self._n_tokens,
            seconds=self._session_s(),
            adapter=Outputs.at_step(self._outputs.adapter, self._state.step),
        )

    def _steps(self, metrics: MetricsFile) -> str:
        if self._state.pending:
            self._saved_step = None  # the checkpoint that is there lacks the held-out loss
            self._finish(metrics, dict(self._state.pending))
        elif self._monitor.held_out_before is None and self._plan.held_out and not self._state.step:
            before = self._evaluate()
            self._monitor.held_out_before = self._monitor.held_out = before
            self._progress.note(f"held-out loss before training: {before:.4f}")
        self._progress.start(step=self._state.step, total_steps=self._shown_total)
        while True:
            if self._state.n_dropped_in_a_row >= MAX_DROPPED_IN_A_ROW:
                self._go_back(metrics)
            if reason := self._stop_reason():
                return reason
            if self._total is not None and self._state.step >= self._total:
                done = f"all {self._total} steps are done"
                return done if self._shown_total else f"{self._total} steps are the most that are taken for --stop-loss"
            record = self._step()
            at_epoch_end = self._state.cursor == self._plan.steps_per_epoch
            if self._plan.held_out and (at_epoch_end or self._state.step == self._total or self._stop_reason()):
                self._state = dataclasses.replace(self._state, pending=record)
            self._finish(metrics, record)

    def _stop_reason(self) -> str | None:
        config = self._config
        return self._monitor.stop_reason(config.stop_loss, config.stop_patience, config.stop_plateau)

    def _step(self) -> dict[str, Any]:
        """Take one optimizer step, or drop it, and return its metrics."""
        epoch, cursor = self._state.epoch, self._state.cursor
        if cursor == self._plan.steps_per_epoch:
            epoch, cursor = epoch + 1, 0
        started = time.monotonic()
        loss_sum = weight_sum = 0.0
        n_tokens = 0
        batches = self._plan.micro_batches(epoch, cursor)
        for batch in batches:
            with self._interrupts.allowed():
                result = self._engine.accumulate(*batch.arrays)
            loss_sum += result.loss_sum
            weight_sum += result.weight_sum
            n_tokens += result.n_tokens
        loss = loss_sum / weight_sum if weight_sum else math.nan
        lr = self._schedule.rate(self._state.step) * self._state.lr_scale
        norm = self._update(loss, lr)
        dropped = norm is None
        lr_scale = self._state.lr_scale
        if cursor + 1 == self._plan.steps_per_epoch and self._monitor.end_epoch(self._config.stop_plateau):
            lr_scale /= 2
            self._progress.note(f"the loss no longer falls at a rate of {lr:.2g}: halved")
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
            lr_scale=lr_scale,
            n_dropped=self._state.n_dropped + dropped,
            n_dropped_in_a_row=self._state.n_dropped_in_a_row + 1 if dropped else 0,
        )
        smoothed = self._monitor.smoothed
        return {
            "step": self._state.step,
            "epoch": epoch + (cursor + 1) / self._plan.steps_per_epoch,
            "loss": None if dropped else loss,
            "smoothed_loss": smoothed if math.isfinite(smoothed) else None,
            "lr": lr,
            "grad_norm": norm,
            "n_tokens": n_tokens,
            "n_target_weight": weight_sum,
            "n_micro_batches": len(batches),
            "tokens_per_second": n_tokens / seconds if seconds > 0 else 0.0,
            "elapsed_s": self._state.elapsed_s,
            **({"dropped": "gradient not finite" if math.isfinite(loss) else "loss not finite"} if dropped else {}),
        }

    def _update(self, loss: float, lr: float) -> float | None:
        """Take the optimizer step and return the gradient's norm; None where loss or gradient is not finite."""
        config = self._config
        if not math.isfinite(loss):
            self._engine.zero_gradients()
            return None
        try:
            norm = self._engine.step(
                lr,
                beta1=config.beta1,
                beta2=config.beta2,
                epsilon=config.epsilon,
                weight_decay=config.weight_decay,
                clip=config.clip,
                lora_plus_ratio=config.lora_plus_ratio,
            )
        except NotFiniteError:
            self._engine.zero_gradients()
            return None
        spike = spike_text(
            self._state.step + 1, loss, self._monitor.smoothed, self._monitor.n_steps, self._config.spike
        )
        if spike:
            self._progress.note(spike)
        self._monitor.update(loss, config.stop_loss)
        self._last_loss = loss
        return norm

    def _finish(self, metrics: MetricsFile, record: dict[str, Any]) -> None:
        """Measure the held-out loss where it is due, then write, show and save the step."""
        is_best = False
        if self._state.pending:
            held_out = self._evaluate()
            is_best = self._monitor.measure(held_out, self._state.step)
            record["held_out_loss"] = held_out if math.isfinite(held_out) else None
            self._state = dataclasses.replace(self._state, pending=None)
        if problem := metrics.write(record):
            self._progress.note(problem)
        self._show(record)
        for text in (*self._saver.messages(), self._memory.growth()):
            if text:
                self._progress.note(text)
        healthy = self._state.n_dropped_in_a_row == 0
        if healthy and self._state.step > self._state.failed_step:
            self._state = dataclasses.replace(self._state, failed_step=0)
        if healthy and (is_best or self._save_is_due()):
            self._saver.submit(self._snapshot())
            self._saved_step, self._saved_at, self._initial = self._state.step, time.monotonic(), None

    def _save_is_due(self) -> bool:
        every = self._save_interval
        if every.steps is not None:
            return self._state.step % every.steps == 0
        return every.seconds is not None and time.monotonic() - self._saved_at >= every.seconds

    def _show(self, record: Mapping[str, Any]) -> None:
        eta = None
        if self._shown_total is not None and self._step_times_s:
            mean_s = sum(self._step_times_s) / len(self._step_times_s)
            eta = mean_s * (self._shown_total - self._state.step)
        self._progress.step(record, held_out=self._monitor.held_out, total_steps=self._shown_total, eta_s=eta)

    def _evaluate(self) -> float:
        loss_sum = weight_sum = 0.0
        for batch in self._plan.held_out:
            with self._interrupts.allowed():
                result = self._engine.evaluate(*batch.arrays)
            loss_sum += result.loss_sum
            weight_sum += result.weight_sum
        return loss_sum / weight_sum if weight_sum else math.nan

    def _session_s(self) -> float:
        return time.monotonic() - self._started

    def _go_back(self, metrics: MetricsFile) -> None:
        """After too many dropped steps: the last checkpoint before them, at half the rate; once, then the run ends."""
        failed = self._state.step
        why = f"{MAX_DROPPED_IN_A_ROW} steps in a row up to step {failed} had a loss or gradient that is not finite"
        if self._state.failed_step:
            raise DivergedError(
                f"{why}, again after going back at half the learning rate: the run has diverged. Start anew with a "
                f"smaller --lr than {self._config.lr:g} or a longer --warmup, and look at the data of these steps."
            )
        self._saver.flush()
        checkpoint = self._last_healthy()
        restore(self._engine, checkpoint)
        self._state = dataclasses.replace(
            checkpoint.state, lr_scale=checkpoint.state.lr_scale / 2, failed_step=failed, pending=None
        )
        self._monitor = Monitor(**checkpoint.state.monitor)
        set_aside_later(self._outputs.checkpoint, self._state.step)
        metrics.rewind(self._state.step)
        self._saved_step = None
        self._progress.note(f"warning: {why}: back to step {self._state.step}, at half the learning rate")

    def _last_healthy(self) -> Checkpoint:
        """Return the newest checkpoint that was not written between dropped steps, else the start of the run."""
        for step, path in sorted(numbered(self._outputs.checkpoint).items(), reverse=True):
            if step > self._state.step:
                continue
            try:
                checkpoint = load_checkpoint(path)
            except GgtuneError as error:
                self._progress.note(f"passed over: {error}")
                continue
            if not checkpoint.state.n_dropped_in_a_row:
                return checkpoint
        if self._initial is None:
            raise DivergedError("the run has diverged, and no whole checkpoint is there to go back to")
        start = dataclasses.replace(
            self._state,
            step=0,
            n_micro_batches=0,
            epoch=0,
            cursor=0,
            n_dropped=0,
            n_dropped_in_a_row=0,
            monitor={"held_out": self._monitor.held_out_before, "held_out_before": self._monitor.held_out_before},
        )
        initial = self._initial()
        zeros = {name: (np.zeros_like(v), np.zeros_like(v)) for name, v in initial.tensors.items()}
        return Checkpoint(initial, zeros, start, self._config)

    def _snapshot(self) -> Checkpoint:
        """Copy all that a checkpoint holds, of the last whole step."""
        state = dataclasses.replace(self._state, monitor=self._monitor.state())
        return Checkpoint(
            adapter_content(self._engine.adapter, state.adapter_notes), self._engine.moments(), state, self._config
        )

    def _interrupted(self, metrics: MetricsFile) -> RunInterruptedError:
        """Save the last whole step after a signal."""
        self._engine.zero_gradients()
        self._engine.n_micro_batches = self._state.n_micro_batches
        assert self._interrupts.received is not None
        saved, problem = None, None
        if self._state.step:
            saved = Outputs.at_step(self._outputs.checkpoint, self._state.step)
            try:
                self._save_checkpoint(saved)
            except GgtuneError as error:
                problem = str(error)
                steps = numbered(self._outputs.checkpoint)
                saved = steps[max(steps)] if steps else None
        metrics.flush()
        interruption = RunInterruptedError(self._interrupts.received, self._state.step, saved, problem)
        self._job.interrupted(str(interruption), self._state.step)
        return interruption

    def _save_checkpoint(self, path: Path) -> None:
        """See to it that the checkpoint of the last whole step is on the disk. Raises :class:`GgtuneError`."""
        self._saver.flush()
        written = self._start_step if self._saver.written_step is None else self._saver.written_step
        if not (self._saved_step == written == self._state.step and path.exists()):
            self._saver.write_now(self._snapshot())

    def _save_last(self, metrics: MetricsFile) -> None:
        step, outputs = self._state.step, self._outputs
        try:
            self._save_checkpoint(Outputs.at_step(outputs.checkpoint, step))
            if self._saver.written_step != step:  # nothing was left to do
                write_adapter(
                    Outputs.at_step(outputs.adapter, step),
                    adapter_content(self._engine.adapter, self._state.adapter_notes),
                )
                outputs.update_latest(outputs.adapter, step)
        except GgtuneError as error:
            raise GgtuneError(
                f"{error}. The run has come to its end at step {step}, but that could not be saved: make room and "
                "start it again with --resume."
            ) from error
        if problem := metrics.flush():
            self._progress.note(problem)
