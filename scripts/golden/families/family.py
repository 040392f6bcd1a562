"""What a family of tiny random models is, and how to build one."""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

N_VOCAB = 288
N_CONTEXT = 512

# all exceed the sliding windows and phi3-long's original context
SAMPLE_LENGTHS = (25, 38, 17)
# the chunks of 64 in which some compute states, too
LONG_SAMPLE_LENGTHS = (25, 90, 17)

SPLIT_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": N_CONTEXT,
}


@dataclass(frozen=True)
class Family:
    """How to make one tiny model: transformers' configuration class, what differs from SIZES, which linears."""

    config: type[transformers.PretrainedConfig]
    options: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = SPLIT_LINEARS
    sentence_piece: bool = False
    norm_offset: float = 1.0  # gemma stores its norms' weights minus one
    common_names: bool = True  # the configuration class calls the sizes what llama's calls them


@dataclass(frozen=True)
class SparseFamily(Family):
    """A family whose adapter llama.cpp's converter of adapters does not know, or not all of it (``golden.layouts``)."""

    experts: tuple[str, ...] = ()  # ends of the names of parameters that belong to no linear: experts, routers
    without: str = r"(?!)"  # targets whose names have this in them get no adapter
    byte_fallback: bool = False  # a tokenizer.json as gemma4's
    special_tokens: tuple[str, ...] = ()  # that the converter looks for in a byte-level tokenizer
    sample_lengths: tuple[int, ...] = SAMPLE_LENGTHS
    converter_arguments: tuple[str, ...] = ()
    saved_config: dict[str, Any] = field(default_factory=dict)  # what config.json says otherwise; None: it lacks that
    seed: int = 0  # so chosen that float32 does (``golden.pytorch.check_precision``)


# parameters and buffers that are neither norms nor matrices: mean and standard deviation by the end of the name
OTHERS = (
    (r"dt_bias|dt_proj\.bias", -1.5, 0.5),  # softplus of it is a step size
    (r"A_log", 0.5, 0.5),
    # so large that SiLU leaves hardly anything negative: a product of queries and keys near 0 would blow rounding up
    (r"linear_attn\.conv1d\.weight", 0.0, 1.5),
    (r"conv1d\.weight|conv\.conv\.weight", 0.0, 0.5),
    (r"linear_attn\.norm\.weight", 1.0, 0.3),
    (r"e_score_correction_bias|expert_bias", 0.0, 0.1),
    (r"layer_scalar|per_expert_scale|router\.scale", 1.0, 0.3),
    (r"sinks", 0.0, 1.0),
)


def build_model(family: Family, generator: torch.Generator) -> transformers.PreTrainedModel:
    """Build a float32 model whose every parameter is random: norm weights around 1, biases not 0."""
    options = {"vocab_size": N_VOCAB, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
    options |= (SIZES if family.common_names else {}) | family.options
    config = family.config(**options)
    eager = {"attn_implementation": "eager"}
    if isinstance(family, SparseFamily) and family.experts:
        eager["experts_implementation"] = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, **eager, dtype=torch.float32)
    embedding = model.get_input_embeddings().weight
    others = OTHERS if isinstance(family, SparseFamily) else ()
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if others and name in model.state_dict()]
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *buffers]:
            values = torch.randn(parameter.shape, generator=generator)
            of_others = [row for row in others if re.search(rf"(^|\.)({row[0]})$", name)]
            if of_others:
                parameter.copy_(of_others[0][1] + of_others[0][2] * values)
            elif parameter is embedding:
                parameter.copy_(0.35 * values)
            elif parameter.ndim > 1 or name.endswith("bias" if others else ".bias"):
                parameter.copy_(0.2 * values)
            else:
                parameter.copy_(family.norm_offset + 0.3 * values)
    return model.eval()
