"""What a run needs of memory and disk, and whether there is that much."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.files import WriteError, free_bytes
from ggtune.run.checkpoint import checkpoint_bytes
from ggtune.run.outputs import Outputs
from ggtune.setting_texts import SaveInterval
from ggtune.system import format_bytes
from ggtune.train.plan import Plan
from ggtune.train.targets import smaller_targets

if TYPE_CHECKING:
    from ggtune._core import Adapter

_STEP_BYTES = 400  # of metrics


def check_memory(config: TrainConfig, parts: Mapping[str, int], n_tokens: int, free: int, *, experts: str = "") -> None:
    """Refuse a run that needs more than the ``free`` bytes; ``parts`` are for ``n_tokens`` at once.

    ``experts`` is what :func:`ggtune.train.targets.experts_share` says of the adapter.
    """
    needed = sum(parts.values())
    if not config.force and needed > free:
        recompute = ", or --recompute" if config.recompute == "none" else ""
        weights = parts.get("weights", 0)
        mapped = (
            " The weights are mapped from their file: what of them does not fit is read from the disk again for every "
            "micro-batch."
            if weights and needed - weights <= free
            else ""
        )
        raise GgtuneError(
            f"more memory is needed than there is: {format_bytes(needed)} for {n_tokens} tokens at once ("
            + ", ".join(f"{name} {format_bytes(n)}" for name, n in parts.items())
            + f"), {format_bytes(free)} are free. Give a smaller --ctx, --micro-batch-tokens or --rank{recompute}"
            f"{smaller_targets(experts)}; "
            f"--force starts all the same.{mapped}"
        )


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


def check_disk(config: TrainConfig, outputs: Outputs, n_bytes: int) -> None:
    """Refuse a run that writes ``n_bytes`` where the disk has less room, what it replaces counted in."""
    there = sum(path.stat().st_size for path in outputs.existing())
    needed = max(0, n_bytes - there)
    free = free_bytes(outputs.checkpoint.parent)
    if needed > free and not config.force:
        raise WriteError(
            f"{outputs.checkpoint.parent}: the disk has too little room for the run: {format_bytes(needed)} for "
            f"what it writes, {format_bytes(free)} are free. Make room, give a smaller --keep or "
            "--rank, or another --out; --force starts all the same."
        )
