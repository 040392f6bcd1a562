"""The training loop: steps, held-out evaluation, metrics, checkpoints, stopping, and going back after divergence."""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from ggtune.errors import DeviceLostError, DivergedError, GgtuneError, NotFiniteError
from ggtune.run.checkpoint import State, restore, set_aside_later
from ggtune.run.interrupts import Interrupts, RunInterruptedError
from ggtune.run.job import Job
from ggtune.run.metrics import MetricsFile, read_metrics
from ggtune.run.observer import Observer, Observers
from ggtune.run.outputs import Outputs, numbered
from ggtune.run.progress import Reporter
from ggtune.run.status import FAILED, FINISHED, INTERRUPTED
from ggtune.run.watchdog import MAX_DROPPED_IN_A_ROW, MemoryWatch, resident_memory, spike_text
from ggtune.train.build import Build
from ggtune.train.going_back import last_healthy, start_of
from ggtune.train.keeping import Keeper
from ggtune.train.measuring import ANSWERS, HELD_OUT, Asked, Measuring
from ggtune.train.monitor import Monitor
from ggtune.train.outlook import outlook
from ggtune.train.result import Result
from ggtune.train.schedule import Schedule
from ggtune.train.verdict import has_diverged, turn_text, verdicts

_WITHOUT_DEVICE = " (with --device none on the CPU alone)"
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
        *,
        asked: Asked | None = None,
        observers: Sequence[Observer] = (),
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
        self._schedule = Schedule.of(config, self._total)
        self._interrupts = Interrupts()
        self._measuring = Measuring(built, asked or Asked(), self._interrupts.allowed)
        self._observers = Observers(observers)
        self._files: list[MetricsFile] = []  # that of the metrics, and where questions are asked that of their answers
        self._pause = ""  # why an observer wants the run left as it stands
        self._keeper = Keeper(outputs, config, built.engine, state.step)
        self._memory = MemoryWatch()
        self._started = time.monotonic()
        self._step_times_s: deque[float] = deque(maxlen=_ETA_STEPS)
        self._elapsed_before_s = state.elapsed_s
        self._n_tokens = 0
        self._last_loss: float | None = None
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
            self._files = [stack.enter_context(MetricsFile(self._outputs.metrics, after_step=after))]
            if self._measuring.has_questions:
                after = after if self._state.step else -1  # those before the training are asked anew
                self._files.append(stack.enter_context(MetricsFile(self._outputs.samples, after_step=after)))
            stack.enter_context(self._keeper)
            stack.callback(self._tell)  # of what the observers say at their end
            stack.enter_context(self._observers)
            stack.enter_context(self._progress)
            self._observers.begin(
                self._outputs.metrics.parent, self._config, started=self._state.started, step=self._state.step
            )
            try:
                reason = self._steps()
            except KeyboardInterrupt:
                raise self._interrupted() from None
            except DeviceLostError as error:
                raise self._lost(error) from error
            self._save_last()
            result = self._result(reason)
            self._end(result)
        return result

    def _end(self, result: Result) -> None:
        step, reason = self._state.step, result.stop_reason
        if result.paused:
            self._job.interrupted(reason, step)
            self._observers.end(INTERRUPTED, reason)
        elif has_diverged(result):
            self._job.failed(verdicts(result)[0], step)
            self._observers.end(FAILED, verdicts(result)[0])
        else:
            self._job.finished(reason, step)
            self._observers.end(FINISHED, reason)

    def _result(self, reason: str) -> Result:
        found = outlook(read_metrics(self._outputs.metrics))
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
            turned_up=self._monitor.has_turned_up,
            exhausted=self._monitor.is_exhausted(self._config.early_stop),
            paused=bool(self._pause),
            outlook=tuple(found.lines()) if found is not None else (),
        )

    def _steps(self) -> str:
        if self._state.pending:
            self._keeper.forget()  # the checkpoint that is there lacks the held-out loss
            self._finish(dict(self._state.pending))
        elif not self._state.step:
            self._before_training()
        self._progress.start(step=self._state.step, total_steps=self._shown_total)
        while True:
            if self._state.n_dropped_in_a_row >= MAX_DROPPED_IN_A_ROW:
                self._go_back()
            if reason := self._stop_reason():
                return reason
            if self._total is not None and self._state.step >= self._total:
                done = f"all {self._total} steps are done"
                return done if self._shown_total else f"{self._total} steps are the most that are taken for --stop-loss"
            if self._pause:
                return self._pause
            record = self._step()
            ended = self._state.step == self._total or bool(self._stop_reason())
            if due := self._measuring.due(self._state.step, self._monitor, self._elapsed_s(), ended=ended):
                self._state = dataclasses.replace(self._state, pending={**record, "due": due})
            self._finish(record)

    def _before_training(self) -> None:
        if self._plan.held_out and self._monitor.held_out_before is None:
            before = self._evaluate()
            self._monitor.held_out_before = self._monitor.held_out = before
            self._progress.note(f"held-out loss before training: {before:.4f}")
        if self._measuring.has_questions:
            self._write_answers(self._measuring.sample_lines(0, 0.0))

    def _stop_reason(self, monitor: Monitor | None = None) -> str | None:
        config = self._config
        return (monitor or self._monitor).stop_reason(
            config.stop_loss, config.stop_patience, config.stop_plateau, config.early_stop, config.early_stop_metric
        )

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
            elapsed_s=self._elapsed_s(),
            pending=None,
            lr_scale=lr_scale,
            n_dropped=self._state.n_dropped + dropped,
            n_dropped_in_a_row=self._state.n_dropped_in_a_row + 1 if dropped else 0,
        )
        smoothed, before = self._monitor.smoothed, self._monitor.held_out_before
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
            "memory_bytes": resident_memory(),
            **({"dropped": "gradient not finite" if math.isfinite(loss) else "loss not finite"} if dropped else {}),
            **({"held_out_before": before} if self._state.step == 1 and before is not None else {}),
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

    def _finish(self, record: dict[str, Any]) -> None:
        """Measure what is due, then write, show and save the step."""
        is_best, is_measured = False, False
        record.pop("due", None)
        if self._state.pending:
            is_best = self._measure(record, self._state.pending.get("due", [HELD_OUT]))
            is_measured = "held_out_loss" in record
        if problem := self._files[0].write(record):
            self._progress.note(problem)
        self._observers.step(record)
        self._show(record)
        if is_measured and (why := self._observers.pause(record)):
            self._pause = why
        self._tell()
        healthy = self._state.n_dropped_in_a_row == 0
        if healthy and self._state.step > self._state.failed_step:
            self._state = dataclasses.replace(self._state, failed_step=0)
        if healthy and (is_best or self._keeper.is_due(self._state.step)):
            self._keeper.submit(self._state, self._monitor)
            self._initial = None

    def _measure(self, record: dict[str, Any], due: Sequence[str]) -> bool:
        """Measure and ask; True where the step is the best so far.

        Nothing is noted before all of it is done: a signal in the middle leaves it to be done again.
        """
        step, is_best, lines = self._state.step, False, []
        monitor = dataclasses.replace(self._monitor)
        if HELD_OUT in due:
            started = time.monotonic()
            held_out, scores = self._evaluate(), self._measuring.scores()
            is_best = monitor.measure(held_out, step, scores.get(self._config.early_stop_metric))
            record["held_out_loss"] = held_out if math.isfinite(held_out) else None
            if scores:
                record["held_out_scores"] = scores
            record["eval_s"] = time.monotonic() - started
        if self._measuring.has_questions and (ANSWERS in due or self._stop_reason(monitor)):
            started = time.monotonic()
            lines = self._measuring.sample_lines(step, record["epoch"])
            record["sample_s"] = time.monotonic() - started
        self._measuring.note_times(monitor, due, self._elapsed_s())
        self._monitor = monitor
        self._state = dataclasses.replace(self._state, pending=None)
        if lines:
            self._write_answers(lines)
        if monitor.has_turned_up and not monitor.turn_told and not monitor.is_exhausted(self._config.early_stop):
            monitor.turn_told = True
            self._progress.note(turn_text(monitor))
        return is_best

    def _write_answers(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in lines:
            if problem := self._files[1].write(line):
                self._progress.note(problem)
        self._observers.answers(self._state.step, lines)
        self._progress.answers(lines)

    def _tell(self) -> None:
        for text in (*self._keeper.messages(), *self._observers.messages(), self._memory.growth()):
            if text:
                self._progress.note(text)

    def _show(self, record: Mapping[str, Any]) -> None:
        eta = None
        if self._shown_total is not None and self._step_times_s:
            mean_s = sum(self._step_times_s) / len(self._step_times_s)
            eta = mean_s * (self._shown_total - self._state.step)
        self._progress.step(record, held_out=self._monitor.held_out, total_steps=self._shown_total, eta_s=eta)

    def _evaluate(self) -> float:
        return self._measuring.held_out_loss()

    def _elapsed_s(self) -> float:
        return self._elapsed_before_s + self._session_s()

    def _session_s(self) -> float:
        return time.monotonic() - self._started

    def _go_back(self) -> None:
        """After too many dropped steps: the last checkpoint before them, at half the rate; once, then the run ends."""
        failed = self._state.step
        why = f"{MAX_DROPPED_IN_A_ROW} steps in a row up to step {failed} had a loss or gradient that is not finite"
        if self._state.failed_step:
            raise DivergedError(
                f"{why}, again after going back at half the learning rate: the run has diverged. Start anew with a "
                f"smaller --lr than {self._config.lr:g} or a longer --warmup, and look at the data of these steps."
            )
        self._keeper.flush()
        checkpoint = last_healthy(self._outputs, self._state, self._progress) or start_of(
            self._state, self._monitor, self._initial, self._config
        )
        restore(self._engine, checkpoint)
        layers = self._state.places[-1]["layers"] if self._state.places else {}  # those of this session
        self._state = dataclasses.replace(
            checkpoint.state, lr_scale=checkpoint.state.lr_scale / 2, failed_step=failed, pending=None
        ).with_places(layers)
        self._monitor = Monitor(**checkpoint.state.monitor)
        set_aside_later(self._outputs.checkpoint, self._state.step)
        for file in self._files:
            file.rewind(self._state.step)
        self._observers.rewind(self._state.step)
        self._keeper.forget()
        self._progress.note(f"warning: {why}: back to step {self._state.step}, at half the learning rate")

    def _interrupted(self) -> RunInterruptedError:
        """Save the last whole step after a signal."""
        self._engine.zero_gradients()
        self._engine.n_micro_batches = self._state.n_micro_batches
        assert self._interrupts.received is not None
        saved, problem = None, None
        if self._state.step:
            try:
                saved = self._keeper.save(self._state, self._monitor)
            except GgtuneError as error:
                problem = str(error)
                steps = numbered(self._outputs.checkpoint)
                saved = steps[max(steps)] if steps else None
        for file in self._files:
            file.flush()
        interruption = RunInterruptedError(self._interrupts.received, self._state.step, saved, problem)
        self._job.interrupted(str(interruption), self._state.step)
        self._observers.end(INTERRUPTED, str(interruption))
        return interruption

    def _lost(self, error: DeviceLostError) -> DeviceLostError:
        """Save the last whole step, whose parameters are in main memory, and say how to go on without the device."""
        saved = f"no step was whole, so that there is nothing to go on from: start it again{_WITHOUT_DEVICE}"
        if self._state.step:
            try:
                path = self._keeper.save(self._state, self._monitor)
                saved = f"step {self._state.step} is saved: {path}. Go on with {self._resume_text()}{_WITHOUT_DEVICE}"
            except GgtuneError as problem:
                saved = f"step {self._state.step} could not be saved: {problem}"
        for file in self._files:
            file.flush()
        lost = DeviceLostError(f"{error}; {saved}")
        self._job.failed(str(lost), self._state.step)
        self._observers.end(FAILED, str(lost))
        return lost

    def _resume_text(self) -> str:
        if self._outputs.status is None:  # files of the old finetune
            return "the same command with that file for --checkpoint-in"
        return f"`ggtune resume {self._outputs.status.parent}`"

    def _save_last(self) -> None:
        step = self._state.step
        try:
            self._keeper.save_last(self._state, self._monitor)
        except GgtuneError as error:
            raise GgtuneError(
                f"{error}. The run has come to its end at step {step}, but that could not be saved: make room and "
                "start it again with --resume."
            ) from error
        for file in self._files:
            if problem := file.flush():
                self._progress.note(problem)
