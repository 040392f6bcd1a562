"""Which linears of a model get an adapter, by what ``--targets`` names: kinds ("attn_q") and groups of kinds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggtune.config import DENSE, LINEAR_GROUPS
from ggtune.errors import GgtuneError
from ggtune.system import format_bytes

if TYPE_CHECKING:
    from ggtune._core import Linear

BYTES_PER_PARAMETER = 16  # in memory: float32, with its gradient and both moments of AdamW

# These decide which experts or keys a token sees, and hand on no gradient, or little, of that decision.
_ROUTERS = ("ffn_gate_inp", "indexer")


@dataclass(frozen=True)
class Targets:
    """What ``--targets`` stands for in a model."""

    kinds: tuple[str, ...]  # in the model's order
    narrow: tuple[str, ...]  # kinds of the groups that are left out, since the rank is more than they have

    def of(self, linears: Iterable["Linear"]) -> list["Linear"]:
        """Return the linears of these kinds."""
        return [linear for linear in linears if linear.kind in self.kinds]


def is_router(kind: str) -> bool:
    """Whether linears of that kind choose experts, or keys of a sparse attention."""
    return kind.startswith(_ROUTERS)


def group_of(linear: "Linear") -> str:
    """Name the narrowest group of a linear, "router" where it is in none."""
    if is_router(linear.kind):
        return "router"
    return next(group for group in ("experts", "attention", "ffn", DENSE) if _in_group(group, linear.kind, linear))


def n_params(linears: Iterable["Linear"], rank: int) -> int:
    """Count the parameters of pairs for these linears, of each matrix of a stack."""
    return sum(rank * (linear.n_in + linear.n_out) * linear.n_mat for linear in linears)


def experts_share(linears: Iterable["Linear"], rank: int) -> str:
    """Say how much of an adapter the experts' pairs are, "" where it has none."""
    n = n_params([linear for linear in linears if linear.routed], rank)
    return f"{n / 1e6:.2f}M for experts, which take {format_bytes(BYTES_PER_PARAMETER * n)}" if n else ""


def smaller_targets(experts: str) -> str:
    """Advise those who have no memory for an adapter with pairs for ``experts`` (:func:`experts_share`), else ""."""
    return f", or --targets {DENSE} (of the adapter's parameters are {experts})" if experts else ""


def chosen_targets(targets: Sequence[str], linears: Sequence["Linear"], rank: int, path: str) -> Targets:
    """Resolve ``targets`` for the linears of the model at ``path``.

    Each part adds a kind or a group; with a minus in front it takes it out, and where the first one does, it is taken
    out of the default. Groups leave out kinds that are narrower than ``rank``. Raises :class:`GgtuneError` for a name
    that is neither, and where none is left.
    """
    by_kind: dict[str, list[Linear]] = {}
    for linear in linears:
        by_kind.setdefault(linear.kind, []).append(linear)
    if not by_kind:  # the engine says why
        return Targets((), ())
    chosen: dict[str, bool] = {}  # with whether it was named itself
    parts = ([DENSE] if targets[0].startswith("-") else []) + list(targets)
    unknown = []
    for part in parts:
        name = part.removeprefix("-")
        if name in by_kind:
            members = [name]
        elif name in LINEAR_GROUPS:
            members = [kind for kind, of_kind in by_kind.items() if _in_group(name, kind, of_kind[0])]
            if not members and name == part:
                unknown.append(name)
        else:
            unknown.append(name)
            continue
        for kind in members:
            if part.startswith("-"):
                chosen.pop(kind, None)
            else:
                chosen[kind] = chosen.get(kind, False) or name == kind
    if unknown:
        raise GgtuneError(f"--targets: {path} has no linear {', '.join(unknown)}; {_known(by_kind)}")
    narrow = [kind for kind, named in chosen.items() if not named and _width(by_kind[kind]) < rank]
    kinds = tuple(kind for kind in by_kind if kind in chosen and kind not in narrow)
    if not kinds:
        why = f"all are narrower than the rank {rank}" if narrow else "all are taken out"
        raise GgtuneError(f"--targets {','.join(targets)}: no linear of {path} is left, {why}; {_known(by_kind)}")
    return Targets(kinds, tuple(narrow))


def _width(linears: Iterable["Linear"]) -> int:
    return min(min(linear.n_in, linear.n_out) for linear in linears)


def _known(by_kind: Iterable[str]) -> str:
    return f"choose from those that it has, {', '.join(by_kind)}, and the groups {', '.join(LINEAR_GROUPS)}"


def _in_group(group: str, kind: str, linear: "Linear") -> bool:
    return not is_router(kind) and _MEMBERS[group](kind, linear.routed)


_MEMBERS: dict[str, Callable[[str, bool], bool]] = {
    "all": lambda kind, routed: True,
    DENSE: lambda kind, routed: not routed,
    "experts": lambda kind, routed: routed,
    "attention": lambda kind, routed: kind.startswith("attn_"),
    "ffn": lambda kind, routed: kind.startswith(("ffn_", "channel_mix_")) and not routed,
}
