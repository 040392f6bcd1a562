"""A run built where its layers belong: on devices as far as they fit, or all of it on the CPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from ggtune.config import TrainConfig
from ggtune.errors import DeviceMemoryError
from ggtune.run.checkpoint import Checkpoint, State
from ggtune.system import available_memory, format_bytes
from ggtune.train.beside import Beside, beside
from ggtune.train.build import Build, build, placed
from ggtune.train.measuring import Asked, asked_of
from ggtune.train.placement import CPU, Placement, Wanted, wanted_devices
from ggtune.train.recomputation import set_recomputation


@dataclass(frozen=True)
class DeviceUse:
    """What a run has on a device; of the CPU the layers alone are known here."""

    numbers: tuple[int, ...]  # of its layers; the output head has the one behind the last
    n_all: int  # layers of the model, the output head among them
    needed: Mapping[str, int] = field(default_factory=dict)  # predicted bytes, by part
    usable_bytes: int = 0
    description: str = ""

    @property
    def layers(self) -> int:
        """How many."""
        return len(self.numbers)

    @property
    def text(self) -> str:
        """``layers 0 to 3, 7 and the output head``."""
        return layers_text(self.numbers, self.n_all - 1)

    @property
    def needed_bytes(self) -> int:
        """All parts."""
        return sum(self.needed.values())


@dataclass(frozen=True)
class PlacedRun:
    """What a run computes with and what it will need; with weights it can begin at once, its memory is there."""

    built: Build
    asked: Asked
    measured: Beside
    needed: Mapping[str, int]  # bytes of main memory, by part
    free_bytes: int  # of main memory
    lines: tuple[str, ...] = ()  # for the user
    devices: Mapping[str, DeviceUse] = field(default_factory=dict)  # by name; empty where all is on the CPU

    def layer_numbers(self) -> dict[str, int]:
        """Return how many layers lie where, devices and the CPU."""
        return {name: use.layers for name, use in self.devices.items()}


def placed_run(
    config: TrainConfig,
    *,
    checkpoint: Checkpoint | None = None,
    header_only: bool = False,
    now: datetime | None = None,
) -> PlacedRun:
    """Build a run (as :func:`ggtune.train.build.build`) in the places that its settings ask for.

    With weights the memory of its largest micro-batch on devices is allocated, too. Where a device has less than it
    said, a run whose number of layers is "auto" goes on with fewer; others raise
    :class:`~ggtune.errors.DeviceMemoryError`.
    """
    wanted = wanted_devices(config)
    built = build(config, checkpoint=checkpoint, header_only=header_only or wanted is not None, now=now)
    asked = asked_of(built)
    measured = beside(built, asked)
    free = available_memory()
    if wanted is None:
        return PlacedRun(built, asked, measured, _needed(built, measured, free), free)
    # the answers' keys and values lie where the layers do, and what computes them beside what trains
    placement = Placement(
        wanted,
        built.model,
        lambda places: placed(built, places, header_only=True).engine,
        built.plan.largest,
        recompute=config.recompute,
        beside_bytes=measured.answer_bytes,
    )
    choice = placement.choose(force=config.force)
    lines = list(choice.lines)
    while True:
        found = None  # gives its memory back before the next is made
        try:
            found = placed(built, choice.places, checkpoint=checkpoint, header_only=header_only)
            usable = {name: n - measured.answer_bytes for name, n in wanted.usable.items()}
            needed = _needed(found, measured, free, usable)
            if not header_only and choice.places.devices:
                found.engine.reserve(*found.plan.largest)
        except DeviceMemoryError as error:
            fewer = placement.fewer(choice.places)
            if fewer is None:
                raise _too_little(error) from error
            lines.append(f"{error}: {fewer.places.n_layers} layers are tried instead of {choice.places.n_layers}")
            choice = fewer
        else:
            return PlacedRun(found, asked, measured, needed, free, tuple(lines), _uses(found, wanted))


def _too_little(error: DeviceMemoryError) -> DeviceMemoryError:
    return DeviceMemoryError(f"{error}. Give a smaller --gpu-layers or --ctx, --gpu-layers auto, or --device none.")


def _needed(built: Build, measured: Beside, free: int, usable: Mapping[str, int] | None = None) -> dict[str, int]:
    needed = set_recomputation(built, free - measured.answer_bytes, usable if built.places.devices else None)
    if measured.answer_bytes:
        needed["answers"] = measured.answer_bytes
    return needed


def _uses(built: Build, wanted: Wanted) -> dict[str, DeviceUse]:
    if not built.places.devices:
        return {}
    where = built.model.layer_devices
    needed = built.engine.device_memory(*built.plan.largest)
    info = {device.name: device for device in wanted.devices}

    def numbers(name: str) -> tuple[int, ...]:
        return tuple(layer for layer, device in enumerate(where) if device == name)

    uses = {
        name: DeviceUse(numbers(name), len(where), needed.get(name, {}), wanted.usable[name], info[name].description)
        for name in built.places.devices
    }
    return {**uses, CPU: DeviceUse(numbers(CPU), len(where))}


def use_lines(devices: Mapping[str, DeviceUse]) -> list[str]:
    """Say what lies where, a line for each device and one for the CPU where it has layers."""
    lines = [
        f"{name} ({use.description}): {use.text}; {format_bytes(use.needed_bytes)} expected of "
        f"{format_bytes(use.usable_bytes)}"
        for name, use in devices.items()
        if name != CPU
    ]
    return [*lines, f"{CPU}: {devices[CPU].text}"] if lines and devices[CPU].numbers else lines


def layers_text(numbers: Sequence[int], head: int) -> str:
    """Name layers, of which the number ``head`` is the output head: ``layers 0 to 3, 7 and the output head``."""
    runs: list[list[int]] = []
    for number in numbers:
        if number == head:
            continue
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in runs)
    several = len(runs) > 1 or (len(runs) == 1 and runs[0][0] < runs[0][1])
    parts = [f"layer{'s' * several} {text}"] if runs else []
    parts += ["the output head"] if head in numbers else []
    return " and ".join(parts) or "no layer"


def moved_text(before: State, now: State) -> list[str]:
    """Say where a run goes on that was elsewhere before; nothing where it stays."""

    def text(state: State) -> str:
        layers = state.places[-1]["layers"] if state.places else {}
        parts = [f"{n} layers on {name}" for name, n in layers.items() if name != CPU]
        parts += [f"{layers[CPU]} on the CPU"] if layers.get(CPU) else []
        return ", ".join(parts) or "all on the CPU"

    return [] if text(before) == text(now) else [f"From step {now.step} on: {text(now)}; before: {text(before)}"]


def places_record(devices: Mapping[str, DeviceUse]) -> dict[str, dict[str, int]]:
    """Return what ``status.json`` says of it: layers, and predicted bytes of devices."""
    return {
        name: {"layers": use.layers, **({"memory_bytes": use.needed_bytes} if name != CPU else {})}
        for name, use in devices.items()
    }
