"""Make the golden files of ``tests/golden``: tiny models with PyTorch's losses and LoRA gradients.

    python scripts/make_golden.py --llama-cpp vendor/llama.cpp --out tests/golden [NAME ...]

For each name three files: ``NAME.gguf``, a random F32 model through llama.cpp's own converter; ``NAME-lora.gguf``,
a PEFT adapter whose A and B are both random, likewise; ``NAME.npz`` with a batch, what transformers and PEFT compute
for it in float32 (``golden.pytorch.reference``), and the versions that did. Gradients are written as if they were an
adapter and go through the adapter converter: it is linear, and brings them into the layout of the GGUF file (it
permutes the rows of Q and K in llama).

For mixtures of experts and hybrids, in the folder ``sparse``, adapters and gradients are laid out by ``golden.layouts``
instead, and what PEFT merges is compared with what the file's adapter makes of the file's weights. Their
``base_log_probs`` are without the adapter.

For the names in ``golden.peft_folders.FOLDERS`` the folder ``peft/NAME`` holds the same adapter as PEFT saves it; for
those in ``VARIANTS`` an adapter of another kind for one of the models, and PEFT's log-probabilities with it.

Needs torch, transformers, peft, sentencepiece and tokenizers, which ggtune itself does not. The committed files were
made with torch 2.13.0 (CPU), transformers 5.23.0 (those in ``sparse``: 5.24.0), peft 0.21.2, sentencepiece 0.2.3,
tokenizers 0.23.3 and Python 3.11; the same versions on the same kind of processor give the same bytes.
"""

import argparse
import copy
import json
import logging
import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

from golden.families import FAMILIES, SparseFamily, build_model
from golden.layouts import Arrays, add_pairs, check_merged, read_places, targets_of, write_adapter
from golden.llama_cpp import Converter, save_adapter, save_byte_fallback, save_byte_level, save_sentence_piece
from golden.peft_folders import FOLDERS, VARIANTS, make_variant, save_folder
from golden.pytorch import ADAMW, ALPHA, RANK, add_adapter, check_precision, make_batch, reference, target_log_probs

SPARSE_FOLDER = "sparse"


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
    if name in FOLDERS:
        save_folder(adapted, output / "peft" / name)
    save_adapter(adapted, {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad}, lora)
    converter.adapter(lora, base, output / f"{name}-lora.gguf")

    batch = make_batch(generator)
    numbers, gradients = reference(adapted, batch)
    save_adapter(adapted, gradients, gradient_folder)
    converter.adapter(gradient_folder, base, work / f"{name}-gradient.gguf")

    return save_numbers(output / name, batch, numbers, converter.read(work / f"{name}-gradient.gguf"))


def make_sparse(name: str, family: SparseFamily, converter: Converter, output: Path, work: Path) -> str:
    """Do as ``make``, by way of ``golden.layouts``, in a folder of ``output``."""
    output = output / SPARSE_FOLDER
    output.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + family.seed)
    model = build_model(family, generator)

    def convert(model: torch.nn.Module, path: Path = work / "converted.gguf") -> Arrays:
        """Write a model of the family as a GGUF file; returns its tensors."""
        folder = work / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text()) | family.saved_config
        config = {key: value for key, value in config.items() if key not in family.saved_config or value is not None}
        (folder / "config.json").write_text(json.dumps(config))
        if family.byte_fallback:
            save_byte_fallback(folder)
        elif family.sentence_piece:
            save_sentence_piece(folder)
        else:
            save_byte_level(folder, family.special_tokens)
        converter.model(folder, path, *family.converter_arguments)
        return converter.read(path)

    places = read_places(model, targets_of(model, family), convert)
    base = convert(model, output / f"{name}.gguf")
    merged = copy.deepcopy(model)
    adapted, pairs = add_pairs(model, places, base, RANK, ALPHA, generator)

    adapter = {key: array for pair in pairs for key, array in pair.in_file(*pair.parameters).items()}
    write_adapter(output / f"{name}-lora.gguf", converter.architecture(output / f"{name}.gguf"), ALPHA, adapter)
    with torch.no_grad():
        for pair in pairs:
            merged.get_parameter(pair.name).add_(pair.layer.get_delta_weight("default"))
    check_merged(base, convert(merged), adapter, ALPHA / RANK)

    batch = make_batch(generator, family.sample_lengths)
    with torch.no_grad(), adapted.disable_adapter():
        base_log_probs = target_log_probs(adapted, batch).numpy()
    name_of = {id(parameter): key for key, parameter in adapted.named_parameters()}
    masks = {
        name_of[id(parameter)]: mask
        for pair in pairs
        for parameter, mask in zip(pair.parameters, pair.masks(), strict=True)
    }
    start = copy.deepcopy(adapted.state_dict())
    numbers, gradients = reference(adapted, batch, masks)
    adapted.load_state_dict(start)
    check_precision(adapted, batch, masks, numbers, gradients)
    numbers["base_log_probs"] = base_log_probs
    in_file: Arrays = {}
    for pair in pairs:
        in_file |= pair.in_file(*(gradients[name_of[id(parameter)]] for parameter in pair.parameters))
    return save_numbers(output / name, batch, numbers, in_file)


def save_numbers(stem: Path, batch: Arrays, numbers: Arrays, converted: Arrays) -> str:
    """Write the .npz file of one family with the gradients in ``converted``; returns a line about its files."""
    settings = {"rank": RANK, "alpha": ALPHA, **ADAMW}
    versions = [f"{module.__name__} {module.__version__}" for module in (torch, transformers, peft)]
    np.savez_compressed(f"{stem}.npz", **batch, **numbers, **settings, **converted, versions=np.array(versions))
    smallest = min(np.linalg.norm(gradient) for gradient in converted.values())
    sizes = [Path(f"{stem}{end}").stat().st_size for end in (".gguf", "-lora.gguf", ".npz")]
    return (
        f"{stem.name}: {len(converted)} gradients, smallest norm {smallest:.3g}, "
        f"loss {numbers['losses'][0]:.4f} -> {numbers['losses'][-1]:.4f}, bytes {sizes}"
    )


def main() -> None:
    known = [*FAMILIES, *VARIANTS]
    parser = argparse.ArgumentParser(description="Make tests/golden from transformers and PEFT.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all of " + ", ".join(known))
    parser.add_argument("--llama-cpp", type=Path, default=Path("vendor/llama.cpp"), help="llama.cpp's sources")
    parser.add_argument("--out", type=Path, default=Path("tests/golden"))
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")

    logging.basicConfig(level=logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # sums in one order
    torch.use_deterministic_algorithms(True)
    converter = Converter(arguments.llama_cpp)
    arguments.out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp())
    try:
        for name in arguments.names or known:
            if name in VARIANTS:
                print(make_variant(name, arguments.out / "peft"), flush=True)
            elif isinstance(family := FAMILIES[name], SparseFamily):
                print(make_sparse(name, family, converter, arguments.out, work), flush=True)
            else:
                print(make(name, converter, arguments.out, work), flush=True)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
