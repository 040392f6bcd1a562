import dataclasses

import pytest

from ggtune.config import TrainConfig, defaults, differences, rounding_differences
from ggtune.errors import GgtuneError
from ggtune.setting import setting_of
from ggtune.setting_texts import SaveInterval


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
        ("save_every", "often"),
        ("save_every", "1.5"),
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


@pytest.mark.parametrize("changed", [{"rank": "4"}, {"lr": "fast"}, {"targets": [1]}, {"model": None}, {"rslora": 1}])
def test_values_of_a_wrong_type(changed: dict[str, object]) -> None:
    with pytest.raises(GgtuneError, match="wrong type: " + next(iter(changed))):
        TrainConfig.from_dict({**config().to_dict(), **changed})


@pytest.mark.parametrize(
    ("text", "interval"),
    [("0", (None, None)), ("50", (50, None)), ("10m", (None, 600)), ("1.5H", (None, 5400)), ("0s", (None, None))],
)
def test_save_intervals(text: str, interval: tuple[int | None, float | None]) -> None:
    parsed = SaveInterval.parse(text)
    assert (parsed.steps, parsed.seconds) == interval


def test_what_changes_the_rounding_is_named() -> None:
    assert rounding_differences(config(), config(precision="f32", keep=1)) == ["--precision was 'auto' and is 'f32'"]


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
        "save_every": "10",
    }
    assert {name: old[name] for name in expected} == expected
    assert config().rank == 16


def test_stop_loss_alone_goes_on_until_it_is_reached() -> None:
    alone = config(stop_loss=0.1)
    assert alone.until_stop_loss
    assert (alone.epochs, alone.lr, alone.schedule, alone.warmup) == (None, None, "constant", 10)
    assert alone.stop_plateau > 0
    for given in ({"epochs": 7.0}, {"max_steps": 9}):
        limited = config(stop_loss=0.1, **given)
        assert not limited.until_stop_loss
        assert (limited.lr, limited.schedule, limited.warmup, limited.stop_plateau) == (2e-4, "cosine", 0.05, 0)
        assert limited.epochs == given.get("epochs", 3.0)
    assert config(stop_loss=0.1, schedule="linear", lr=1e-3).schedule == "linear"
    old = TrainConfig.for_face("finetune", model="m", data="d", stop_loss=0.1)
    assert (old.epochs, old.max_steps, old.schedule, old.lr, old.stop_plateau) == (-1, 256, "cosine", 1e-3, 0)


def test_a_run_until_its_stop_loss_goes_on_as_it_was() -> None:
    run = config(stop_loss=0.1, lr=3e-3)
    assert run.continued({}) == run
    steps = run.continued({"max_steps": 500})
    assert (steps.epochs, steps.max_steps, steps.schedule) == (0, 500, "constant")
    epochs = run.continued({"epochs": 9.0})
    assert (epochs.epochs, epochs.schedule, epochs.stop_plateau) == (9, "constant", run.stop_plateau)
    assert differences(run, steps) == differences(run, epochs) == []
    assert config().continued({"max_steps": 500}).epochs == 3


def test_settings_of_an_adapter_stay_open() -> None:
    assert (config(from_adapter="a.gguf").rank, config(from_adapter="a.gguf").targets) == (None, None)
    assert TrainConfig.from_dict(config(from_adapter="a.gguf").to_dict()) == config(from_adapter="a.gguf")


def test_every_field_has_help() -> None:
    assert all(setting_of(f).help for f in dataclasses.fields(TrainConfig))
