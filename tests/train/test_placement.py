"""Where layers are put, on devices whose needs are known by a formula."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from ggtune.errors import GgtuneError
from ggtune.setting_texts import DeviceMemory, GpuLayers
from ggtune.train.placement import Placement, Places, Wanted, shared_out, usable_bytes
from ggtune.train.placing import layers_text

MIB = 1 << 20
SHAPE = (64, 64, 1)


def device(name: str, mib: int) -> Any:
    return SimpleNamespace(name=name, free_bytes=mib * MIB, total_bytes=2 * mib * MIB)


@dataclass
class Engine:
    """Needs 10 for each layer's weights, 5 for what is kept of it, 30 where a device has any, all in MiB."""

    places: Places
    n_all: int
    lacking: dict[int, str] = field(default_factory=dict)  # op by layer
    recompute_layers: int = 0

    @property
    def n_recomputable_layers(self) -> int:
        return self.n_all - 1

    @property
    def unsupported(self) -> list[tuple[int, str, str]]:
        first = self.n_all - self.places.n_layers
        there = [layer for layer in range(first, self.n_all) if layer not in self.places.cpu_layers]
        return [(layer, self.lacking[layer], "node") for layer in there if layer in self.lacking]

    def device_memory(self, *shape: int) -> dict[str, dict[str, int]]:
        assert shape == SHAPE
        needed = {}
        first = self.n_all - self.places.n_layers
        for name, n in zip(self.places.devices, self.places.layers, strict=True):
            layers = [layer for layer in range(first, first + n) if layer not in self.places.cpu_layers]
            kept = sum(layer >= self.recompute_layers for layer in layers)
            needed[name] = {"weights": 10 * MIB * len(layers), "compute": (30 + 5 * kept) * MIB}
            first += n
        return needed


class Trials:
    """Makes engines, and counts them."""

    def __init__(self, n_all: int = 33, lacking: dict[int, str] | None = None) -> None:
        self.n_all, self.lacking, self.n = n_all, lacking or {}, 0

    def placement(self, devices: list[Any], layers: str = "auto", **more: Any) -> Placement:
        split, recompute = more.pop("split", ()), more.pop("recompute", "auto")
        usable = tuple(one.free_bytes for one in devices)
        wanted = Wanted(tuple(devices), usable, GpuLayers.parse(layers), split, more.pop("cpu_experts", 0))
        model: Any = SimpleNamespace(layer_bytes=[10 * MIB] * self.n_all, n_layer=self.n_all - 1)
        return Placement(wanted, model, self._engine, SHAPE, recompute=recompute, **more)  # type: ignore[arg-type]

    def _engine(self, places: Places) -> Engine:
        self.n += 1
        return Engine(places, self.n_all, self.lacking)


