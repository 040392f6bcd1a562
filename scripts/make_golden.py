"""Make the golden files of ``tests/golden``: tiny models with PyTorch's losses and LoRA gradients.

    python scripts/make_golden.py --llama-cpp vendor/llama.cpp --out tests/golden [NAME ...]

For each name three files: ``NAME.gguf``, a random F32 model through llama.cpp's own converter; ``NAME-lora.gguf``, a PEFT
adapter whose A and B are both random, likewise; ``NAME.npz`` with a batch, what transformers and PEFT compute for it in
float32 (see :func:`reference`), and the versions that did. Gradients are written as if they were an adapter and go through
the adapter converter: it is linear, and brings them into the layout of the GGUF file (it permutes rows of Q and K in llama).

Needs torch, transformers, peft, sentencepiece and tokenizers, which ggtune itself does not. The committed files were made
with torch 2.13.0 (CPU), transformers 5.23.0, peft 0.21.2, sentencepiece 0.2.3, tokenizers 0.23.3 and Python 3.11;
the same versions on the same kind of processor give the same bytes.
"""

import argparse
import io
import logging
import runpy
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import safetensors.torch
import sentencepiece
import tokenizers
import torch
import transformers
from peft.tuners.lora import LoraLayer

RANK = 4
ALPHA = 8.0
ADAMW = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.1}
N_STEPS = 20
SAMPLE_LENGTHS = (21, 38, 9)  # rows; the longest exceeds every sliding window below
N_VOCAB = 288
N_CONTEXT = 512
WEIGHT_STD = 0.25

SPLIT_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """How to make one tiny model: transformers' configuration class, what differs from the common sizes, which linears."""

    config: type[transformers.PretrainedConfig]
    options: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = SPLIT_LINEARS
    sentence_piece: bool = False
    embedding_std: float = 0.5
    norm_offset: float = 1.0  # gemma stores its norms' weights minus one
    common_names: bool = True  # the configuration class calls the sizes what llama's calls them


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": N_CONTEXT,
}


def plain_rope(theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **more}


def long_rope(original: int) -> dict[str, Any]:
    """Phi-3's two sets of factors per frequency; which one counts depends on whether a sample exceeds ``original``."""
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": original,
        "short_factor": [1.1, 1.3, 1.7, 2.0],
        "long_factor": [1.5, 2.5, 5.0, 9.0],
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
            "attn_logit_softcapping": 3.0,
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
    "phi3": Family(
        transformers.Phi3Config,
        {"rope_parameters": long_rope(256), "sliding_window": None, "pad_token_id": 0},
        PHI3_LINEARS,
        sentence_piece=True,
    ),
    "phi3-long": Family(
        transformers.Phi3Config,
        {"rope_parameters": long_rope(8), "sliding_window": None, "pad_token_id": 0},
        PHI3_LINEARS,
        sentence_piece=True,
    ),
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
    "command-r": Family(transformers.CohereConfig, {"logit_scale": 0.5, "pad_token_id": 0}),
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


# --- tokenizers -------------------------------------------------------------------------------------------------------

CORPUS = ["the cat sat on the mat", "a dog ran to the red barn", "she sat and the rain ran on", "the rat and the hen"] * 8


def save_sentence_piece(folder: Path) -> None:
    """``tokenizer.model`` with byte fallback and N_VOCAB pieces: 0 unknown, 1 BOS, 2 EOS."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=N_VOCAB,
        byte_fallback=True,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def save_byte_level(folder: Path) -> None:
    """``tokenizer.json`` with GPT-2's pre-tokenizer and N_VOCAB tokens: 0 unknown, 1 BOS, 2 EOS."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=True))  # so llama's converter calls it llama 3
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=N_VOCAB,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(folder)


# --- llama.cpp's converters -------------------------------------------------------------------------------------------


