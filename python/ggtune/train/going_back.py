"""Where a run goes back to after steps whose loss was not finite."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ggtune.config import TrainConfig
from ggtune.errors import DivergedError, GgtuneError
from ggtune.gguf.adapter_file import AdapterFile
from ggtune.run.checkpoint import Checkpoint, State, load_checkpoint
from ggtune.run.outputs import Outputs, numbered
from ggtune.run.progress import Reporter
from ggtune.train.monitor import Monitor


def last_healthy(outputs: Outputs, state: State, progress: Reporter) -> Checkpoint | None:
    """Return the newest checkpoint up to ``state`` that was not written between dropped steps."""
    for step, path in sorted(numbered(outputs.checkpoint).items(), reverse=True):
        if step > state.step:
            continue
        try:
            checkpoint = load_checkpoint(path)
        except GgtuneError as error:
            progress.note(f"passed over: {error}")
            continue
        if not checkpoint.state.n_dropped_in_a_row:
            return checkpoint
    return None


def start_of(
    state: State, monitor: Monitor, initial: Callable[[], AdapterFile] | None, config: TrainConfig
) -> Checkpoint:
    """Make the start of the run anew. Raises :class:`DivergedError` where ``initial`` can't be made any more."""
    if initial is None:
        raise DivergedError("the run has diverged, and no whole checkpoint is there to go back to")
    start = dataclasses.replace(
        state,
        step=0,
        n_micro_batches=0,
        epoch=0,
        cursor=0,
        n_dropped=0,
        n_dropped_in_a_row=0,
        monitor={"held_out": monitor.held_out_before, "held_out_before": monitor.held_out_before},
    )
    adapter = initial()
    zeros = {name: (np.zeros_like(v), np.zeros_like(v)) for name, v in adapter.tensors.items()}
    return Checkpoint(adapter, zeros, start, config)
