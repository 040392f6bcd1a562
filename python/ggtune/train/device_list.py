"""The devices that there are, and how many layers of a model would fit on each."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ggtune._native import core
from ggtune.config import TrainConfig
from ggtune.setting_texts import DeviceMemory, GpuLayers
from ggtune.system import format_bytes
from ggtune.train.build import default_micro_batch
from ggtune.train.placement import HOW_TO_BUILD, Placement, Places, Wanted, usable_bytes
from ggtune.train.targets import chosen_targets

if TYPE_CHECKING:
    from ggtune._core import DeviceInfo, Trainer


@dataclass(frozen=True)
class Fit:
    """How much of a model would lie on a device, with the default settings of ``train``."""

    layers: int
    n_layers: int  # of the model, the output head counted as one
    needed_bytes: int  # for those that fit
    lines: tuple[str, ...] = ()  # what else there is to say, such as layers that stay on the CPU


@dataclass(frozen=True)
class Device:
    """A device, and how much of a model fits where one was given."""

    name: str
    description: str
    backend: str
    kind: str
    free_bytes: int
    total_bytes: int
    half_products: bool
    usable_bytes: int  # what training takes at most by default
    fit: Fit | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Describe it."""
        products = "products of floats in half precision (exact with --precision f32)"
        lines = [
            f"{self.name}: {self.description} ({self.backend}, {self.kind})",
            f"  {format_bytes(self.total_bytes)}, {format_bytes(self.free_bytes)} free, "
            f"{format_bytes(self.usable_bytes)} taken at most by default",
            f"  {products if self.half_products else 'products of floats in float32'}",
        ]
        if self.fit is not None:
            fit = self.fit
            needed = f" ({format_bytes(fit.needed_bytes)})" if fit.layers else ""
            lines.append(f"  {fit.layers} of {fit.n_layers} layers fit with the default settings{needed}")
            lines += [f"  {line}" for line in fit.lines]
        return lines


def device_list(model: str | None = None) -> list[Device]:
    """Return all devices. Raises :class:`GgtuneError` where ``model`` can't be trained."""
    found = []
    for info in core.devices():
        usable = usable_bytes(info, DeviceMemory())
        found.append(
            Device(
                info.name,
                info.description,
                info.backend,
                info.kind,
                info.free_bytes,
                info.total_bytes,
                info.half_products,
                usable,
                _fit(model, info, usable) if model is not None else None,
            )
        )
    return found


def no_devices() -> list[str]:
    """Say that there is none, and how to get one."""
    backends = core.build_info().get("backends", "CPU")
    return [
        f"ggtune finds no device: all is computed by the CPU. This build has the backends {backends}.",
        f"With a GPU: {HOW_TO_BUILD}.",
    ]


def _fit(path: str, info: "DeviceInfo", usable: int) -> Fit:
    config = TrainConfig.for_face("train", model=path, data="-")
    model = core.Model(path, header_only=True)
    context = min(config.ctx, model.n_ctx_train)
    targets = chosen_targets(config.targets, model.linears(), config.rank, path)

    def trial(places: Places) -> "Trainer":
        placed = core.Model(path, header_only=True, **places.arguments())
        adapter = core.Adapter(placed, rank=config.rank, alpha=config.effective_alpha, targets=targets.kinds)
        return core.Trainer(adapter, context=context, threads=1, precision=config.precision)

    n_tokens = min(default_micro_batch(context, model, trial(Places())), config.batch * context)
    largest = n_tokens, n_tokens, config.batch
    wanted = Wanted((info,), (usable,), GpuLayers())
    choice = Placement(wanted, model, trial, largest, recompute=config.recompute).choose()
    needed = 0
    if choice.places.devices:
        engine = trial(choice.places)
        engine.recompute_layers = max(0, engine.n_recomputable_layers - 1)
        needed = sum(sum(parts.values()) for parts in engine.device_memory(*largest).values())
    n = choice.places.n_layers - len(choice.places.cpu_layers)
    return Fit(n, model.n_layer + 1, needed, choice.lines)
