"""Which layers of a model lie on which device: as many as fit beside what training needs, or as the settings say.

**What fits** is asked of the engine, which predicts a graph's memory by device from the model's header alone; nothing
is allocated for it. Of the memory that is free a margin is left: the prediction is within 5 % of what is allocated,
backends take some for the scratch of large products and for their own code, and so does a screen. It is a tenth of what
is free, and 1 GiB at most, which is what llama.cpp leaves, too.

**Recomputation or fewer layers?** A layer that is computed again for its gradient takes half as long again, on
whichever side it lies; one that lies on the CPU takes many times as long as on a device. But layers are computed again
from the first on, and the first ones are the CPU's: where devices hold a part of the model, recomputing theirs means to
recompute all of the CPU's. So both are costed, the most layers with as many as it takes computed again and the most
with none, and the cheaper is taken. Where all fit with recomputation alone, that is always cheaper.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ggtune._native import core
from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.setting_texts import NO_DEVICE, DeviceMemory, GpuLayers
from ggtune.system import format_bytes

if TYPE_CHECKING:
    from ggtune._core import DeviceInfo, Model, Trainer
    from ggtune.train.plan import Shape

HOW_TO_BUILD = "docs/devices.md says how to build ggtune for one"
CPU = "CPU"  # the engine's name for where all else lies
_SIMULATED = "simulated"  # of these none is taken that was not asked for
_MARGIN_SHARE, _MOST_MARGIN = 0.1, 1 << 30
_CPU_COST = 10.0  # time of a layer on the CPU against one on a device: a low guess, from which on it matters little
_RECOMPUTED_COST = 1.5


@dataclass(frozen=True)
class Places:
    """Where the layers of a model lie: the last ones on devices. The output head is a layer, too, the last one."""

    devices: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()  # on each of them, in the model's order
    cpu_layers: tuple[int, ...] = ()  # numbers of those among them that stay on the CPU all the same
    cpu_experts: int = 0
    exact: bool = False

    @property
    def n_layers(self) -> int:
        """Layers on devices, those that stay on the CPU all the same counted in."""
        return sum(self.layers)

    def device_of(self, layer: int, n_all: int) -> str:
        """Return where a layer of ``n_all`` would lie, whether its device can compute it or not."""
        end = n_all - self.n_layers
        for device, n in zip((CPU, *self.devices), (end, *self.layers), strict=True):
            end += n if device != CPU else 0
            if layer < end:
                return device
        raise ValueError(f"there is no layer {layer}")

    def arguments(self) -> dict[str, Any]:
        """Of ``core.Model``; none where all lies on the CPU."""
        if not self.devices:
            return {}
        return {
            "devices": list(self.devices),
            "device_layers": list(self.layers),
            "cpu_layers": list(self.cpu_layers),
            "cpu_experts": self.cpu_experts,
            "exact": self.exact,
        }


@dataclass(frozen=True)
class Wanted:
    """What the settings ask for, and the devices that there are for it; the one with the output head comes last."""

    devices: tuple["DeviceInfo", ...]
    usable_bytes: tuple[int, ...]  # of each
    layers: GpuLayers
    split: tuple[float, ...] = ()  # empty: by the memory
    cpu_experts: int = 0
    exact: bool = False

    @property
    def auto(self) -> bool:
        """Whether the number of layers is to be found."""
        return self.layers.n is None and not self.layers.all

    @property
    def usable(self) -> dict[str, int]:
        """Bytes that may be used, by device."""
        return {device.name: n for device, n in zip(self.devices, self.usable_bytes, strict=True)}


def wanted_devices(config: TrainConfig) -> Wanted | None:
    """Return what the settings ask of devices, None for the CPU alone.

    Raises :class:`GgtuneError` for devices that there are not, and for settings that don't fit those that there are.
    """
    layers, named = GpuLayers.parse(config.gpu_layers), tuple(filter(None, config.device))
    if layers.n == 0 or named == (NO_DEVICE,):
        return None
    auto = layers.n is None and not layers.all
    there = {device.name: device for device in core.devices()}
    chosen = _chosen(config, named, auto, there)
    if not chosen:
        return None
    if config.main_device:
        main = [device for device in chosen if device.name == config.main_device]
        if not main:
            raise GgtuneError(
                f"--main-device {config.main_device} is none of the devices that are used: "
                f"{', '.join(device.name for device in chosen)}"
            )
        chosen = [*(device for device in chosen if device.name != config.main_device), *main]
    split = tuple(float(part) for part in config.split.split(",")) if config.split.strip() else ()
    if split and len(split) != len(chosen):
        raise GgtuneError(
            f"--split {config.split} has {len(split)} parts, and the devices are {len(chosen)}: "
            f"{', '.join(device.name for device in chosen)}. Give one for each, or choose devices by --device."
        )
    memory = DeviceMemory.parse(config.device_memory)
    return Wanted(
        tuple(chosen),
        tuple(usable_bytes(device, memory) for device in chosen),
        layers,
        split,
        config.cpu_experts,
        exact=config.precision == "f32",
    )


def _chosen(
    config: TrainConfig, named: Sequence[str], auto: bool, there: Mapping[str, "DeviceInfo"]
) -> list["DeviceInfo"]:
    if named:
        if missing := [name for name in named if name not in there]:
            known = f"there are: {', '.join(there)}" if there else f"this build or machine has none: {HOW_TO_BUILD}"
            raise GgtuneError(
                f"--device: there is no {', '.join(missing)}; {known}. With --device {NO_DEVICE} all is computed by "
                "the CPU."
            )
        if len(set(named)) < len(named):
            raise GgtuneError(f"--device {','.join(named)} names a device twice")
        return [there[name] for name in named]
    real = [device for device in there.values() if device.kind != _SIMULATED]
    if auto:
        found = real
    else:
        found = real or list(there.values())
        if not found:
            raise GgtuneError(
                f"--gpu-layers {config.gpu_layers}: this build or machine has no device; {HOW_TO_BUILD}. With "
                f"--device {NO_DEVICE} all is computed by the CPU."
            )
    if config.main_device and not found:
        raise GgtuneError(f"--main-device {config.main_device}: this build or machine has no device; {HOW_TO_BUILD}")
    return found


def usable_bytes(device: "DeviceInfo", memory: DeviceMemory) -> int:
    """Bytes of a device that may be used: what is asked for, as far as it is free, or what is free less a margin."""
    if memory.n_bytes is not None:
        return min(memory.n_bytes, device.free_bytes)
    if memory.share is not None:
        return min(int(memory.share * device.total_bytes), device.free_bytes)
    return device.free_bytes - min(int(_MARGIN_SHARE * device.free_bytes), _MOST_MARGIN)


@dataclass(frozen=True)
class Choice:
    """Places, and what the user is told of them."""

    places: Places
    lines: tuple[str, ...] = ()


class Placement:
    """Looks for places of a model's layers.

    ``model`` is one of the header; ``trial`` makes an engine with a model of the header whose layers lie so,
    ``largest`` is the shape of its largest micro-batch, and ``beside_bytes`` are taken of each device beside that.
    """

    def __init__(
        self,
        wanted: Wanted,
        model: "Model",
        trial: Callable[[Places], "Trainer"],
        largest: "Shape",
        *,
        recompute: str = "auto",
        beside_bytes: int = 0,
    ) -> None:
        self._wanted = wanted
        self._layer_bytes = list(model.layer_bytes)
        self._trial = trial
        self._largest = largest
        self._recompute = recompute
        self._beside_bytes = beside_bytes
        self._tried: dict[int, Trainer] = {}
        self._cpu_layers: tuple[int, ...] = ()
        if wanted.cpu_experts > model.n_layer:
            raise GgtuneError(f"--cpu-experts {wanted.cpu_experts}: the model has {model.n_layer} layers")
        if wanted.layers.n is not None and wanted.layers.n > self.n_all:
            raise GgtuneError(
                f"--gpu-layers {wanted.layers.n}: the model has {model.n_layer} layers, {self.n_all} with the output "
                "head; give all for all of them"
            )

    @property
    def n_all(self) -> int:
        """All layers, the output head among them."""
        return len(self._layer_bytes)

    def choose(self, *, force: bool = False) -> Choice:
        """Return places that fit. Raises :class:`GgtuneError` where a given number of layers does not.

        With ``force`` that is tried all the same.
        """
        lines = self._leave_out_unsupported()
        n = self.n_all if self._wanted.layers.all else self._wanted.layers.n
        names = " and ".join(f"{name} ({format_bytes(size)} usable)" for name, size in self._usable.items())
        if n is None:
            n = self.most()
            places = self.places(n)
            if not self._on_devices(places):
                lines.append(f"No layer fits on {names} beside what training needs: all are computed by the CPU")
                return Choice(Places(), tuple(lines))
            return Choice(places, tuple(lines))
        places = self.places(n)
        if not self._on_devices(places):
            lines.append("No layer is left for a device: all are computed by the CPU")
            return Choice(Places(), tuple(lines))
        if not force and not self._fits(n, self._most_recomputed(n)):
            raise GgtuneError(self._too_many(n, names))
        return Choice(places, tuple(lines))

    def fewer(self, places: Places) -> Choice | None:
        """Return places for fewer layers, where a device has turned out to have too little memory; None: no fewer."""
        if not self._wanted.auto or not places.n_layers:
            return None
        n = places.n_layers - max(1, places.n_layers // 8)
        found = self.places(n)
        return Choice(found if self._on_devices(found) else Places())

    def most(self) -> int:
        """Return the most layers that fit, in the cheaper of the two ways (see above)."""
        if self._recompute == "none":
            return self._most(lambda n: 0)
        if self._recompute == "layers":
            return self._most(self._most_recomputed)
        again = self._most(self._most_recomputed)
        kept = self._most(lambda n: 0)
        return again if again == kept or self._cost(again) <= self._cost(kept) else kept

    def places(self, n: int) -> Places:
        """Share out the last ``n`` layers."""
        return shared_out(self._wanted, self._layer_bytes, n, self._usable, self._cpu_layers)

    @cached_property
    def _usable(self) -> dict[str, int]:
        return {name: max(0, n - self._beside_bytes) for name, n in self._wanted.usable.items()}

    def _on_devices(self, places: Places) -> bool:
        return places.n_layers > len(places.cpu_layers)

    def _engine(self, n: int) -> "Trainer":
        if n not in self._tried:
            self._tried[n] = self._trial(self.places(n))
        return self._tried[n]

    def _leave_out_unsupported(self) -> list[str]:
        """Find the layers that their device can't compute; tell of those that would lie there."""
        n = self.n_all if self._wanted.layers.n is None else self._wanted.layers.n
        found: dict[tuple[str, str], list[int]] = {}
        while lacking := self._engine(n).unsupported:
            places = self.places(n)
            for layer, op, _ in lacking:
                found.setdefault((places.device_of(layer, self.n_all), op), []).append(layer)
            self._cpu_layers = tuple(sorted({*self._cpu_layers, *(layer for layer, _, _ in lacking)}))
            self._tried.clear()
            if not self._on_devices(self.places(n)):
                break
        return [self._lacking_text(device, op, layers) for (device, op), layers in found.items()]

    def _lacking_text(self, device: str, op: str, layers: Sequence[int]) -> str:
        head = self.n_all - 1
        numbers = [str(layer) for layer in sorted(set(layers)) if layer != head]
        named = [f"layer{'s' * (len(numbers) > 1)} {', '.join(numbers)}"] if numbers else []
        text = " and ".join([*named, *(["the output head"] if head in layers else [])])
        one = len(set(layers)) == 1
        return f"{text[:1].upper()}{text[1:]} stay{'s' * one} on the CPU: {device} can't do {op}"

    def _most_recomputed(self, n: int) -> int:
        if self._recompute == "none":
            return 0
        return max(0, self._engine(n).n_recomputable_layers - 1)

    def _excess(self, n: int, recomputed: int) -> int:
        """Bytes by which the worst device has too little; 0 or less: it fits."""
        if not self._on_devices(self.places(n)):
            return -min(self._usable.values())
        engine = self._engine(n)
        engine.recompute_layers = recomputed
        return excess_bytes(engine, self._largest, self._usable)

    def _fits(self, n: int, recomputed: int) -> bool:
        return self._excess(n, recomputed) <= 0

    def _most(self, recomputed: Callable[[int], int]) -> int:
        """Find the most layers that fit: all, or between two numbers, of which the line through both tells the next."""
        low, high = 0, self.n_all
        excess_low, excess_high = -min(self._usable.values()), self._excess(high, recomputed(high))
        if excess_high <= 0:
            return high
        by_half = False
        while high - low > 1:
            share = 0.5 if by_half else -excess_low / max(1, excess_high - excess_low)
            n = min(high - 1, max(low + 1, low + int(share * (high - low))))
            excess = self._excess(n, recomputed(n))
            by_half = not by_half  # a line alone may come nearer from one side only, by one layer each time
            if excess <= 0:
                low, excess_low = n, excess
            else:
                high, excess_high = n, excess
        return low

    def _cost(self, n: int) -> float:
        """Guess the time of all layers, in that of one on a device."""
        if not self._on_devices(self.places(n)):
            return _CPU_COST * self.n_all
        again, most = 0, self._most_recomputed(n)
        while again < most and not self._fits(n, again):
            again = min(most, 2 * again + 1)
        n_cpu = self.n_all - n
        cost = _CPU_COST * n_cpu + n
        first = min(again, n_cpu)
        return cost + (_RECOMPUTED_COST - 1) * (_CPU_COST * first + (again - first))

    def _too_many(self, n: int, names: str) -> str:
        engine = self._engine(n)
        engine.recompute_layers = self._most_recomputed(n)
        needed = [
            f"{format_bytes(sum(parts.values()))} of {name}"
            for name, parts in engine.device_memory(*self._largest).items()
        ]
        most = self.most()
        fits = f"so many fit: --gpu-layers {most}" if most else "no layer fits: give --device none"
        again = ", or --recompute" if self._recompute == "none" else ""
        return (
            f"--gpu-layers {self._wanted.layers.n or 'all'} needs {' and '.join(needed)} for {self._largest[0]} tokens "
            f"at once, and there are {names}: {fits}; or a smaller --ctx, --micro-batch-tokens or --rank{again}. "
            "--force starts all the same."
        )


