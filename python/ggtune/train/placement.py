"""Which layers of a model lie on which devices: as asked for, or as many as fit beside what training needs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ggtune._native import core
from ggtune.config import TrainConfig
from ggtune.errors import DeviceMemoryError, GgtuneError
from ggtune.setting_texts import NO_DEVICE, DeviceMemory, GpuLayers
from ggtune.system import format_bytes

if TYPE_CHECKING:
    from ggtune._core import DeviceInfo, Trainer

# What is left of a device's free memory: its driver keeps buffers for copies and compiled kernels that no prediction
# knows of, and a desktop may want more in a minute.
_USABLE_SHARE = 0.95
_DRIVER_BYTES = 256 << 20

_BY_THEMSELVES = ("gpu", "integrated")  # kinds of devices that are taken without being named


@dataclass(frozen=True)
class Unsupported:
    """A layer that stays on the CPU, since its device can't compute one of its operations."""

    layer: int
    op: str
    device: str


@dataclass(frozen=True)
class Placement:
    """Where a model's layers lie; the output head counts as one more. Those that no device has are the CPU's."""

    devices: tuple[str, ...] = ()
    device_layers: tuple[int, ...] = ()  # how many of the last layers each device has, in order
    cpu_layers: tuple[int, ...] = ()  # layers among them that stay on the CPU all the same
    cpu_experts: int = 0
    exact: bool = False
    unsupported: tuple[Unsupported, ...] = ()
    budgets: tuple[int, ...] = ()  # bytes of each device that may be used
    too_small: tuple[str, ...] = ()  # devices that have room for no layer, where that decided

    @property
    def n_layers(self) -> int:
        """Layers on devices, those of ``cpu_layers`` among them."""
        return sum(self.device_layers)

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of ``_core.Model``."""
        return {
            "devices": self.devices,
            "device_layers": self.device_layers,
            "cpu_layers": self.cpu_layers,
            "cpu_experts": self.cpu_experts,
            "exact": self.exact,
        }

    @property
    def recorded(self) -> dict[str, int]:
        """How many layers each device has, for checkpoints and records."""
        return dict(zip(self.devices, self.device_layers, strict=True))

    def lines(self, n_layer: int, memory: Mapping[str, Mapping[str, int]]) -> list[str]:
        """Describe it for the user. ``memory`` is what each device will need, by part."""
        if not self.devices:
            none_fits = f"No layer fits on {', '.join(self.too_small)}: all are computed by the CPU"
            return [*([none_fits] if self.too_small else []), *self.unsupported_lines()]
        first = n_layer + 1 - self.n_layers
        on_cpu = [*range(first), *self.cpu_layers]
        found = []
        for name, n, budget in zip(self.devices, self.device_layers, self.budgets, strict=True):
            layers = [layer for layer in range(first, first + n) if layer not in self.cpu_layers]
            needed = sum(memory.get(name, {}).values())
            found.append(
                f"Device {name}: {layers_text(layers, n_layer)}; {format_bytes(needed)} expected of "
                f"{format_bytes(budget)} that may be used"
            )
            first += n
        if on_cpu:
            found.append(f"CPU: {layers_text(on_cpu, n_layer)}")
        if self.cpu_experts:
            found.append(f"CPU: the experts of the first {self.cpu_experts} layers")
        return [*found, *self.unsupported_lines()]

    def unsupported_lines(self) -> list[str]:
        """Say which layers stay on the CPU since a device can't compute them, each reason once."""
        reasons: dict[tuple[str, str], list[int]] = {}
        for one in self.unsupported:
            reasons.setdefault((one.device, one.op), []).append(one.layer)
        return [
            f"{'Layers' if len(layers) > 1 else 'Layer'} {', '.join(map(str, layers))} on the CPU: {device} can't "
            f"compute {op}"
            for (device, op), layers in reasons.items()
        ]


def layers_text(layers: Sequence[int], n_layer: int) -> str:
    """Name layers, the number ``n_layer`` being the output head: "layers 0 to 3, 7 and the output head"."""
    runs: list[list[int]] = []
    for layer in layers:
        if layer < n_layer and runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        elif layer < n_layer:
            runs.append([layer, layer])
    text = ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in runs)
    several = len(runs) > 1 or (runs and runs[0][0] < runs[0][1])
    parts = ([f"{'layers' if several else 'layer'} {text}"] if runs else []) + (
        ["the output head"] if n_layer in layers else []
    )
    return " and ".join(parts) or "no layer"


