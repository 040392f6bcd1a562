"""Compare ggtune's import and export of PEFT adapters with llama.cpp's converter and with PEFT, for many architectures.

    python scripts/check_peft_layouts.py --llama-cpp vendor/llama.cpp [NAME ...]

A tiny random model per architecture and a PEFT adapter with random A and B: the imported tensors have to be those of
``convert_lora_to_gguf.py`` bit for bit, and PEFT has to compute the same with what is exported again. Needs what
``make_golden.py`` needs. Ends with status 1 where one differs, or where llama_decode with the import is further from
PyTorch than llama.cpp's table of GELU explains.
"""

import argparse
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

from golden.families import SPLIT_LINEARS, Family, build_model
from golden.families.dense import FAMILIES
from golden.llama_cpp import Converter, save_adapter, save_byte_level, save_sentence_piece
from golden.peft_folders import save_folder
from golden.pytorch import add_adapter, make_batch, target_log_probs

ATTENTION = SPLIT_LINEARS[:4]
UNGATED = (*ATTENTION, "up_proj", "down_proj")
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

MORE: dict[str, Family] = {
    "olmo": Family(transformers.OlmoConfig),
    "arcee": Family(transformers.ArceeConfig, {}, UNGATED),
    "apertus": Family(transformers.ApertusConfig, {}, UNGATED),
    "nemotron": Family(
        transformers.NemotronConfig, {"partial_rotary_factor": 0.5}, UNGATED, sentence_piece=True, norm_offset=0.0
    ),
    "cohere2": Family(
        transformers.Cohere2Config,
        {
            "rotary_pct": 1.0,
            "logit_scale": 0.5,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "sliding_window": 8,
            "head_dim": 8,
        },
    ),
    "seed_oss": Family(transformers.SeedOssConfig, {"head_dim": 8}),
    "hunyuan-dense": Family(transformers.HunYuanDenseV1Config, {"head_dim": 8}),
    "phi2": Family(
        transformers.PhiConfig,
        {"partial_rotary_factor": 0.5, "num_key_value_heads": 4, "intermediate_size": 128},
        ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
    ),
    "qwen2moe": Family(transformers.Qwen2MoeConfig, {**EXPERTS, "shared_expert_intermediate_size": 32}, ATTENTION),
    "qwen3moe": Family(transformers.Qwen3MoeConfig, {**EXPERTS, "head_dim": 8, "norm_topk_prob": True}, ATTENTION),
    "mixtral": Family(
        transformers.MixtralConfig,
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        ATTENTION,
        sentence_piece=True,
    ),
}


def check(name: str, family: Family, converter: Converter, work: Path) -> bool:
    """Print a line about one architecture; returns whether all comparisons went well."""
    from ggtune import _core
    from ggtune.interchange.peft import export_peft, import_peft

    model = build_model(family, torch.Generator().manual_seed(1))
    model.save_pretrained(work / "hf")
    (save_sentence_piece if family.sentence_piece else save_byte_level)(work / "hf")
    base = work / "base.gguf"
    converter.model(work / "hf", base)
    adapted = add_adapter(model, family, torch.Generator().manual_seed(2))
    save_folder(adapted, work / "peft")
    save_adapter(
        adapted, {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad}, work / "lora"
    )
    converter.adapter(work / "lora", work / "hf", work / "lora.gguf")

    ours = import_peft(work / "peft", str(base), work / "ours.gguf").tensors
    theirs = converter.read(work / "lora.gguf")
    same = ours.keys() == theirs.keys() and all(np.array_equal(ours[key], theirs[key]) for key in theirs)

    batch = make_batch(torch.Generator().manual_seed(3))
    export_peft(str(work / "ours.gguf"), str(base), work / "back")
    with torch.no_grad():
        expected = target_log_probs(adapted, batch).numpy()
        again = peft.PeftModel.from_pretrained(adapted.unload(), str(work / "back")).eval()
        back = np.abs(target_log_probs(again, batch).numpy() - expected).max()

    loaded = _core.Model(str(base))
    decoded = 0.0
    for sequence in np.unique(batch["sequences"]):
        own = batch["sequences"] == sequence
        tokens = np.append(batch["tokens"][own], batch["targets"][own][-1])
        log_probs = _core.decode_log_probs(loaded, tokens, adapter_path=str(work / "ours.gguf"))
        decoded = max(decoded, float(np.abs(log_probs - expected[own]).max()))
    print(
        f"{name}: {loaded.architecture}, {'the same' if same else 'NOT the same'} as llama.cpp's converter; "
        f"PEFT with the export differs by {back:.2g}, llama_decode by {decoded:.2g}",
        flush=True,
    )
    return bool(same and back == 0 and decoded < 5e-3)


def main() -> None:
    known = {**FAMILIES, **MORE}
    parser = argparse.ArgumentParser(description="Compare PEFT import and export with llama.cpp's converter and PEFT.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all of " + ", ".join(known))
    parser.add_argument("--llama-cpp", type=Path, default=Path("vendor/llama.cpp"), help="llama.cpp's sources")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    converter = Converter(arguments.llama_cpp)  # before ggtune, which would bring a gguf of another version
    good = True
    for name in arguments.names or known:
        with tempfile.TemporaryDirectory() as work:
            good = check(name, known[name], converter, Path(work)) and good
    sys.exit(not good)


if __name__ == "__main__":
    main()
