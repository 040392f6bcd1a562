"""Compare ggtune's import and export of PEFT adapters of experts with PEFT itself.

    python scripts/check_peft_experts.py --llama-cpp vendor/llama.cpp [--write tests/golden/peft-experts] [NAME ...]

A tiny random mixture per architecture and a PEFT adapter (``target_parameters``) with random A and B of its experts,
its router and some of its attention: llama_decode with the import has to give PyTorch's numbers, and so has PEFT with
what is exported again; of an adapter of ggtune's own, whose gate and up have an A each, both have to give the same.
``--write`` keeps base, folder and log-probabilities of each for the tests. Needs what ``make_golden.py`` needs; made
with peft 0.21.2, transformers 5.24.0, torch 2.13.0.
"""

import argparse
import logging
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from peft.tuners.lora import LoraLayer

from golden.families import Family, build_model
from golden.llama_cpp import Converter, save_byte_level, save_sentence_piece
from golden.peft_folders import save_folder
from golden.pytorch import make_batch, target_log_probs

ATTENTION = ("q_proj", "o_proj")
SIZES: dict[str, Any] = {"num_experts_per_tok": 2, "intermediate_size": 24}
QWEN: dict[str, Any] = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 24}
FAMILIES: dict[str, Family] = {
    "qwen3moe": Family(
        transformers.Qwen3MoeConfig,
        {**QWEN, "head_dim": 8, "norm_topk_prob": True},
        ATTENTION,
    ),
    "qwen2moe": Family(transformers.Qwen2MoeConfig, {**QWEN, "shared_expert_intermediate_size": 32}, ATTENTION),
    "mixtral": Family(
        transformers.MixtralConfig,
        {**SIZES, "num_local_experts": 4, "sliding_window": None},
        ATTENTION,
        sentence_piece=True,
    ),
    "olmoe": Family(
        transformers.OlmoeConfig, {**SIZES, "num_experts": 4, "num_key_value_heads": 4, "pad_token_id": 0}, ATTENTION
    ),
    "gpt-oss": Family(
        transformers.GptOssConfig,
        {
            **SIZES,
            "num_local_experts": 4,
            "head_dim": 16,
            "sliding_window": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        ATTENTION,
    ),
}
ROUTERS = {"gpt-oss": "mlp.router.weight"}


def add_adapter(model: transformers.PreTrainedModel, name: str) -> peft.PeftModel:
    """Add an adapter with ranks of its own for parts of it."""
    router = ROUTERS.get(name, "mlp.gate.weight")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=list(ATTENTION),
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj", router],
        rank_pattern={"experts.down_proj": 2, router.removeprefix("mlp."): 1},
        alpha_pattern={"experts.down_proj": 3},
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in adapted.modules():
            if isinstance(layer, LoraLayer):
                A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                A.copy_(torch.randn(A.shape, generator=generator) / A.shape[1] ** 0.5)
                B.copy_(torch.randn(B.shape, generator=generator) * 0.3)
    return adapted.eval()


def write_own(path: Path, base: Path) -> None:
    """Write an adapter of all experts, random A and B for each projection."""
    from ggtune import _core
    from ggtune.gguf.adapter_file import AdapterFile, write_adapter

    model, rng, tensors = _core.Model(str(base), header_only=True), np.random.default_rng(0), {}
    for linear in model.linears():
        if linear.routed:
            a = rng.normal(0, linear.n_in**-0.5, (linear.n_mat, 3, linear.n_in))
            tensors[linear.name + ".lora_a"] = a.astype(np.float32)
            b = rng.normal(0, 0.3, (linear.n_mat, linear.n_out, 3))
            tensors[linear.name + ".lora_b"] = b.astype(np.float32)
    write_adapter(path, AdapterFile(model.architecture, 6.0, tensors))


def check(name: str, converter: Converter, work: Path, keep: Path | None) -> bool:
    """Print a line about one architecture; returns whether all comparisons went well."""
    from ggtune import _core
    from ggtune.interchange.peft import export_peft, import_peft

    family = FAMILIES[name]
    base, ours, own = work / "base.gguf", work / "ours.gguf", work / "own.gguf"
    model = build_model(family, torch.Generator().manual_seed(1))
    model.save_pretrained(work / "hf")
    (save_sentence_piece if family.sentence_piece else save_byte_level)(work / "hf")
    converter.model(work / "hf", base)
    adapted = add_adapter(model, name)
    save_folder(adapted, work / "peft")
    batch = make_batch(torch.Generator().manual_seed(3))
    loaded = _core.Model(str(base))

    def in_pytorch(which: peft.PeftModel) -> np.ndarray:
        with torch.no_grad():
            return target_log_probs(which, batch).numpy()

    def decoded(adapter: Path, expected: np.ndarray) -> float:
        """Give the largest difference of llama_decode's numbers."""
        worst = 0.0
        for sequence in np.unique(batch["sequences"]):
            rows = batch["sequences"] == sequence
            tokens = np.append(batch["tokens"][rows], batch["targets"][rows][-1])
            log_probs = _core.decode_log_probs(loaded, tokens, adapter_path=str(adapter))
            worst = max(worst, float(np.abs(log_probs - expected[rows]).max()))
        return worst

    expected = in_pytorch(adapted)
    import_peft(work / "peft", str(base), ours)
    export_peft(str(ours), str(base), work / "back")
    again = peft.PeftModel.from_pretrained(adapted.unload(), str(work / "back")).eval()
    back = float(np.abs(in_pytorch(again) - expected).max())
    write_own(own, base)
    export_peft(str(own), str(base), work / "own")
    exported = peft.PeftModel.from_pretrained(again.unload(), str(work / "own")).eval()
    differences = decoded(ours, expected), decoded(own, in_pytorch(exported))
    print(
        f"{name}: llama_decode with the import differs from PEFT by {differences[0]:.2g}, PEFT with the export by "
        f"{back:.2g}; of an adapter of ours by {differences[1]:.2g}",
        flush=True,
    )
    if keep is not None:
        shutil.copytree(work / "peft", keep / name, dirs_exist_ok=True)
        shutil.copy(base, keep / name / "base.gguf")
        np.savez_compressed(keep / name / "log_probs.npz", log_probs=expected, **batch)
    return back < 1e-5 and max(differences) < 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare PEFT import and export of experts with PEFT.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all of " + ", ".join(FAMILIES))
    parser.add_argument("--llama-cpp", type=Path, default=Path("vendor/llama.cpp"), help="llama.cpp's sources")
    parser.add_argument("--write", type=Path, help="keep files for the tests in this folder", metavar="FOLDER")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(FAMILIES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    converter = Converter(arguments.llama_cpp)  # before ggtune, which would bring a gguf of another version
    good = True
    for name in arguments.names or FAMILIES:
        with tempfile.TemporaryDirectory() as work:
            good = check(name, converter, Path(work), arguments.write) and good
    sys.exit(not good)


if __name__ == "__main__":
    main()
