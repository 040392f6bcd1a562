"""How many tokens are computed at once by default."""

from types import SimpleNamespace
from typing import Any

import pytest

from ggtune.train.build import default_micro_batch


def model(**keys: str) -> Any:
    return SimpleNamespace(architecture="x", metadata=lambda: {f"x.{key}": value for key, value in keys.items()})


def engine(bytes_per_token: int) -> Any:
    return SimpleNamespace(memory=lambda n_tokens, n_targets, n_sequences: {"compute": n_tokens * bytes_per_token})


@pytest.mark.parametrize(
    ("keys", "context", "expected"),
    [
        ({}, 128, 512),
        ({}, 700, 700),
        ({"expert_count": "8", "expert_used_count": "2"}, 128, 512),  # 256 would do
        ({"expert_count": "128", "expert_used_count": "8"}, 128, 1024),
        ({"expert_count": "128", "expert_used_count": "8"}, 1500, 1500),
        ({"expert_count": "512", "expert_used_count": "8"}, 128, 2048),
        ({"expert_count": "64", "expert_used_count": "[6, 6, 4]"}, 128, 512),  # not a number
    ],
)
def test_every_expert_gets_rows(keys: dict[str, str], context: int, expected: int) -> None:
    assert default_micro_batch(context, model(**keys), engine(1)) == expected


def test_only_as_far_as_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggtune.train.build.available_memory", lambda: 1000 * 1024)
    mixture = model(expert_count="128", expert_used_count="8")
    assert default_micro_batch(128, mixture, engine(1000)) == 1024
    assert default_micro_batch(128, mixture, engine(1001)) == 512
