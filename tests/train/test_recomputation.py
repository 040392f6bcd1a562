"""How many layers are computed again, for the memory that is free."""

import dataclasses
from typing import cast

import pytest

from ggtune._core import Trainer
from ggtune.config import TrainConfig
from ggtune.demo import DATA, MODEL
from ggtune.errors import GgtuneError
from ggtune.train.build import Build, build
from ggtune.train.recomputation import set_recomputation


def built(recompute: str) -> Build:
    config = TrainConfig(
        model=str(MODEL), data=str(DATA), ctx=64, rank=2, targets=("attn_q",), threads=1, recompute=recompute
    )
    return build(config, header_only=True)


def test_all_or_none() -> None:
    none, layers = built("none"), built("layers")
    keeping = set_recomputation(none, 0)
    assert none.engine.recompute_layers == 0
    again = set_recomputation(layers, 1 << 40)
    assert layers.engine.recompute_layers == layers.model.n_layer - 1
    assert again["compute"] < keeping["compute"]
    assert again["checkpoint"] == keeping["checkpoint"] == 12 * none.adapter.n_params


def test_auto_takes_as_few_as_fit() -> None:
    auto = built("auto")
    engine, n_layer = auto.engine, auto.model.n_layer
    beside = 12 * auto.adapter.n_params
    totals = []
    for engine.recompute_layers in range(n_layer):
        totals.append(sum(engine.memory(*auto.plan.largest).values()))
    assert totals == sorted(totals, reverse=True)
    for n_layers, total in enumerate(totals):
        needed = set_recomputation(auto, int((total + beside) / 0.9) + 1)
        assert engine.recompute_layers == totals.index(total) <= n_layers
        assert sum(needed.values()) == total + beside
    set_recomputation(auto, 1_000_000)
    assert engine.recompute_layers == n_layer - 1


class Uncut:
    """An engine whose graph can't be cut between its layers."""

    n_recomputable_layers = 0
    recompute_layers = 0

    def memory(self, *shape: int) -> dict[str, int]:
        assert self.recompute_layers == 0, shape
        return {"compute": 1000}


def test_a_graph_that_cannot_be_cut() -> None:
    for how in ("none", "auto"):
        uncut = dataclasses.replace(built(how), engine=cast(Trainer, Uncut()))
        assert set_recomputation(uncut, 10)["compute"] == 1000
    uncut = dataclasses.replace(built("layers"), engine=cast(Trainer, Uncut()))
    with pytest.raises(GgtuneError, match="none of them can be computed again"):
        set_recomputation(uncut, 10)
