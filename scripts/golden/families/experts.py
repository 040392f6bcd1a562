"""Mixtures of experts: attention as in a dense model, in whose place four experts stand, of which two are used."""

import transformers

from golden.families.dense import plain_rope
from golden.families.family import SPLIT_LINEARS, Family, SparseFamily

ROUTERS = (".gate.weight", ".router.weight", ".router.proj.weight")
EXPERTS = ("experts.gate_up_proj", "experts.down_proj", *ROUTERS)
FOUR_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}

# eight times the context of before, with dimensions on both sides of the change and within it; "truncate" False, as
# published gpt-oss has it, is something that llama.cpp does not know
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
}

FAMILIES: dict[str, Family] = {
    "mixtral": SparseFamily(
        transformers.MixtralConfig,
        {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24, "head_dim": 8},
        experts=EXPERTS,
    ),
    "qwen3moe": SparseFamily(
        transformers.Qwen3MoeConfig,
        {**FOUR_EXPERTS, "num_experts": 4, "head_dim": 16, "norm_topk_prob": True, "use_sliding_window": False},
        experts=EXPERTS,
    ),
    # a shared expert behind a gate of its own; the weights of the chosen experts do not add up to 1
    "qwen2moe": SparseFamily(
        transformers.Qwen2MoeConfig,
        {
            **FOUR_EXPERTS,
            "num_experts": 4,
            "shared_expert_intermediate_size": 32,
            "norm_topk_prob": False,
            "use_sliding_window": False,
        },
        experts=EXPERTS,
    ),
    "olmoe": SparseFamily(
        transformers.OlmoeConfig,
        {
            "num_key_value_heads": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 24,
            "pad_token_id": 0,
        },
        experts=EXPERTS,
    ),
    "granitemoe": SparseFamily(
        transformers.GraniteMoeConfig,
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 24,
            "attention_multiplier": 0.25,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
        experts=EXPERTS,
    ),
    # attention sinks, biases of experts, a clamped activation, every other layer with a window
    "gpt-oss": SparseFamily(
        transformers.GptOssConfig,
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 32,
            "head_dim": 16,
            "sliding_window": 8,
            "rope_parameters": {**YARN, "truncate": True},
        },
        experts=EXPERTS,
    ),
    # latent attention; a dense layer, then layers with two groups of experts, one group used
    "deepseek3": SparseFamily(
        transformers.DeepseekV3Config,
        {
            **FOUR_EXPERTS,
            "num_key_value_heads": 4,
            "num_hidden_layers": 3,
            "n_routed_experts": 8,
            "moe_intermediate_size": 16,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 16,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
        },
        ("o_proj", "gate_proj", "up_proj", "down_proj"),
        experts=EXPERTS,
        saved_config={"scoring_func": "sigmoid"},
    ),
    "glm4moe": SparseFamily(
        transformers.Glm4MoeConfig,
        {
            **FOUR_EXPERTS,
            "num_hidden_layers": 3,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "head_dim": 16,
            "first_k_dense_replace": 1,
            "use_qk_norm": True,
            "attention_bias": True,
            "routed_scaling_factor": 1.5,
            "rope_parameters": plain_rope(partial_rotary_factor=0.5),
        },
        experts=EXPERTS,
        saved_config={"scoring_func": "sigmoid", "num_nextn_predict_layers": 0},
        converter_arguments=("--no-mtp",),
        special_tokens=("[gMASK]", "<|user|>", "<|observation|>"),
    ),
    # every other layer dense, of four layers the last without RoPE; llama.cpp fixes the chunk of the attention at 8192
    "llama4": SparseFamily(
        transformers.Llama4TextConfig,
        {
            "num_hidden_layers": 4,
            "num_local_experts": 4,
            "intermediate_size": 24,
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 2,
            "head_dim": 8,
            "rope_parameters": plain_rope(),
            "pad_token_id": 0,
        },
        SPLIT_LINEARS,
        experts=EXPERTS,
    ),
    # norms over all heads of the queries and of the keys
    "minimax-m2": SparseFamily(
        transformers.MiniMaxM2Config,
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 24,
            "head_dim": 16,
            "rope_parameters": plain_rope(partial_rotary_factor=0.5),
        },
        experts=EXPERTS,
        saved_config={"scoring_func": "sigmoid", "rotary_dim": 8},
    ),
    "ernie4_5-moe": SparseFamily(
        transformers.Ernie4_5_MoeConfig,
        {
            "num_hidden_layers": 3,
            "moe_intermediate_size": 24,
            "moe_k": 2,
            "moe_num_experts": 4,
            "moe_num_shared_experts": 1,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
        experts=EXPERTS,
        sentence_piece=True,
    ),
    # of four layers the last attends to everything, without RoPE
    "exaone-moe": SparseFamily(
        transformers.ExaoneMoeConfig,
        {
            **FOUR_EXPERTS,
            "num_hidden_layers": 4,
            "num_experts": 4,
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "rope_parameters": plain_rope(),
            "pad_token_id": 0,
        },
        experts=EXPERTS,
        saved_config={"scoring_func": "sigmoid"},
    ),
    # the attention's output behind a gate, norms on both sides of it
    "afmoe": SparseFamily(
        transformers.AfmoeConfig,
        {
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "num_hidden_layers": 4,
            "num_experts": 4,
            "num_dense_layers": 1,
            "num_shared_experts": 1,
            "head_dim": 8,
            "sliding_window": 8,
            "global_attn_every_n_layers": 4,
            "route_scale": 1.5,
            "mup_enabled": True,
            "rope_parameters": plain_rope(),
        },
        experts=EXPERTS,
        saved_config={"score_func": "sigmoid", "route_norm": True},
    ),
}