def shared_out(
    wanted: Wanted, layer_bytes: Sequence[int], n: int, usable: Mapping[str, int], cpu_layers: Sequence[int] = ()
) -> Places:
    """Share the last ``n`` layers out: by number in the given proportions, else by their bytes and the devices' memory.

    ``layer_bytes`` are those of all layers, ``usable`` those of the devices.
    """
    first = len(layer_bytes) - n
    costs = [1 if wanted.split else max(1, size) for size in layer_bytes[first:]]
    shares = wanted.split or tuple(float(max(1, size)) for size in usable.values())
    ends, share, given = [0], 0.0, 0.0
    for part in shares[:-1]:
        share += part / sum(shares)
        end = ends[-1]
        while end < n and given + costs[end] / 2 <= share * sum(costs):
            given += costs[end]
            end += 1
        ends.append(end)
    layers = [end - begin for begin, end in pairwise([*ends, n])]
    used = [(device.name, number) for device, number in zip(wanted.devices, layers, strict=True) if number]
    return Places(
        tuple(name for name, _ in used),
        tuple(number for _, number in used),
        tuple(layer for layer in cpu_layers if layer >= first),
        wanted.cpu_experts,
        wanted.exact,
    )


def excess_bytes(engine: "Trainer", largest: "Shape", usable: Mapping[str, int]) -> int:
    """Bytes by which the worst of an engine's devices has too little for such a graph; 0 or less: it fits."""
    return max(
        (
            sum(parts.values()) - usable[name]
            for name, parts in engine.device_memory(*largest).items()
            if name in usable
        ),
        default=0,
    )
