"""Where the weights of a GGUF file come from, and PEFT's adapters in its layout.

llama.cpp's converter reorders rows and columns, splits matrices, and stacks those of the experts. What it does with a
weight is read off a model whose weights are numbered: a number in the file says which entry of which parameter it is.
An adapter follows from that: where W' = W[rows][:, columns], the pair A[:, columns], B[rows] makes the same change to
W' as A, B to W.

Where the file has one parameter in several tensors (gate and up of the experts, which transformers stores as one), each
has a pair of its own of rank r there. In PEFT that is one pair of rank n r in whose B each tensor's rows have r columns
to themselves, and zeros elsewhere: ``masks``. A zero's gradient is struck out; AdamW then leaves it zero, and does to
every other entry what it would do to it in a pair by itself.

All weights are adapted as parameters: some linears of shared experts PEFT would take for the experts. It also refuses
``out_proj`` of some models with states, which their fused kernels would read past the adapter; PyTorch's operations,
which run here, do not, and ``check_merged`` and the comparison with llama.cpp would tell.
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import peft
import torch
import transformers
from peft.tuners.lora.layer import ParamWrapper

from golden.families import SparseFamily

FIRST_NUMBER = 1 << 20  # above it, float32 holds every whole number to 2^24

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Place:
    """A tensor of the file, ``tensor[e, i, j] = parameter[e, rows[i], columns[j]]``, or transposed there."""

    tensor: str
    rows: np.ndarray
    columns: np.ndarray
    transposed: bool


def targets_of(model: transformers.PreTrainedModel, family: SparseFamily) -> list[str]:
    """Names of the parameters that the family adapts: weights of linears, experts and routers."""
    linears = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    names = [name for name in linears if name.split(".")[-2] in family.targets]
    names += [name for name, _ in model.named_parameters() if name.endswith(family.experts or ("\n",))]
    return [name for name in names if not re.search(family.without, name)]


def read_places(
    model: transformers.PreTrainedModel, names: list[str], convert: Callable[[torch.nn.Module], Arrays]
) -> dict[str, list[Place]]:
    """Find the tensors that hold each named parameter; one that the file does not hold is left out.

    ``convert`` gives the tensors of the file that llama.cpp's converter makes of a model.
    """
    parameters = dict(model.named_parameters())
    kept = {name: parameters[name].detach().clone() for name in names}
    starts, end = [], FIRST_NUMBER
    for name in names:
        starts.append(end)
        parameter = parameters[name]
        with torch.no_grad():
            parameter.copy_(torch.arange(end, end + parameter.numel()).reshape(parameter.shape))
        end += parameter.numel()
    assert end < 1 << 24
    arrays = convert(model)
    with torch.no_grad():
        for name, values in kept.items():
            parameters[name].copy_(values)

    places: dict[str, list[Place]] = {}
    for tensor, array in arrays.items():
        if array.min() < FIRST_NUMBER:
            continue
        numbers = array.astype(np.int64)
        assert np.array_equal(numbers, array), f"{tensor} was not only rearranged"
        sources = np.unique(np.searchsorted(starts, numbers, side="right") - 1)
        assert len(sources) == 1, f"{tensor} is made of several parameters"
        name = names[sources[0]]
        place = _place(tensor, numbers - starts[sources[0]], tuple(parameters[name].shape))
        if place is not None:
            places.setdefault(name, []).append(place)
    for name, of_name in places.items():
        assert len({place.transposed for place in of_name}) == 1, name
        rows = np.concatenate([place.rows for place in of_name])
        assert len(np.unique(rows)) == len(rows), f"the file holds rows of {name} twice"
    return places


def _place(tensor: str, numbers: np.ndarray, shape: tuple[int, ...]) -> Place | None:
    """Read rows and columns off ``numbers``, flat indices into ``shape``; None if it is no matrix per expert."""
    n_experts = shape[0] if len(shape) == 3 else 1
    numbers = numbers.reshape((1,) * (3 - numbers.ndim) + numbers.shape)  # one row is a vector in the file
    if len(numbers) != n_experts:
        return None
    experts, first, second = np.unravel_index(numbers, (n_experts, *shape[-2:]))
    assert np.array_equal(experts, np.broadcast_to(np.arange(n_experts)[:, None, None], experts.shape)), tensor
    transposed = bool(first[0, 0, 0] == first[0, -1, 0] and first.shape[1] > 1)
    rows, columns = (second, first) if transposed else (first, second)
    place = Place(tensor, rows[0, :, 0], columns[0, 0, :], transposed)
    assert np.array_equal(rows, np.broadcast_to(place.rows[None, :, None], rows.shape)), tensor
    assert np.array_equal(columns, np.broadcast_to(place.columns[None, None, :], columns.shape)), tensor
    assert len(np.unique(place.columns)) == shape[-2 if transposed else -1], f"{tensor} lacks columns"
    return place


class AfterScale(ParamWrapper):  # type: ignore[misc]
    """PEFT's layer for experts whose outputs the model scales, ``scale`` (n_experts,), but added as llama.cpp adds it.

    PEFT adapts the weight, s (W + B A) x; llama.cpp the product, s W x + B A x. Here the weight is W + B A / s.
    """

    scale: torch.Tensor

    @classmethod
    def make_of(cls, layer: ParamWrapper, scale: np.ndarray) -> None:
        layer.__class__ = cls
        layer.register_buffer("scale", torch.from_numpy(scale.reshape(-1, 1, 1)), persistent=False)

    def get_delta_factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        left, right, scaling = super().get_delta_factors(adapter_name)
        return left / self.scale, right, scaling

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        return super().get_delta_weight(adapter_name) / self.scale


def scale_beside(arrays: Arrays, tensor: str) -> np.ndarray | None:
    """Get what a file scales the outputs of experts with, (n_experts,), if it does."""
    scale = arrays.get(tensor.replace(".weight", ".scale"))
    return scale if scale is not None and scale.shape == arrays[tensor].shape[:-2] else None


@dataclass(frozen=True)
class Pair:
    """A LoRA layer of PEFT's, and the tensors of the file that its parameter became."""

    name: str  # of the parameter that it adapts
    layer: ParamWrapper
    places: list[Place]
    rank: int  # in the file

    @property
    def parameters(self) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
        return self.layer.lora_A["default"].weight, self.layer.lora_B["default"].weight

    def factors(self, A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """View tensors in the shapes of PEFT's A and B as the file's, rows and columns in the parameter's order.

        A is then ``(n_experts, n r, n_in)``, B ``(n_experts, n_out, n r)``; PEFT has the experts' side by side.
        """
        n_experts = self.layer.num_experts
        a = A.reshape(n_experts, -1, A.shape[-1])
        b = B.reshape(B.shape[0], -1, n_experts).permute(2, 0, 1)
        if self.layer._param_ndim == 3 and not self.layer._did_swap_in_out_features:
            a, b = b.transpose(-2, -1), a.transpose(-2, -1)
        if self.places[0].transposed:
            a, b = b.transpose(-2, -1), a.transpose(-2, -1)
        return a, b

    def in_file(self, A: torch.Tensor, B: torch.Tensor) -> Arrays:
        """Rearrange such tensors as the file has them: ``<tensor>.lora_a`` and ``.lora_b``."""
        a, b = (factor.detach().numpy() for factor in self.factors(A, B))
        arrays = {}
        for n, place in enumerate(self.places):
            own = slice(n * self.rank, (n + 1) * self.rank)
            pair = a[:, own][:, :, place.columns], b[:, place.rows][:, :, own]
            for end, array in zip(("lora_a", "lora_b"), pair, strict=True):
                arrays[f"{place.tensor}.{end}"] = np.ascontiguousarray(array if len(array) > 1 else array[0])
        return arrays

    def masks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ones in the shapes of PEFT's A and B, but zeros in B for what the file's pairs have no entry for."""
        A, B = (torch.zeros_like(parameter) for parameter in self.parameters)
        a, b = self.factors(A, B)
        a.fill_(1)
        for n, place in enumerate(self.places):
            b[:, place.rows, n * self.rank : (n + 1) * self.rank] = 1
        return A, B


def add_pairs(
    model: transformers.PreTrainedModel,
    places: dict[str, list[Place]],
    base: Arrays,
    rank: int,
    alpha: float,
    generator: torch.Generator,
) -> tuple[peft.PeftModel, list[Pair]]:
    """Add LoRA with A ~ N(0, 1/n_in) and B ~ N(0, 0.3^2) to the parameters in ``places``; ``base`` is the file."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=[],
        target_parameters=sorted(places),
        rank_pattern={re.escape(name): rank * len(tensors) for name, tensors in places.items() if len(tensors) > 1},
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following rank_pattern keys did not match")  # they do: see below
        with mock.patch("peft.tuners.tuners_utils._check_lora_target_modules_mamba"):
            adapted = peft.get_peft_model(model, config).eval()
    pairs = []
    for layer in (module for module in adapted.modules() if isinstance(module, ParamWrapper)):
        parameter = layer.get_param()
        name = name_of.pop(id(parameter))
        pair = Pair(name, layer, places[name], rank)
        layer.scaling["default"] = alpha / rank
        if (scale := scale_beside(base, pair.places[0].tensor)) is not None:
            AfterScale.make_of(layer, scale)
        A, B = pair.parameters
        a, b = pair.factors(A.data, B.data)
        assert a.shape[1] == rank * len(pair.places), name
        a.copy_(torch.randn(a.shape, generator=generator) / a.shape[-1] ** 0.5)
        b.copy_(torch.randn(b.shape, generator=generator) * 0.3)
        for weight, mask in zip(pair.parameters, pair.masks(), strict=True):
            weight.data *= mask
        pairs.append(pair)
    assert {pair.name for pair in pairs} == set(places)
    return adapted, pairs


def write_adapter(path: Path, architecture: str, alpha: float, arrays: Arrays) -> None:
    """Write a LoRA adapter in F32 as llama.cpp reads it."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_merged(base: Arrays, merged: Arrays, adapter: Arrays, scale: float) -> None:
    """Raise if the converted merged model is not the converted base plus ``scale`` B A in each adapted tensor.

    Where the outputs are scaled that is B A over this scale (``AfterScale``).
    """
    for name, values in merged.items():
        expected = base[name].astype(np.float64)
        if f"{name}.lora_a" in adapter:
            change = scale * (adapter[f"{name}.lora_b"] @ adapter[f"{name}.lora_a"])
            beside = scale_beside(base, name)
            expected = expected + (change if beside is None else change / beside[:, None, None])
        if not np.allclose(values, expected, rtol=0, atol=1e-5):
            raise AssertionError(f"{name} as PEFT merges it is not W + scale B A")
