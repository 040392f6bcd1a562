"""How the pairs of experts lie in PEFT's adapters, and in GGUF files.

A GGUF file has a stack of matrices for each projection of the experts (``ffn_gate_exps``, ``ffn_up_exps``, or both in
one, ``ffn_gate_up_exps``; ``ffn_down_exps``) and of an adapter a stack of A ``(n_expert, rank, n_in)`` and of B
``(n_expert, n_out, rank)``. Hugging Face models have them in two ways:

- as parameters ``gate_up_proj`` and ``down_proj`` of a module ``experts``, to which PEFT's ``target_parameters`` puts
  one pair: A ``(n_expert * rank, n_in)``, an expert after the other, and B ``(n_out, rank * n_expert)``, of each column
  of B that of all experts (``tuners/lora/layer.py``, ``ParamWrapper``). Of two parameters of one module the pair of the
  first lies under a ``base_layer`` more.
- as a module for each expert (``experts.3.gate_proj``, mixtral's ``experts.3.w1``), each with a pair of its own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ggtune.interchange.peft_file import FloatArray

GATE, UP, DOWN, GATE_UP = "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps"
PARAMETERS = {GATE_UP: "gate_up_proj", DOWN: "down_proj"}  # in the order in which the modules declare them

_MODULE = re.compile(r"(?:.+\.)?layers\.(?P<layer>\d+)\.(?:.+\.)?experts\.(?P<expert>\d+)\.(?P<part>\w+)")
_PARAMETER = re.compile(r"(?:.+\.)?layers\.(?P<layer>\d+)\.(?:.+\.)?experts")
_PARTS = {"gate_proj": GATE, "w1": GATE, "up_proj": UP, "w3": UP, "down_proj": DOWN, "w2": DOWN}


@dataclass(frozen=True)
class Stack:
    """A ``(n_expert, rank, n_in)`` and B ``(n_expert, n_out, rank)``; the product is scaled by ``scale``."""

    a: FloatArray
    b: FloatArray
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Of each expert's pair."""
        return int(self.a.shape[1])

    def scaled_for(self, alpha: float) -> tuple[FloatArray, FloatArray]:
        """Return A and B such that alpha / rank is the factor of their product."""
        return self.a, self.b * np.float32(self.scale * self.rank / alpha)


@dataclass(frozen=True)
class ExpertModule:
    """What a name such as ``model.layers.0.mlp.experts.3.gate_proj`` says."""

    layer: int
    expert: int
    kind: str  # ffn_gate_exps


def expert_module(module: str) -> ExpertModule | None:
    """Take the name of a module of one expert apart, None where it is none."""
    match = _MODULE.fullmatch(module)
    if match is None or match["part"] not in _PARTS:
        return None
    return ExpertModule(int(match["layer"]), int(match["expert"]), _PARTS[match["part"]])


def layer_of_experts(module: str) -> int | None:
    """Return the layer of a module with all experts (``model.layers.0.mlp.experts``), None where it is none."""
    match = _PARAMETER.fullmatch(module)
    return int(match["layer"]) if match else None


def from_parameter(a: FloatArray, b: FloatArray, n_expert: int) -> tuple[FloatArray, FloatArray]:
    """Take PEFT's pair of a parameter apart."""
    rank = a.shape[0] // n_expert
    return a.reshape(n_expert, rank, -1), b.reshape(b.shape[0], rank, n_expert).transpose(2, 0, 1)


def to_parameter(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Undo :func:`from_parameter`."""
    n_expert, rank, n_in = a.shape
    return a.reshape(n_expert * rank, n_in), b.transpose(1, 2, 0).reshape(b.shape[1], rank * n_expert)


def stacked(pairs: Mapping[int, tuple[FloatArray, FloatArray, float]], n_expert: int) -> Stack:
    """Stack the pairs (A, B, scale) of single experts; those that have none get zeros.

    The rank is the largest of theirs, filled up with zeros.
    """
    rank = max(a.shape[0] for a, _, _ in pairs.values())
    first_a, first_b, scale = next(iter(pairs.values()))
    a = np.zeros((n_expert, rank, first_a.shape[1]), np.float32)
    b = np.zeros((n_expert, first_b.shape[0], rank), np.float32)
    for expert, (own_a, own_b, own_scale) in pairs.items():
        a[expert, : len(own_a)] = own_a
        b[expert, :, : len(own_a)] = own_b * np.float32(own_scale / scale)
    return Stack(a, b, scale)


def halves(stack: Stack, *, interleaved: bool) -> tuple[Stack, Stack]:
    """Split a pair of gate and up in one matrix: A is that of both. ``interleaved``: rows of the two take turns."""
    n = stack.b.shape[1] // 2
    gate, up = (np.s_[:, ::2], np.s_[:, 1::2]) if interleaved else (np.s_[:, :n], np.s_[:, n:])
    return Stack(stack.a, stack.b[gate], stack.scale), Stack(stack.a, stack.b[up], stack.scale)


def fused(gate: Stack | None, up: Stack | None, *, interleaved: bool) -> Stack:
    """Make one pair for gate and up in one matrix: of both ranks together, but where their A are the same."""
    if gate is None or up is None:
        given = gate or up
        assert given is not None
        none = Stack(given.a, np.zeros_like(given.b), given.scale)
        gate, up = gate or none, up or none
    if np.array_equal(gate.a, up.a):
        a, b_gate, b_up = gate.a, gate.b, up.b * np.float32(up.scale / gate.scale)
    else:
        a = np.concatenate([gate.a, up.a], axis=1)
        b_gate = np.concatenate([gate.b, np.zeros((*up.b.shape[:2], up.rank), np.float32)], axis=2)
        b_up = up.b * np.float32(up.scale / gate.scale)
        b_up = np.concatenate([np.zeros((*gate.b.shape[:2], gate.rank), np.float32), b_up], axis=2)
    b = np.stack([b_gate, b_up], axis=2).reshape(a.shape[0], -1, a.shape[1]) if interleaved else None
    return Stack(a, np.concatenate([b_gate, b_up], axis=1) if b is None else b, gate.scale)