class Converter:
    """llama.cpp's two converter scripts, run in this process."""

    def __init__(self, llama_cpp: Path) -> None:
        self.llama_cpp = llama_cpp.resolve()
        sys.path[:0] = [str(self.llama_cpp), str(self.llama_cpp / "gguf-py")]
        from conversion.base import TextModel

        # The script knows a pre-tokenizer by the hash of what a published vocabulary makes of a text. Ours is GPT-2's.
        TextModel.get_vocab_base_pre = lambda *_: "gpt-2"

    def _run(self, script: str, *arguments: str | Path) -> None:
        saved = sys.argv
        sys.argv = [script, *map(str, arguments)]
        try:
            with redirect_stdout(io.StringIO()):
                runpy.run_path(str(self.llama_cpp / script), run_name="__main__")
        finally:
            sys.argv = saved

    def model(self, folder: Path, output: Path) -> None:
        self._run("convert_hf_to_gguf.py", folder, "--outfile", output, "--outtype", "f32")

    def adapter(self, folder: Path, base: Path, output: Path) -> None:
        self._run("convert_lora_to_gguf.py", folder, "--base", base, "--outfile", output, "--outtype", "f32")

    def read(self, path: Path) -> dict[str, np.ndarray]:
        import gguf

        return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


# --- model, adapter and batch -----------------------------------------------------------------------------------------


