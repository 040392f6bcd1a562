"""Dense decoders, one per architecture; llama.cpp's converter knows their adapters."""

from typing import Any

import transformers

from golden.families.family import N_CONTEXT, Family


def plain_rope(theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **more}


def phi3_options(original: int, longest: int) -> dict[str, Any]:
    """Give Phi-3 two sets of RoPE factors; the long one is for samples longer than ``original``."""
    return {
        "original_max_position_embeddings": original,
        "max_position_embeddings": longest,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.1, 1.3, 1.7, 2.0],
            "long_factor": [1.5, 2.5, 5.0, 9.0],
        },
        "sliding_window": None,
        "pad_token_id": 0,
    }


GEMMA = {"head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}
PHI3_LINEARS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")

FAMILIES: dict[str, Family] = {
    "llama": Family(transformers.LlamaConfig, {"num_key_value_heads": 4}, sentence_piece=True),
    "llama3": Family(
        transformers.LlamaConfig,
        {
            "tie_word_embeddings": True,
            # with head_dim 8 the four wavelengths fall below, between and above the two limits
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "mistral": Family(transformers.MistralConfig, {"sliding_window": None, "head_dim": 16}, sentence_piece=True),
    "qwen2": Family(transformers.Qwen2Config, {"tie_word_embeddings": True, "use_sliding_window": False}),
    "qwen3": Family(transformers.Qwen3Config, {"head_dim": 16, "use_sliding_window": False}),
    "gemma": Family(transformers.GemmaConfig, GEMMA, sentence_piece=True, norm_offset=0.0),
    "gemma2": Family(
        transformers.Gemma2Config,
        {
            **GEMMA,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 4.0,
        },
        sentence_piece=True,
        norm_offset=0.0,
    ),
    # llama.cpp gives full attention to every sixth layer
    "gemma3": Family(
        transformers.Gemma3TextConfig,
        {
            **GEMMA,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "num_hidden_layers": 6,
            "sliding_window": 8,
            "rope_parameters": {"full_attention": plain_rope(1e6), "sliding_attention": plain_rope()},
        },
        sentence_piece=True,
        norm_offset=0.0,
    ),
    "phi3": Family(transformers.Phi3Config, phi3_options(256, N_CONTEXT), PHI3_LINEARS, sentence_piece=True),
    "phi3-long": Family(transformers.Phi3Config, phi3_options(16, 64), PHI3_LINEARS, sentence_piece=True),
    "olmo2": Family(transformers.Olmo2Config),
    "granite": Family(
        transformers.GraniteConfig,
        {
            "attention_multiplier": 0.25,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
    ),
    # every fourth layer has no RoPE
    "smollm3": Family(
        transformers.SmolLM3Config,
        {"num_hidden_layers": 4, "tie_word_embeddings": True, "use_sliding_window": False, "pad_token_id": 0},
    ),
    "stablelm": Family(
        transformers.StableLmConfig,
        {"rope_parameters": plain_rope(partial_rotary_factor=0.5), "use_qkv_bias": True},
    ),
    "command-r": Family(
        transformers.CohereConfig, {"logit_scale": 0.5, "tie_word_embeddings": True, "pad_token_id": 0}
    ),
    "starcoder2": Family(
        transformers.Starcoder2Config,
        {"sliding_window": None},
        ("q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"),
    ),
    "gpt2": Family(
        transformers.GPT2Config,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_ctx": 64},
        ("c_attn", "c_fc", "c_proj"),
        common_names=False,
    ),
    "falcon": Family(
        transformers.FalconConfig,
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "activation": "gelu_pytorch_tanh",  # what llama.cpp computes
        },
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        common_names=False,
    ),
}
