"""What --targets stands for in models of all kinds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ggtune.config import LINEAR_GROUPS
from ggtune.errors import GgtuneError
from ggtune.train.targets import chosen_targets, experts_share, n_params


@dataclass
class Linear:
    kind: str
    n_in: int = 64
    n_out: int = 64
    n_mat: int = 1
    routed: bool = False


EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
DENSE = [Linear(kind) for kind in ("attn_q", "attn_k", "attn_output", "ffn_up", "ffn_down")] * 2
MIXTURE = [
    *(Linear(kind) for kind in ("attn_q", "attn_output", "ffn_gate_inp", "ffn_up_shexp", "ffn_down_shexp", "ssm_out")),
    Linear("ssm_beta", n_out=8),
    *(Linear(kind, n_mat=4, routed=True) for kind in EXPERTS),
    Linear("attn_k_b", n_mat=2),
    Linear("indexer.proj"),
]


def chosen(linears: list[Linear], *targets: str, rank: int = 4) -> list[str]:
    return list(chosen_targets(targets, linears, rank, "m.gguf").kinds)  # type: ignore[arg-type]


def test_of_a_dense_model_the_groups_are_all_there_is() -> None:
    everything = ["attn_q", "attn_k", "attn_output", "ffn_up", "ffn_down"]
    assert chosen(DENSE, "dense") == chosen(DENSE, "all") == everything
    assert chosen(DENSE, "attention") == everything[:3]
    assert chosen(DENSE, "ffn") == everything[3:]
    assert chosen(DENSE, "ffn_down", "attn_q") == ["attn_q", "ffn_down"]


def test_of_a_mixture() -> None:
    dense = ["attn_q", "attn_output", "ffn_up_shexp", "ffn_down_shexp", "ssm_out", "ssm_beta", "attn_k_b"]
    assert chosen(MIXTURE, "dense") == dense
    assert chosen(MIXTURE, "all") == [*dense[:-1], *EXPERTS, dense[-1]]
    assert chosen(MIXTURE, "experts") == list(EXPERTS)
    assert chosen(MIXTURE, "attention") == ["attn_q", "attn_output", "attn_k_b"]
    assert chosen(MIXTURE, "ffn") == ["ffn_up_shexp", "ffn_down_shexp"]
    assert chosen(MIXTURE, "attention", "ffn_gate_inp", "indexer.proj") == [
        *("attn_q", "attn_output", "ffn_gate_inp", "attn_k_b", "indexer.proj")
    ]


def test_a_minus_leaves_out() -> None:
    assert chosen(MIXTURE, "all", "-experts", "-ssm_beta") == [
        kind for kind in chosen(MIXTURE, "dense") if kind != "ssm_beta"
    ]
    assert chosen(MIXTURE, "-attention") == ["ffn_up_shexp", "ffn_down_shexp", "ssm_out", "ssm_beta"]
    assert chosen(MIXTURE, "-attention", "attn_q")[0] == "attn_q"
    assert chosen(DENSE, "-experts") == chosen(DENSE, "dense")


def test_groups_leave_out_what_is_narrower_than_the_rank() -> None:
    found = chosen_targets(("dense",), MIXTURE, 16, "m.gguf")  # type: ignore[arg-type]
    assert found.narrow == ("ssm_beta",)
    assert "ssm_beta" not in found.kinds
    assert "ssm_beta" in chosen(MIXTURE, "dense", "ssm_beta", rank=16)  # the engine refuses it, by its name
    assert chosen_targets(("dense",), MIXTURE, 8, "m.gguf").narrow == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        (
            ("attn_x",),
            "m.gguf has no linear attn_x; choose from those that it has, attn_q, attn_k, ",
        ),
        (("attn_q", "moe", "-expert"), "no linear moe, expert;"),
        (("experts",), "no linear experts;"),
        (("attention", "-attn_q", "-attn_k", "-attn_output"), "no linear of m.gguf is left, all are taken out"),
    ],
)
def test_what_is_wrong_is_told_with_what_there_is(targets: tuple[str, ...], text: str) -> None:
    with pytest.raises(GgtuneError) as caught:
        chosen(DENSE, *targets)
    assert text in str(caught.value)
    assert ", ".join(LINEAR_GROUPS) in str(caught.value)
    with pytest.raises(GgtuneError, match="all are narrower than the rank 65"):
        chosen(DENSE, "all", rank=65)


def test_each_expert_counts() -> None:
    assert n_params(MIXTURE[:1], 2) == 2 * 128  # type: ignore[arg-type]
    assert n_params(MIXTURE[7:10], 2) == 3 * 4 * 2 * 128  # type: ignore[arg-type]
    assert experts_share(MIXTURE, 1000) == "1.54M for experts, which take 23.4 MiB"  # type: ignore[arg-type]
    assert experts_share(DENSE, 4) == ""  # type: ignore[arg-type]