def build_model(family: Family, generator: torch.Generator) -> transformers.PreTrainedModel:
    """A float32 model whose every parameter is random: norm weights around 1, biases not 0."""
    options = {"vocab_size": N_VOCAB, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
    options |= (SIZES if family.common_names else {}) | family.options
    config = family.config(**options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    embedding = model.get_input_embeddings().weight
    normal: Callable[..., torch.Tensor] = partial(torch.randn, generator=generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = normal(parameter.shape)
            if parameter is embedding:
                parameter.copy_(family.embedding_std * values)
            elif parameter.ndim > 1:
                parameter.copy_(WEIGHT_STD * values)
            elif name.endswith(".bias"):
                parameter.copy_(0.2 * values)
            else:
                parameter.copy_(family.norm_offset + 0.3 * values)
    return model.eval()


def add_adapter(model: transformers.PreTrainedModel, family: Family, generator: torch.Generator) -> peft.PeftModel:
    """LoRA with A ~ N(0, 1/n_in) and B ~ N(0, 0.3^2), so that no gradient is zero."""
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=list(family.targets),
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for layer in adapted.modules():
            if isinstance(layer, LoraLayer):
                A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                A.copy_(torch.randn(A.shape, generator=generator) / A.shape[1] ** 0.5)
                B.copy_(torch.randn(B.shape, generator=generator) * 0.3)
    return adapted.eval()


def save_adapter(adapted: peft.PeftModel, values: dict[str, torch.Tensor], folder: Path) -> None:
    """PEFT's two files, with ``values`` by parameter name in place of the adapter's own."""
    adapted.save_pretrained(folder)
    tensors = {name.replace(".default.", "."): value.contiguous() for name, value in values.items()}
    if adapted.config.model_type == "gpt2":
        # gpt2 holds its weights transposed. PEFT's A and B are as for any linear, but the converter transposes their
        # product a second time, which these undo.
        swapped = {"lora_A": "lora_B", "lora_B": "lora_A"}
        tensors = {
            name.replace(part, swapped[part]): value.T.contiguous()
            for name, value in tensors.items()
            for part in swapped
            if part in name
        }
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")


def make_batch(generator: torch.Generator) -> dict[str, np.ndarray]:
    """Rows of all samples one after another; the first third of each sample (its prompt) has weight 0, the rest 0.5 to 1.5."""
    rows: dict[str, list[torch.Tensor]] = {"tokens": [], "positions": [], "sequences": [], "targets": [], "weights": []}
    for sequence, length in enumerate(SAMPLE_LENGTHS):
        tokens = torch.randint(3, N_VOCAB, (length + 1,), generator=generator)
        weights = 0.5 * torch.randint(1, 4, (length,), generator=generator)
        weights[: length // 3] = 0
        for key, value in zip(
            rows, (tokens[:-1], torch.arange(length), torch.full((length,), sequence), tokens[1:], weights), strict=True
        ):
            rows[key].append(value)
    batch = {key: torch.cat(values).numpy() for key, values in rows.items()}
    return {key: value.astype(np.float32 if key == "weights" else np.int32) for key, value in batch.items()}


# --- the reference ----------------------------------------------------------------------------------------------------


def target_log_probs(model: torch.nn.Module, batch: dict[str, np.ndarray]) -> torch.Tensor:
    """log p(target) of every row, shape (n_rows,); each sample is a forward pass of its own."""
    parts = []
    for sequence in range(len(SAMPLE_LENGTHS)):
        own = batch["sequences"] == sequence
        tokens, targets = (torch.from_numpy(batch[key][own]).long() for key in ("tokens", "targets"))
        logits = model(input_ids=tokens[None], use_cache=False).logits[0]
        parts.append(torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0])
    return torch.cat(parts)


def summed_loss(log_probs: torch.Tensor, batch: dict[str, np.ndarray]) -> torch.Tensor:
    return -(torch.from_numpy(batch["weights"]) * log_probs).sum()


def reference(
    adapted: peft.PeftModel, batch: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """PyTorch's numbers, and the gradients by parameter name.

    ``log_probs`` (n_rows,) and ``loss_sum``: -sum of weight * log p(target), whose gradients these are. ``losses``
    (N_STEPS + 1,): the weighted mean before each step of AdamW, and after the last. The adapter is left trained.
    """
    parameters = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    log_probs = target_log_probs(adapted, batch)
    loss_sum = summed_loss(log_probs, batch)
    gradients = dict(zip(parameters, torch.autograd.grad(loss_sum, list(parameters.values())), strict=True))

    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=ADAMW["lr"],
        betas=(ADAMW["beta1"], ADAMW["beta2"]),
        eps=ADAMW["epsilon"],
        weight_decay=ADAMW["weight_decay"],
    )
    losses = []
    for step in range(N_STEPS + 1):
        loss = summed_loss(target_log_probs(adapted, batch), batch) / float(batch["weights"].sum())
        losses.append(loss.item())
        if step < N_STEPS:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    numbers = {
        "log_probs": log_probs.detach().numpy(),
        "loss_sum": np.float64(loss_sum.item()),
        "losses": np.array(losses),
    }
    return numbers, gradients


def make(name: str, converter: Converter, output: Path, work: Path) -> str:
    """Write the three files of one family; returns a line about them."""
    family = FAMILIES[name]
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    base, lora, gradient_folder = work / name, work / f"{name}-lora", work / f"{name}-gradient"

    model = build_model(family, generator)
    model.save_pretrained(base)
    (save_sentence_piece if family.sentence_piece else save_byte_level)(base)
    converter.model(base, output / f"{name}.gguf")

    adapted = add_adapter(model, family, generator)
    save_adapter(adapted, {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad}, lora)
    converter.adapter(lora, base, output / f"{name}-lora.gguf")

    batch = make_batch(generator)
    numbers, gradients = reference(adapted, batch)
    save_adapter(adapted, gradients, gradient_folder)
    converter.adapter(gradient_folder, base, work / f"{name}-gradient.gguf")

    settings = {"rank": RANK, "alpha": ALPHA, **ADAMW}
    versions = [f"{module.__name__} {module.__version__}" for module in (torch, transformers, peft)]
    converted = converter.read(work / f"{name}-gradient.gguf")
    np.savez_compressed(output / f"{name}.npz", **batch, **numbers, **settings, **converted, versions=np.array(versions))

    smallest = min(np.linalg.norm(gradient) for gradient in converted.values())
    sizes = [(output / f"{name}{end}").stat().st_size for end in (".gguf", "-lora.gguf", ".npz")]
    return (
        f"{name}: {len(converted)} gradients, smallest norm {smallest:.3g}, "
        f"loss {numbers['losses'][0]:.4f} -> {numbers['losses'][-1]:.4f}, bytes {sizes}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make tests/golden from transformers and PEFT.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all of " + ", ".join(FAMILIES))
    parser.add_argument("--llama-cpp", type=Path, default=Path("vendor/llama.cpp"), help="llama.cpp's sources")
    parser.add_argument("--out", type=Path, default=Path("tests/golden"))
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(FAMILIES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")

    logging.basicConfig(level=logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # sums in one order
    torch.use_deterministic_algorithms(True)
    converter = Converter(arguments.llama_cpp)
    arguments.out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp())
    try:
        for name in arguments.names or FAMILIES:
            print(make(name, converter, arguments.out, work), flush=True)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
