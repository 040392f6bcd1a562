"""A merge that is held against its adapter, and mended where it has lost too much."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ggtune.data.samples import Sample
from ggtune.errors import GgtuneError
from ggtune.evaluate.proof import GOOD_SHARE, Proof, Prover
from ggtune.gguf.merge import AUTO, SAME, merge_adapters
from ggtune.gguf.scale_tuning import Tuning, tune_scales

_AUTO_SHARE = 0.97  # what --outtype auto raises tensors for
_RAISED_SHARES = (0.1, 0.25, 0.5, 1.0)  # of the adapted tensors, those with the most rounding error first
_SECONDS = 24.0  # of the proof
_MORE_SEEDS = 3  # of the rounding, tried where that takes little time
_SEEDS_SECONDS = 60.0
TUNE_SECONDS = 180.0
_FINE_TYPES = {"f32", "f16", "bf16", "q8_0"}  # there is little to tune for


@dataclass(frozen=True)
class ProvedMerge:
    """Counts of :func:`merge_adapters` for the file that was taken, and its proof."""

    counts: Mapping[str, Any]
    proof: Proof | None

    @property
    def good(self) -> bool:
        """False where the proof says that too much was lost."""
        return self.proof is None or self.proof.good

    def advice(self) -> list[str]:
        """Say what to do about a merge that is not good; nothing where it is."""
        if self.proof is None or self.proof.good:
            return []
        kept = self.proof.trained.kept
        assert kept is not None
        return [
            f"The merged file is NOT good: it keeps {100 * kept:.0f} % of what the adapter learned (under "
            f"{100 * GOOD_SHARE:.0f} %). Merge with --outtype auto or q8_0, or use the adapter beside the base "
            "(--no-merge, or `ggtune package --model BASE --lora ADAPTER`)."
        ]


@dataclass(frozen=True)
class _Candidate:
    counts: Mapping[str, Any]
    proof: Proof


def merge_and_prove(
    base: str,
    adapters: Sequence[tuple[str, float]],
    output: Path,
    *,
    trained: Sequence[Sample],
    held_out: Sequence[Sample] = (),
    outtype: str | None = None,
    seed: int = 0,
    fit: bool = True,
    tune_seconds: float = TUNE_SECONDS,
    name: str | None = None,
    threads: int = 0,
    force: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> ProvedMerge:
    """Merge, and measure what was kept.

    With the base's own types it is merged by several seeds from ``seed`` on, and what is nearest to the live adapter is
    taken. Scales are then tuned for at most about ``tune_seconds`` (:func:`tune_scales`; 0: not at all), and the
    result is taken where it is nearer. ``outtype`` ``"auto"`` then raises the types of single tensors until 97 % of the
    gain is kept. Where nothing can be measured the merged file is there without a proof, and ``say`` is told why.
    Raises as :func:`merge_adapters`; nothing is left of a file that was not taken.
    """
    warned: set[str] = set()

    def warn(text: str) -> None:
        if text not in warned:
            warned.add(text)
            say(text)

    def merged(path: Path, **options: Any) -> Mapping[str, Any]:
        options |= {"name": name or output.stem, "threads": threads, "force": force, "say": warn}
        return merge_adapters(base, adapters, path, fit=fit, trained=trained, **options)

    started = time.monotonic()
    keeps_types = outtype in (None, SAME, AUTO)
    counts = merged(output, seed=seed, outtype=None if keeps_types else outtype)
    try:
        prover = Prover(base, adapters, trained, held_out, threads=threads, seconds=_SECONDS)
        best = _Candidate(counts, prover.prove(str(output)))
    except GgtuneError as error:  # the file is there, perhaps after days of training
        say(f"What the merged file has kept could not be measured: {error}")
        return ProvedMerge(counts, None)
    tune = partial(_tune, base, adapters, prover, output, trained, tune_seconds, threads, say)
    if keeps_types and _on_grid(counts):
        for more in range(1, 1 + _MORE_SEEDS):
            if time.monotonic() - started > _SEEDS_SECONDS:
                break
            best = _better(best, prover, output, partial(merged, seed=seed + more), say)
        best = tuned = tune(best)
        if outtype == AUTO:
            for share in _RAISED_SHARES:
                if _holds(best.proof):
                    break
                types = _raised(best.counts, share)
                say(f"Raising the types of {len(types)} tensors: {_kept(best.proof)} was kept.")
                raised = partial(merged, seed=seed, types=types)
                best = _better(best, prover, output, raised, say)
            if best is not tuned:  # a raised one
                best = tune(best)
    else:
        best = tune(best)
    return ProvedMerge(best.counts, prover.with_answers(best.proof, str(output)))


def _better(
    best: _Candidate,
    prover: Prover,
    output: Path,
    merge: Callable[[Path], Mapping[str, Any] | None],
    say: Callable[[str], object],
) -> _Candidate:
    """Merge anew, if ``merge`` does; the file that is nearer to the live adapter gets the name."""
    other = output.with_name(f".{output.name}.other")
    with ExitStack() as stack:
        stack.callback(other.unlink, missing_ok=True)
        try:
            counts = merge(other)
            if counts is None:
                return best
            candidate = _Candidate(counts, prover.prove(str(other)))
        except (GgtuneError, MemoryError) as error:  # a full disk, say: there is a whole file already
            say(f"Another merge was tried and could not be made: {str(error) or 'not enough memory'}")
            return best
        if candidate.proof.kl >= best.proof.kl:
            return best
        other.replace(output)
    return candidate


def _tune(
    base: str,
    adapters: Sequence[tuple[str, float]],
    prover: Prover,
    output: Path,
    trained: Sequence[Sample],
    seconds: float,
    threads: int,
    say: Callable[[str], object],
    best: _Candidate,
) -> _Candidate:
    """Tune the scales of the file that was taken, where that is wanted and can be."""
    types = {tensor["to"] for tensor in best.counts["tensors"].values()}
    if seconds <= 0 or types <= _FINE_TYPES:
        return best
    (adapter, scale), *others = adapters
    if others or scale != 1.0:
        say("Scales are not tuned: that takes one adapter, as it is.")
        return best
    say(f"Tuning the scales of the merged file, for at most about {seconds:.0f} s ...")
    tunings: list[Tuning] = []

    def tuned(path: Path) -> Mapping[str, Any] | None:
        tensors = list(best.counts["tensors"])
        tuning = tune_scales(base, adapter, output, path, tensors, trained, seconds=seconds, threads=threads, say=say)
        if tuning is None:
            return None
        tunings.append(tuning)
        return {**best.counts, "n_tuning_steps": tuning.n_steps}

    found = _better(best, prover, output, tuned, say)
    for tuning in tunings:
        end = f"KL {best.proof.kl:.4f} to {found.proof.kl:.4f}" if found is not best else "no nearer, and not taken"
        say(f"{tuning}: {end}")
    return found


def _on_grid(counts: Mapping[str, Any]) -> bool:
    """Whether there is a tensor whose codes were moved: the others come out the same each time."""
    return any(tensor["n_moved"] for tensor in counts["tensors"].values())


def _holds(proof: Proof) -> bool:
    parts = [proof.trained, *([proof.held_out] if proof.held_out is not None else [])]
    return all(part.kept is None or part.kept >= _AUTO_SHARE for part in parts)


def _kept(proof: Proof) -> str:
    kept = proof.trained.kept
    return f"{100 * kept:.1f} % of the gain" if kept is not None else "no gain"


def _raised(counts: Mapping[str, Any], share: float) -> dict[str, str]:
    """Give the tensors with the most rounding error for their size a type of 8 bits."""
    tensors = {name: t for name, t in counts["tensors"].items() if t["from"] not in ("f32", "f16", "bf16", "q8_0")}
    by_error = sorted(tensors, key=lambda name: (-tensors[name]["variance"] / tensors[name]["n_weights"], name))
    return dict.fromkeys(by_error[: max(1, round(share * len(by_error)))], "q8_0")