@pytest.mark.parametrize("n_all", [1, 2, 9, 33, 81])
@pytest.mark.parametrize("mib", [0, 10, 44, 45, 46, 90, 200, 400, 524, 525, 526, 1300])
def test_auto_takes_as_many_as_fit(n_all: int, mib: int) -> None:
    trials = Trials(n_all)
    places = trials.placement([device("A", mib)], recompute="none").choose().places
    expected = min(n_all, max(0, (mib - 30) // 15))
    assert places.n_layers == expected
    assert trials.n <= 10  # each reads the model's header


def test_all_layers_take_one_header() -> None:
    trials = Trials()
    assert trials.placement([device("A", 1000)]).choose().places == Places(("A",), (33,))
    assert trials.n == 1


def test_recomputation_is_taken_where_it_is_cheaper() -> None:
    # all 33 fit without what is kept: half as much time on the device is less than a layer on the CPU
    assert Trials().placement([device("A", 370)]).choose().places.n_layers == 33
    # 7 without, 10 with all computed again, the CPU's 23 among them: those would take half as long again
    assert Trials().placement([device("A", 145)]).choose().places.n_layers == 7
    assert Trials().placement([device("A", 145)], recompute="layers").choose().places.n_layers == 10


def test_where_nothing_fits() -> None:
    choice = Trials().placement([device("A", 20)]).choose()
    assert choice.places == Places()
    assert choice.lines == (
        "No layer fits on A (20.0 MiB usable) beside what training needs: all are computed by the CPU",
    )


def test_a_number_that_does_not_fit() -> None:
    placement = Trials().placement([device("A", 145)], "20", recompute="none")
    with pytest.raises(GgtuneError) as error:
        placement.choose()
    assert "--gpu-layers 20 needs 330.0 MiB of A for 64 tokens at once" in str(error.value)
    assert "A (145.0 MiB usable): so many fit: --gpu-layers 7;" in str(error.value)
    assert placement.choose(force=True).places.layers == (20,)
    assert Trials().placement([device("A", 145)], "7", recompute="none").choose().places.layers == (7,)


def test_what_answers_take_is_left() -> None:
    found = Trials().placement([device("A", 145)], recompute="none", beside_bytes=15 * MIB).choose()
    assert found.places.layers == (6,)


def test_fewer_after_all() -> None:
    placement = Trials().placement([device("A", 1000)])
    numbers, places = [], placement.choose().places
    while (fewer := placement.fewer(places)) is not None:
        places = fewer.places
        numbers.append(places.n_layers)
    assert numbers[0] == 29
    assert numbers[-1] == 0
    assert numbers == sorted(set(numbers), reverse=True)
    given = Trials().placement([device("A", 1000)], "12")
    assert given.fewer(given.choose().places) is None


def test_layers_that_a_device_lacks_an_operation_for() -> None:
    lacking = {3: "SSM_SCAN", 5: "SSM_SCAN", 32: "CUMSUM"}
    choice = Trials(lacking=lacking).placement([device("A", 1000)]).choose()
    assert choice.places == Places(("A",), (33,), (3, 5, 32))
    assert choice.lines == (
        "Layers 3, 5 stay on the CPU: A can't do SSM_SCAN",
        "The output head stays on the CPU: A can't do CUMSUM",
    )
    few = Trials(lacking=lacking).placement([device("A", 1000)], "4").choose()
    assert few.places == Places(("A",), (4,), (32,))
    assert len(few.lines) == 1
    none = Trials(4, dict.fromkeys(range(4), "ROPE")).placement([device("A", 1000)]).choose()
    assert none.places == Places()
    assert none.lines[0] == "Layers 0, 1, 2 and the output head stay on the CPU: A can't do ROPE"


def test_shares() -> None:
    devices = [device("A", 300), device("B", 100)]

    def shares(
        n: int, split: tuple[float, ...] = (), sizes: tuple[int, ...] = (10,) * 9, usable: int = 300
    ) -> dict[str, int]:
        wanted = Wanted(tuple(devices), (usable, 100), GpuLayers(), split)
        places = shared_out(wanted, sizes, n, {"A": usable, "B": 100})
        return dict(zip(places.devices, places.layers, strict=True))

    assert shares(8) == {"A": 6, "B": 2}
    assert shares(8, (1, 1)) == {"A": 4, "B": 4}
    assert shares(9, (1, 2)) == {"A": 3, "B": 6}
    assert shares(1) == {"A": 1}
    assert shares(2, (1, 100)) == {"B": 2}
    assert shares(9, (), (*(10,) * 8, 200), 100) == {"A": 8, "B": 1}  # by bytes, not by number
    assert shares(9, (1, 1), (*(10,) * 8, 200), 100) in ({"A": 4, "B": 5}, {"A": 5, "B": 4})


def test_what_may_be_used() -> None:
    assert usable_bytes(device("A", 1000), DeviceMemory()) == 900 * MIB
    assert usable_bytes(device("A", 24 << 10), DeviceMemory()) == 23 << 30
    assert usable_bytes(device("A", 1000), DeviceMemory.parse("600M")) == 600 * MIB
    assert usable_bytes(device("A", 1000), DeviceMemory.parse("6G")) == 1000 * MIB
    assert usable_bytes(device("A", 1000), DeviceMemory.parse("25%")) == 500 * MIB


@pytest.mark.parametrize("text", ["6", "0%", "120%", "-1G", "6Gb/s", "G", "0M"])
def test_wrong_amounts_of_memory(text: str) -> None:
    with pytest.raises(GgtuneError, match="a size such as 6G"):
        DeviceMemory.parse(text)


@pytest.mark.parametrize("text", ["", "-1", "some", "1.5", "1,2"])
def test_wrong_numbers_of_layers(text: str) -> None:
    with pytest.raises(GgtuneError, match="auto, all or a number"):
        GpuLayers.parse(text)


def test_names_of_layers() -> None:
    assert layers_text((0, 1, 2, 3, 7, 8), 8) == "layers 0 to 3, 7 and the output head"
    assert layers_text((4,), 8) == "layer 4"
    assert layers_text((8,), 8) == "the output head"
    assert layers_text((), 8) == "no layer"
