"""Tiny random models, one per architecture, from transformers' configuration classes."""

from golden.families import dense, experts, hybrids
from golden.families.family import N_VOCAB, SPLIT_LINEARS, Family, SparseFamily, build_model

FAMILIES: dict[str, Family] = {**dense.FAMILIES, **experts.FAMILIES, **hybrids.FAMILIES}

__all__ = ["FAMILIES", "N_VOCAB", "SPLIT_LINEARS", "Family", "SparseFamily", "build_model"]
