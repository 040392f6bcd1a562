import dataclasses

import pytest

from ggtune.config import TrainConfig, defaults, differences, setting_of
from ggtune.errors import GgtuneError


def config(**changes: object) -> TrainConfig:
    return TrainConfig(**{"model": "m.gguf", "data": "d.csv", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0),
        ("ctx", 1),
        ("batch", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("holdout", "120%"),
        ("schedule", "step"),
        ("loss_on", "question"),
        ("targets", ()),
        ("alpha", 0.0),
        ("min_lr_ratio", 1.5),
        ("stop_patience", 0),
        ("threads", -1),
        ("model", ""),
    ],
)
def test_each_wrong_value_is_named(field: str, value: object) -> None:
    with pytest.raises(GgtuneError, match="--" + field.replace("_", "-")):
        config(**{field: value})


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(GgtuneError, match=r"--batch.*--rank"):
        config(rank=0, batch=0)


def test_a_run_needs_an_end() -> None:
    with pytest.raises(GgtuneError, match="nothing ends the run"):
        config(epochs=0.0)
    config(epochs=0.0, stop_loss=0.1)


def test_json_round_trip_and_unknown_fields() -> None:
    one = config(targets=("attn_q", "attn_v"), alpha=32.0, stop_loss=0.1)
    assert TrainConfig.from_dict(one.to_dict()) == one
    with pytest.raises(GgtuneError, match="bogus"):
        TrainConfig.from_dict({**one.to_dict(), "bogus": 1})


def test_a_negative_seed_is_drawn() -> None:
    assert config(seed=-1).seed >= 0


def test_only_what_changes_the_result_is_a_difference() -> None:
    assert differences(config(), config(threads=4, epochs=9.0, keep=1, data="moved.csv")) == []
    assert differences(config(), config(lr=1e-3)) == ["--lr was 0.0002 and is 0.001"]


def test_finetune_has_the_old_defaults() -> None:
    old = defaults("finetune")
    expected = {
        "rank": 4,
        "lr": 1e-3,
        "loss_on": "all",
        "batch": 8,
        "max_steps": 256,
        "ctx": 128,
        "warmup": 100.0,
        "decay_steps": 1000,
        "min_lr_ratio": 0.1,
        "weight_decay": 0.1,
        "clip": 1.0,
        "save_every": 10,
    }
    assert {name: old[name] for name in expected} == expected
    assert defaults("train")["rank"] == 16


def test_every_field_has_help() -> None:
    assert all(setting_of(f).help for f in dataclasses.fields(TrainConfig))
