"""How many layers are computed again, for the memory that is free."""

from typing import cast

import pytest

from ggtune._core import Adapter, Model, Trainer
from ggtune.demo import MODEL
from ggtune.errors import GgtuneError
from ggtune.train.recomputation import set_recomputation

SHAPE = (256, 64, 4)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(str(MODEL), header_only=True)


@pytest.fixture
def engine(model: Model) -> Trainer:
    return Trainer(model, Adapter(model, rank=2, alpha=2.0, targets=["attn_q"]), context=256, threads=1)


def test_all_or_none(model: Model, engine: Trainer) -> None:
    keeping = set_recomputation(engine, "none", model.n_layer, SHAPE, 0, {})
    assert engine.recompute_layers == 0
    again = set_recomputation(engine, "layers", model.n_layer, SHAPE, 1 << 40, {})
    assert engine.recompute_layers == model.n_layer - 1
    assert again["compute"] < keeping["compute"]


def test_auto_takes_as_few_as_fit(model: Model, engine: Trainer) -> None:
    totals = []
    for engine.recompute_layers in range(model.n_layer):
        totals.append(sum(engine.memory(*SHAPE).values()))
    assert totals == sorted(totals, reverse=True)
    for n_layers, total in enumerate(totals):
        needed = set_recomputation(engine, "auto", model.n_layer, SHAPE, int((total + 100) / 0.9) + 1, {"other": 100})
        assert engine.recompute_layers == totals.index(total) <= n_layers
        assert sum(needed.values()) == total + 100
    set_recomputation(engine, "auto", model.n_layer, SHAPE, 1_000_000, {})
    assert engine.recompute_layers == model.n_layer - 1


class Uncut:
    """An engine whose graph can't be cut between its layers."""

    n_recomputable_layers = 0
    recompute_layers = 0

    def memory(self, *shape: int) -> dict[str, int]:
        assert self.recompute_layers == 0, shape
        return {"compute": 1000}


def test_a_graph_that_cannot_be_cut() -> None:
    engine = cast(Trainer, Uncut())
    for how in ("none", "auto"):
        assert set_recomputation(engine, how, 4, SHAPE, 10, {}) == {"compute": 1000}
    with pytest.raises(GgtuneError, match="none of them can be computed again"):
        set_recomputation(engine, "layers", 4, SHAPE, 10, {})
