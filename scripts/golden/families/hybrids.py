"""Models with layers of several kinds: states beside attention, shared keys and values, embeddings per layer."""

from typing import Any

import transformers

from golden.families.dense import plain_rope
from golden.families.experts import EXPERTS, FOUR_EXPERTS, ROUTERS
from golden.families.family import LONG_SAMPLE_LENGTHS, SPLIT_LINEARS, Family, SparseFamily

DELTA_NET = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
MAMBA = ("in_proj", "out_proj")
QWEN3_NEXT: dict[str, Any] = {
    "num_hidden_layers": 3,
    "head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "rope_parameters": plain_rope(partial_rotary_factor=0.5),
}
QWEN3_5 = {**QWEN3_NEXT, "rope_parameters": plain_rope(partial_rotary_factor=0.5, mrope_section=[2, 1, 1])}
QWEN3_NEXT_EXPERTS = {
    **FOUR_EXPERTS,
    "num_experts": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
}

GRANITE_HYBRID: dict[str, Any] = {
    "num_hidden_layers": 3,
    "layer_types": ["mamba", "attention", "mamba"],
    "num_local_experts": 0,
    "intermediate_size": 32,
    "shared_intermediate_size": 32,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.0,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
    "position_embedding_type": "nope",
    "tie_word_embeddings": True,
}
GRANITE_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", *MAMBA, "input_linear", "output_linear")

# each layer is of one kind
NEMOTRON_H: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "ssm_state_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "chunk_size": 16,
    "time_step_min": 1e-30,  # below which transformers raises steps to it; llama.cpp knows no such limit
    "pad_token_id": 0,
}

GEMMA4: dict[str, Any] = {
    "head_dim": 8,
    "global_head_dim": 16,
    "hidden_size_per_layer_input": 0,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 8,
    "final_logit_softcapping": 4.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        "sliding_attention": plain_rope(),
    },
}

FAMILIES: dict[str, Family] = {
    "qwen35": SparseFamily(
        transformers.Qwen3_5TextConfig,
        QWEN3_5,
        (*SPLIT_LINEARS, *DELTA_NET),
        norm_offset=0.0,
        converter_arguments=("--no-mtp",),
        sample_lengths=LONG_SAMPLE_LENGTHS,
        seed=1,
    ),
    "qwen35moe": SparseFamily(
        transformers.Qwen3_5MoeTextConfig,
        {**QWEN3_5, **QWEN3_NEXT_EXPERTS},
        (*SPLIT_LINEARS, *DELTA_NET),
        experts=EXPERTS,
        norm_offset=0.0,
        converter_arguments=("--no-mtp",),
        sample_lengths=LONG_SAMPLE_LENGTHS,
    ),
    "qwen3next": SparseFamily(
        transformers.Qwen3NextConfig,
        {**QWEN3_NEXT, **QWEN3_NEXT_EXPERTS, "norm_topk_prob": True},
        (*SPLIT_LINEARS, "in_proj_qkvz", "in_proj_ba", "out_proj"),
        experts=EXPERTS,
        norm_offset=0.0,
        converter_arguments=("--no-mtp",),
        sample_lengths=LONG_SAMPLE_LENGTHS,
        seed=7,
    ),
    "lfm2": SparseFamily(
        transformers.Lfm2Config,
        {
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "block_auto_adjust_ff_dim": False,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
        },
        ("q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"),
    ),
    "lfm2moe": SparseFamily(
        transformers.Lfm2MoeConfig,
        {
            **FOUR_EXPERTS,
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "num_dense_layers": 1,
            "num_experts": 4,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
        },
        ("q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"),
        experts=EXPERTS,
    ),
    "granitehybrid": SparseFamily(
        transformers.GraniteMoeHybridConfig,
        GRANITE_HYBRID,
        GRANITE_LINEARS,
        saved_config={"layer_types": ["mamba", "attention", "mamba"], "num_experts_per_tok": None},
        sample_lengths=LONG_SAMPLE_LENGTHS,
    ),
    "granitehybrid-moe": SparseFamily(
        transformers.GraniteMoeHybridConfig,
        {**GRANITE_HYBRID, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24},
        GRANITE_LINEARS,
        experts=EXPERTS,
        saved_config={"layer_types": ["mamba", "attention", "mamba"]},
        sample_lengths=LONG_SAMPLE_LENGTHS,
    ),
    # attention and a state in every layer, side by side
    "falcon-h1": SparseFamily(
        transformers.FalconH1Config,
        {
            "mamba_d_ssm": 64,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 16,
            "mamba_chunk_size": 16,
            "head_dim": 8,
            "pad_token_id": 0,
        },
        (*SPLIT_LINEARS, *MAMBA),
        sample_lengths=LONG_SAMPLE_LENGTHS,
    ),
    "nemotron-h": SparseFamily(
        transformers.NemotronHConfig,
        {**NEMOTRON_H, "layers_block_type": ["mamba", "mlp", "attention", "mlp"]},
        ("q_proj", "k_proj", "v_proj", "o_proj", *MAMBA, "up_proj", "down_proj"),
        common_names=False,
        # as published: transformers' own class would add settings of experts
        saved_config={
            "model_type": None,
            "layers_block_type": None,
            **dict.fromkeys(("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group")),
            "hybrid_override_pattern": "M-*-",
            "num_hidden_layers": 4,
        },
        sample_lengths=LONG_SAMPLE_LENGTHS,
    ),
    "nemotron-h-moe": SparseFamily(
        transformers.NemotronHConfig,
        {
            **NEMOTRON_H,
            "layers_block_type": ["mamba", "moe", "attention", "moe"],
            "n_routed_experts": 4,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 32,
            "num_experts_per_tok": 2,
            "routed_scaling_factor": 1.5,
        },
        ("q_proj", "k_proj", "v_proj", "o_proj", *MAMBA, "up_proj", "down_proj"),
        experts=("experts.up_proj", "experts.down_proj", *ROUTERS),
        common_names=False,
        sample_lengths=LONG_SAMPLE_LENGTHS,
    ),
    "jamba": SparseFamily(
        transformers.JambaConfig,
        {
            "num_hidden_layers": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 4,
            "attn_layer_offset": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "intermediate_size": 20,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "pad_token_id": 0,
        },
        (*SPLIT_LINEARS, *MAMBA, "x_proj"),  # transformers reads dt_proj.weight past an adapter
        experts=EXPERTS,
        sentence_piece=True,
        sample_lengths=LONG_SAMPLE_LENGTHS,
    ),
    "mamba2": SparseFamily(
        transformers.Mamba2Config,
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 16,
            "n_groups": 2,
            "chunk_size": 16,
            "residual_in_fp32": False,
            "pad_token_id": 0,
        },
        MAMBA,
        common_names=False,
        sample_lengths=LONG_SAMPLE_LENGTHS,
    ),
    "gemma4": SparseFamily(
        transformers.Gemma4TextConfig,
        {**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
        byte_fallback=True,
    ),
    # embeddings per layer; the last two layers take the keys and values of earlier ones
    "gemma4-e2b": SparseFamily(
        transformers.Gemma4TextConfig,
        {
            **GEMMA4,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 288,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
        },
        (*SPLIT_LINEARS, "per_layer_input_gate", "per_layer_projection"),
        byte_fallback=True,
        seed=2,
    ),
    # the outputs of experts are scaled
    "gemma4-moe": SparseFamily(
        transformers.Gemma4TextConfig,
        {
            **GEMMA4,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 24,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_hidden_layers": 2,
        },
        experts=EXPERTS,
        byte_fallback=True,
    ),
}
