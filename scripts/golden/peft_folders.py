"""PEFT's own adapter folders, and adapters of kinds that ``NAME-lora.gguf`` has none of."""

import json
import shutil
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from peft.tuners.lora import LoraLayer

from golden.families import FAMILIES, build_model
from golden.pytorch import make_batch, target_log_probs

# of every way in which llama.cpp lays a weight out: as it is, with rows of Q and K in another order, fused and so on
FOLDERS = ("llama", "llama3", "qwen2", "gemma", "phi3", "gpt2", "falcon", "starcoder2", "command-r", "granite")


@dataclass(frozen=True)
class Variant:
    """An adapter with settings of its own for the base model of a family."""

    family: str
    settings: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    "llama-patterns": Variant(
        "llama",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "v_proj", "down_proj", "lm_head", "embed_tokens"],
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
            "alpha_pattern": {"v_proj": 3, "lm_head": 16},
        },
    ),
    "qwen3-rslora": Variant(
        "qwen3",
        {"r": 9, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q_proj", "k_proj", "o_proj", "up_proj"]},
    ),
}


def save_folder(adapted: peft.PeftModel, output: Path) -> None:
    """Write PEFT's two files, the configuration without the paths of this machine."""
    with tempfile.TemporaryDirectory() as work:
        adapted.save_pretrained(work)
        output.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(work) / "adapter_model.safetensors", output)
        config = json.loads((Path(work) / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = ""
    config["target_modules"] = sorted(config["target_modules"])  # a set in PEFT, in no order
    (output / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make_variant(name: str, output: Path) -> str:
    """Write an adapter's folder and, in ``log_probs.npz``, what PEFT computes with it; returns a line about it."""
    variant = VARIANTS[name]
    family = FAMILIES[variant.family]
    model = build_model(family, torch.Generator().manual_seed(zlib.crc32(variant.family.encode())))
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **variant.settings)).eval()
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for layer in adapted.modules():
            if isinstance(layer, LoraLayer):
                for A in (*layer.lora_A.parameters(), *layer.lora_embedding_A.parameters()):
                    A.copy_(torch.randn(A.shape, generator=generator) / A.shape[1] ** 0.5)
                for B in (*layer.lora_B.parameters(), *layer.lora_embedding_B.parameters()):
                    B.copy_(torch.randn(B.shape, generator=generator) * 0.3)
    batch = make_batch(generator)
    with torch.no_grad():
        log_probs = target_log_probs(adapted, batch).numpy()
        with adapted.disable_adapter():
            without = target_log_probs(adapted, batch).numpy()
    save_folder(adapted, output / name)
    np.savez_compressed(output / name / "log_probs.npz", **batch, log_probs=log_probs)
    change = np.abs(log_probs - without).max()
    return f"{name}: {len(adapted.peft_config)} adapter, changes log-probabilities by up to {change:.2f}"