def asked_devices(config: TrainConfig) -> list["DeviceInfo"]:
    """Return the devices that a run may use, in the order of their layers.

    Raises :class:`GgtuneError` for a device that is not there, or settings that don't fit each other.
    """
    if config.device == (NO_DEVICE,) or GpuLayers.parse(config.gpu_layers).n == 0:
        return []
    known = {device.name: device for device in core.devices()}
    there = ", ".join(known) or "none in this build or on this machine"
    if unknown := [name for name in config.device if name not in known]:
        raise GgtuneError(
            f"--device {','.join(config.device)}: there is no device {unknown[0]} (there is: {there}). "
            "`ggtune devices` lists them; --device none trains on the CPU"
        )
    if len(set(config.device)) < len(config.device):
        raise GgtuneError(f"--device {','.join(config.device)}: a device is named twice")
    if config.device:
        devices = [known[name] for name in config.device]
    else:
        devices = [device for device in known.values() if device.kind in _BY_THEMSELVES]
    if not devices and config.gpu_layers != "auto":
        raise GgtuneError(
            f"--gpu-layers {config.gpu_layers}: there is no device to put layers on (there is: {there}). "
            "docs/devices.md says how to build ggtune with one"
        )
    return _with_main_last(config, devices)


def _with_main_last(config: TrainConfig, devices: list["DeviceInfo"]) -> list["DeviceInfo"]:
    if config.main_device and devices:
        main = [device for device in devices if device.name == config.main_device]
        if not main:
            raise GgtuneError(
                f"--main-device {config.main_device} is none of {', '.join(device.name for device in devices)}"
            )
        devices = [device for device in devices if device is not main[0]] + main
    n_parts = len(_proportions(config.split))
    if n_parts and devices and n_parts != len(devices):
        raise GgtuneError(
            f"--split {config.split}: {n_parts} proportions for {len(devices)} devices "
            f"({', '.join(device.name for device in devices)})"
        )
    return devices


def _proportions(text: str) -> list[float]:
    return [float(part) for part in text.split(",")] if text.strip() else []


def budget(device: "DeviceInfo", setting: str) -> int:
    """Return how many bytes of a device may be used: what is free less a margin, or less than that where asked for."""
    wanted = DeviceMemory.parse(setting)
    driver = 0 if device.kind == "simulated" else _DRIVER_BYTES
    usable = max(0, int(_USABLE_SHARE * device.free_bytes) - driver)
    if wanted.share is not None:
        return min(usable, int(wanted.share * device.total_bytes))
    return usable if wanted.n_bytes is None else min(usable, wanted.n_bytes)


def shared_out(n_layers: int, proportions: Sequence[float]) -> list[int]:
    """Share layers out as nearly as whole numbers go (largest remainders); they add up to ``n_layers``."""
    total = sum(proportions)
    exact = [n_layers * part / total for part in proportions] if total > 0 else [0.0] * len(proportions)
    counts = [math.floor(part) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: n_layers - sum(counts)]:
        counts[i] += 1
    return counts


@dataclass(frozen=True)
class _Trial:
    placement: Placement
    fits: bool
    memory: Mapping[str, Mapping[str, int]]


