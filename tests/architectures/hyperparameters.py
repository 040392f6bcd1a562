"""Hyperparameters of a tiny model for each architecture of the pinned llama.cpp.

A model's keys are those of every architecture (:data:`_COMMON`: llama.cpp reads those that it needs) with those of its
own over them. The values follow llama.cpp's own ``tests/test-llama-archs.cpp``, made smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Value = bool | int | float | str | Sequence[int] | Sequence[float]

N_VOCAB = 288
N_LAYER = 3  # two would not tell "one layer" from "half of them"


def _common(n_embd: int, n_head: int, n_ff: int, n_layer: int, n_vocab: int) -> dict[str, Value]:
    head = n_embd // n_head
    return {
        "vocab_size": n_vocab,
        "context_length": 64,
        "embedding_length": n_embd,
        "features_length": n_embd,
        "block_count": n_layer,
        "leading_dense_block_count": 1,
        "feed_forward_length": n_ff,
        "use_parallel_residual": False,
        "logit_scale": 1.0,
        "full_attention_interval": 2,
        "residual_scale": 3.5,
        "time_mix_extra_dim": 16,
        "time_decay_extra_dim": 16,
        "attention.head_count": n_head,
        "attention.head_count_kv": n_head,
        "attention.max_alibi_bias": 8.0,
        "attention.clamp_kqv": 3.0,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.group_norm_epsilon": 1e-5,
        "attention.group_norm_groups": 8,
        "attention.q_lora_rank": 32,
        "attention.kv_lora_rank": 32,
        "attention.decay_lora_rank": 16,
        "attention.iclr_lora_rank": 16,
        "attention.value_residual_mix_lora_rank": 16,
        "attention.gate_lora_rank": 16,
        "attention.relative_buckets_count": 8,
        "attention.sliding_window": 4,
        "attention.sliding_window_pattern": 2,
        "attention.indexer.head_count": 4,
        "attention.indexer.key_length": 64,
        "attention.indexer.top_k": 131072,
        "attention.indexer.block_size": 4,
        "attention.indexer.kpool": 4,
        "attention.indexer.kpool_select_tail": True,
        "attention.indexer.local_blocks": 1,
        "rope.dimension_sections": [head // 4] * 4,
        "posnet.embedding_length": n_embd,
        "posnet.block_count": n_layer,
        "convnext.embedding_length": n_embd,
        "convnext.block_count": n_layer,
        "ssm.inner_size": 2 * n_embd,
        "ssm.conv_kernel": 4,
        "ssm.state_size": 32,
        "ssm.time_step_rank": n_head,
        "ssm.group_count": 2,
        "kda.head_dim": 32,
        "kda.safe_gate": True,
        "kda.gate_lower_bound": -5.0,
        "wkv.head_size": 64,
        "shortconv.l_cache": 3,
        "attn_res.block_size": 12,
        "activation.situ_beta": 4.0,
        "activation.situ_linear_beta": 25.0,
    }


_EXPERTS: dict[str, Value] = {
    "expert_feed_forward_length": 64,
    "expert_shared_feed_forward_length": 32,
    "expert_latent_length": 64,
    "interleave_moe_layer_step": 2,
    "expert_count": 2,
    "expert_used_count": 2,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_group_scale": 1.0,
    "experts_per_group": 1,
}

# keys whose name has no architecture in it
_UNPREFIXED: dict[str, Value] = {
    "xielu.alpha_n": 1.0,
    "xielu.alpha_p": 1.0,
    "xielu.beta": 1.0,
    "xielu.eps": 1e-7,
    "tokenizer.ggml.token_type_count": 2,
}

_MLA: dict[str, Value] = {
    "attention.head_count": 1,
    "attention.head_count_kv": 1,
    "attention.key_length": 64,
    "attention.value_length": 32,
    "attention.key_length_mla": 64,
    "attention.value_length_mla": 32,
    "rope.dimension_count": 32,
}

_HYBRID: dict[str, Value] = {"attention.head_count": [2, 0, 2], "attention.head_count_kv": [2, 0, 2]}
_MLA_HYBRID: dict[str, Value] = {**_MLA, "attention.head_count_kv": [1, 0, 1]}
_WINDOWS: dict[str, Value] = {"attention.sliding_window_pattern": [0, 1, 0]}
_GROUPED: dict[str, Value] = {"attention.head_count": 4, "attention.head_count_kv": 2}
_RWKV: dict[str, Value] = {"embedding_length": 128}
_ONE_SHIFT: dict[str, Value] = {**_RWKV, "token_shift_count": 1}
_GATED_DELTA: dict[str, Value] = {"ssm.inner_size": 64}

_GEMMA4: dict[str, Value] = {
    "block_count": 6,
    "embedding_length_per_layer_input": 32,
    "attention.shared_kv_layers": 0,
    "attention.key_length_swa": 32,
    "attention.value_length_swa": 32,
    "attention.sliding_window_pattern": [1, 1, 0, 1, 1, 0],
    "rope.freq_base_swa": 10000.0,
}

_PLE: dict[str, Value] = {
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 2,
    "hyper_connection.epsilon": 1e-6,
    "hyper_connection.low_rank": 8,
    "attention.compress_ratios": [4] * N_LAYER,
    "ple.layers": [0],
    "ple.ngram_size": 3,
    "ple.heads_per_ngram": 2,
    "ple.conv_kernel": 4,
    "ple.eos_token_id": 0,
    "embedding_length_per_layer_input": 16,
    "ple.layer_multipliers": [1, 3, 5],
    "ple.head_offsets": [head * N_VOCAB for head in range(4)],
    "ple.head_vocab_sizes": [N_VOCAB] * 4,
}

# read as unsigned 64-bit integers
WIDE_KEYS = {"ple.layer_multipliers", "ple.head_offsets", "ple.head_vocab_sizes"}

# Architectures with nothing of their own. A "+experts" at the end of a name: the same with a mixture of experts.
_PLAIN = [
    "apertus",
    "arcee",
    "baichuan",
    "bitnet",
    "bloom",
    "chatglm",
    "codeshell",
    "cogvlm",
    "cohere2",
    "command-r",
    "deci",
    "exaone",
    "exaone4",
    "falcon",
    "falcon-h1",
    "gemma",
    "gemma2",
    "gemma3",
    "glm4",
    "gpt2",
    "gptneox",
    "granite",
    "hunyuan-dense",
    "hunyuan_vl",
    "internlm2",
    "jais",
    "jais2",
    "llama",
    "maincoder",
    "mamba",
    "mamba2",
    "minicpm",
    "mistral3",
    "mpt",
    "nanbeige",
    "nemotron",
    "olmo",
    "olmo2",
    "openelm",
    "orion",
    "pangu-embedded",
    "phi2",
    "phi3",
    "plamo",
    "plamo3",
    "pockettts",
    "qwen",
    "qwen2",
    "qwen2vl",
    "qwen3vl",
    "refact",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder",
    "starcoder2",
    "t5",
    "talkie",
    "xverse",
    "granitemoe",
    "dream",
    "eurobert",
    "gemma-embedding",
    "llada",
    "llama-embed",
    "modern-bert",
    "neo-bert",
    "t5encoder",
    "bert",
    "nomic-bert",
    "jina-bert-v2",
    "jina-bert-v3",
]
_PLAIN_EXPERTS = [
    "afmoe",
    "arctic",
    "bailingmoe",
    "bailingmoe2",
    "dbrx",
    "deepseek",
    "deepseek2-ocr",
    "dots1",
    "ernie4_5-moe",
    "exaone-moe",
    "glm4moe",
    "gpt-oss",
    "grok",
    "grovemoe",
    "hunyuan-moe",
    "hy_v3",
    "laguna",
    "llada-moe",
    "llama4",
    "mellum",
    "minimax-01",
    "minimax-m2",
    "minimax-m3",
    "nomic-bert-moe",
    "olmoe",
    "paddleocr",
    "phimoe",
    "qwen2moe",
    "qwen3moe",
    "qwen3vlmoe",
    "rnd1",
    "smallthinker",
    "ernie4_5",
    "granite+experts",
    "granitemoe+experts",
    "llama+experts",
    "minicpm+experts",
    "mistral3+experts",
]

_OWN: dict[str, dict[str, Value]] = {
    "arwkv7": _ONE_SHIFT,
    "bailingmoe3+experts": {
        **_MLA_HYBRID,
        "rope.dimension_sections": [4, 6, 6, 0],
        "swiglu_clamp_exp": [0.0, 4.0, 4.0],
        "swiglu_clamp_shexp": [0.0, 5.0, 5.0],
    },
    "chameleon": {"vocab_size": 10240, "embedding_length": 32, "feed_forward_length": 32},
    "cohere2moe+experts": _WINDOWS,
    "deepseek2+experts": _MLA,
    "deepseek32+experts": _MLA,
    "deepseek4+experts": {
        "block_count": 4,
        "attention.head_count_kv": 1,
        "attention.key_length": 32,
        "attention.value_length": 32,
        "rope.dimension_count": 16,
        "expert_gating_func": 4,
        "attention.output_group_count": 2,
        "attention.output_lora_rank": 32,
        "attention.compress_ratios": [0, 0, 4, 128],
        "attention.compress_rope_freq_base": 160000.0,
        "hyper_connection.count": 4,
        "hyper_connection.sinkhorn_iterations": 2,
        "hyper_connection.epsilon": 1e-6,
        "hash_layer_count": 0,
        "swiglu_clamp_exp": 10.0,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": True,
    },
    "dots3note+experts": {
        **_MLA,
        **_WINDOWS,
        "attention.kv_lora_rank_swa": 32,
        "attention.key_length_swa": 64,
        "attention.value_length_swa": 32,
        "attention.key_length_mla_swa": 64,
        "attention.value_length_mla_swa": 32,
        "rope.freq_base_swa": 10000.0,
        "attention.indexer.types": [1, 0, 1],
    },
    "gemma3n": {"block_count": 22, "embedding_length": 32, "attention.head_count": 1, "attention.head_count_kv": 1},
    "gemma4": _GEMMA4,
    "gemma4+shared-kv": {**_GEMMA4, "attention.shared_kv_layers": 3},
    "gemma4+experts": _GEMMA4,
    "glm-dsa+experts": _MLA,
    "glm5-next+experts": {
        **_MLA,
        **_PLE,
        "attention.key_length": 32,
        "rope.dimension_count": 0,
        "attention.head_count_kv": [1, 0, 1],
    },
    "granite_swa": _WINDOWS,
    "granitehybrid": _HYBRID,
    "granitehybrid+experts": _HYBRID,
    "graniteswitch": {
        "adapters.count": 2,
        "adapters.lora_rank": 4,
        "adapters.token_ids_activate": [5, 6],
        "adapters.token_ids_substitute": [7, 8],
    },
    "hrm_text": {"block_count": 6, "hrm.layers_per_stack": 1, "hrm.h_cycles": 2, "hrm.l_cycles": 2},
    "hy_v4+experts": {
        **_MLA,
        "hyper_connection.count": 4,
        "hyper_connection.epsilon": 1e-6,
        "hyper_connection.magnitude": 2.0,
        "swiglu_clamp_exp": 10.0,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": True,
        "attention.indexer.types": [1, 0, 1],
    },
    "jamba": _HYBRID,
    "jamba+experts": _HYBRID,
    "kimi-k3+experts": _MLA_HYBRID,
    "kimi-linear+experts": _MLA_HYBRID,
    "lfm2": _HYBRID,
    "lfm2moe+experts": _HYBRID,
    "llama4": {"block_count": 4},  # every fourth layer scales its attention
    "maple+experts": {**_WINDOWS, "swiglu_clamp_exp": 7.0},
    "mimo2+experts": _WINDOWS,
    "minicpm3": {"attention.key_length": 64, "attention.value_length": 32, "rope.dimension_count": 32},
    "mistral4+experts": _MLA,
    "muse-glimmer": {**_GROUPED, **_WINDOWS},
    "nemotron_h": {**_HYBRID, "feed_forward_length": [0, 0, 96]},
    "nemotron_h_moe": {**_HYBRID, "feed_forward_length": [0, 0, 96]},
    "nemotron_h_moe+experts": {**_HYBRID, "feed_forward_length": [0, 0, 96]},
    "plamo2": {**_HYBRID, "ssm.group_count": 0},
    "plm": {"rope.dimension_count": 16},
    "qwen3": {"attention.head_count": 4, "attention.head_count_kv": 1},
    "qwen35": _GATED_DELTA,
    "qwen35moe+experts": _GATED_DELTA,
    "qwen3next+experts": _GATED_DELTA,
    "qwen3tts": {"vocab_size": 3072},
    "qwen4exp+experts": {**_GATED_DELTA, **_PLE, "attention.indexer.key_length": 32},
    "rwkv6": _RWKV,
    "rwkv6qwen2": _ONE_SHIFT,
    "rwkv7": _RWKV,
    "spark2_5": _WINDOWS,
    "step35+experts": _WINDOWS,
    # layers that share keys and values heads, in families that mostly do
    "llama+grouped": _GROUPED,
    "qwen2+grouped": _GROUPED,
}

NAMES = sorted({*_PLAIN, *_PLAIN_EXPERTS, *_OWN})


def architecture_of(name: str) -> str:
    """The name that llama.cpp knows a model of this table by."""
    return name.split("+")[0]


def hyperparameters(name: str) -> dict[str, Value]:
    """Every key of a model of :data:`NAMES`, with its architecture where it belongs."""
    own: Mapping[str, Value] = _OWN.get(name, {})

    def number(key: str, default: int) -> int:
        value = own.get(key, default)
        return value if isinstance(value, int) else default

    n_embd = number("embedding_length", 64)
    keys = _common(
        n_embd,
        number("attention.head_count", 2),
        96,
        number("block_count", N_LAYER),
        number("vocab_size", N_VOCAB),
    )
    if name.endswith("+experts") or name in _PLAIN_EXPERTS:
        keys.update(_EXPERTS)
    keys.update(own)
    prefix = architecture_of(name)
    return {**{f"{prefix}.{key}": value for key, value in keys.items()}, **_UNPREFIXED}