class Placer:
    """Finds the places of a model's layers; asks the engine with the model's header alone.

    ``make_engine(placement)`` makes a trainer of the model's header with these places, ``largest`` are the tokens,
    targets and sequences of a micro-batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        devices: Sequence["DeviceInfo"],
        n_layer: int,
        make_engine: Callable[[Placement], "Trainer"],
        largest: tuple[int, int, int],
    ) -> None:
        self._config = config
        self._devices = list(devices)
        self._n_layer = n_layer
        self._make_engine = make_engine
        self._largest = largest
        self._budgets = [budget(device, config.device_memory) for device in devices]
        self._unsupported: dict[int, Unsupported] = {}
        self._tried: dict[int, _Trial] = {}

    def place(self, most_layers: int | None = None) -> Placement:
        """Return the places as the settings ask, at most ``most_layers`` where that is "auto".

        Raises :class:`DeviceMemoryError` where what was asked for does not fit, and says what would.
        """
        wanted = GpuLayers.parse(self._config.gpu_layers)
        total = self._n_layer + 1
        if wanted.n is not None and wanted.n > total:
            raise GgtuneError(
                f"--gpu-layers {wanted.n}: the model has {self._n_layer} layers and an output head, {total} in all"
            )
        if wanted.all or wanted.n is not None:
            n = total if wanted.all else wanted.n or 0
            trial = self._trial(n)
            if not trial.fits and not self._config.force:
                raise DeviceMemoryError(self._refusal(n, trial))
            return trial.placement
        high = total if most_layers is None else min(total, most_layers)
        n = self._most_that_fit(high)
        placement = self._trial(n).placement
        return placement if n else replace(placement, too_small=tuple(device.name for device in self._devices))

    def _most_that_fit(self, high: int) -> int:
        """Find the most layers up to ``high`` that fit, 0 where none do: more layers never need less."""
        if high and self._trial(high).fits:
            return high
        low = 0
        while high - low > 1:
            middle = (low + high) // 2
            if self._trial(middle).fits:
                low = middle
            else:
                high = middle
        return low

    def _trial(self, n: int) -> _Trial:
        if n not in self._tried:
            self._tried[n] = self._try(n)
        return self._tried[n]

    def _try(self, n: int) -> _Trial:
        if not n:
            return _Trial(Placement(exact=self._config.precision == "f32"), True, {})
        placement = self._placement(n)
        engine = self._make_engine(placement)
        names = dict(enumerate(self._device_of_layer(placement)))
        found = {layer: Unsupported(layer, op, names[layer]) for layer, op, _ in engine.unsupported}
        if found:
            self._unsupported.update(found)
            placement = self._placement(n)
            if not placement.devices:
                return _Trial(placement, True, {})
            engine = self._make_engine(placement)
        # computing layers again costs a third of their time on a device; on the CPU they would cost many times that
        if self._config.recompute != "none":
            engine.recompute_layers = max(0, engine.n_recomputable_layers - 1)
        memory = engine.device_memory(*self._largest)
        fits = all(
            sum(memory.get(name, {}).values()) <= n_bytes
            for name, n_bytes in zip(placement.devices, placement.budgets, strict=True)
        )
        return _Trial(placement, fits, memory)

    def _placement(self, n: int) -> Placement:
        counts = shared_out(n, _proportions(self._config.split) or [float(b) for b in self._budgets])
        taken = [i for i, count in enumerate(counts) if count]
        first = self._n_layer + 1 - n
        back = sorted(layer for layer in self._unsupported if layer >= first)
        if len(back) == n:  # nothing is left on a device
            return Placement(
                exact=self._config.precision == "f32", unsupported=tuple(self._unsupported[layer] for layer in back)
            )
        return Placement(
            devices=tuple(self._devices[i].name for i in taken),
            device_layers=tuple(counts[i] for i in taken),
            cpu_layers=tuple(back),
            cpu_experts=min(self._config.cpu_experts, self._n_layer),
            exact=self._config.precision == "f32",
            unsupported=tuple(self._unsupported[layer] for layer in back),
            budgets=tuple(self._budgets[i] for i in taken),
        )

    def _device_of_layer(self, placement: Placement) -> list[str]:
        names = ["CPU"] * (self._n_layer + 1 - placement.n_layers)
        for name, n in placement.recorded.items():
            names += [name] * n
        return names

    def _refusal(self, n: int, trial: _Trial) -> str:
        placement = trial.placement
        needs = ", ".join(
            f"{name} {format_bytes(sum(trial.memory.get(name, {}).values()))} of {format_bytes(n_bytes)}"
            for name, n_bytes in zip(placement.devices, placement.budgets, strict=True)
        )
        fitting = self._most_that_fit(n - 1)
        instead = f"--gpu-layers {fitting} fits" if fitting else "no layer fits: --device none trains on the CPU"
        return (
            f"--gpu-layers {self._config.gpu_layers}: more memory is needed on devices than may be used ({needs}). "
            f"{instead}; a smaller --ctx, --micro-batch-tokens or --rank needs less, --force starts all the same"
        )


def fewer(placement: Placement) -> int:
    """Return how many layers to try next where a device had too little memory after all."""
    return placement.n_layers - max(1, placement.n_layers // 10)
