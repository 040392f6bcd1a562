"""Make the golden numbers of ``tests/golden/choice``: a tiny model, and what lm-evaluation-harness makes of it.

    python scripts/make_choice_golden.py --llama-cpp vendor/llama.cpp --out tests/golden/choice

Trains a byte-level BPE and a llama of 60,000 parameters for a minute on the texts that ship with ggtune and on every
other question, writes it as a Hugging Face folder, converts that to ``model.gguf`` (F32) by llama.cpp's own converter,
and runs the harness's own tasks (its yaml files are included, their data replaced) on the committed files of questions.
``scores.json`` holds each question's log-probabilities and the scores with their standard errors.

The model's context is so short that some of TruthfulQA's prompts are cut. Needs torch, transformers, datasets and
lm-eval; the committed file was made with lm-eval 0.4.13, torch 2.13.0 (CPU), transformers 5.24.0 and tokenizers 0.23.3.
"""

import argparse
import json
import logging
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval
import tokenizers
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from golden.llama_cpp import Converter

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ROOT / "python/ggtune/evaluate/general"
N_VOCAB, CONTEXT, STEPS = 512, 352, 600

# task of ours: the harness's file, ours, examples in front, what of the harness's settings is changed
TASKS: dict[str, tuple[str, str, int]] = {
    "arc": ("arc/arc_easy.yaml", "arc.jsonl", 0),
    "arc-3": ("arc/arc_easy.yaml", "arc.jsonl", 3),
    "hellaswag": ("hellaswag/hellaswag.yaml", "hellaswag.jsonl", 0),
    "hellaswag-2": ("hellaswag/hellaswag.yaml", "hellaswag.jsonl", 2),
    "mmlu": ("mmlu/default/mmlu_anatomy.yaml", "mmlu.jsonl", 0),
    "mmlu-2": ("mmlu/default/mmlu_anatomy.yaml", "mmlu.jsonl", 2),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", "truthfulqa.jsonl", 0),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", "truthfulqa.jsonl", 0),
}


def training_texts(data: Path) -> list[str]:
    """The general texts and questions with their right answers, and some of those that are asked later."""
    texts = [part for part in (TEXTS / "texts.txt").read_text(encoding="utf-8").split("\n\n") if part.strip()]
    rows = (TEXTS / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    for line in rows + (data / "arc.jsonl").read_text(encoding="utf-8").splitlines()[::2]:
        row = json.loads(line)
        right = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
        texts.append(f"Question: {row['question']}\nAnswer: {right}\n\n")
    for line in (data / "hellaswag.jsonl").read_text(encoding="utf-8").splitlines()[::2]:
        row = json.loads(line)
        texts.append(f"{row['ctx_a']} {row['ctx_b'].capitalize()} {row['endings'][int(row['label'])]}\n\n")
    return texts


def save_tokenizer(folder: Path, texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE, with a BOS in front of every text."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=N_VOCAB,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True, "add_eos_token": False}))
    return fast


def trained_model(tokenizer: transformers.PreTrainedTokenizerFast, texts: list[str]) -> transformers.LlamaForCausalLM:
    """Train on windows of the texts, so that its choices are no mere noise."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=N_VOCAB,
        hidden_size=40,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers.LlamaForCausalLM(config)
    rows = torch.cat([torch.tensor(tokenizer.encode(text)) for text in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(STEPS):
        starts = torch.randint(0, len(rows) - 97, (16,))
        batch = torch.stack([rows[start : start + 96] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / STEPS)
        optimizer.step()
        optimizer.zero_grad()
    print(f"trained: loss {loss.item():.3f}")
    return model.eval()


def task_config(name: str, data: Path) -> dict[str, Any]:
    """The harness's own task with our rows: examples are the first ones of the same file."""
    source, rows, _ = TASKS[name]
    included = Path(lm_eval.__file__).parent / "tasks" / source
    config = {
        "include": str(included),
        "task": f"own_{name}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(data / rows)}},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": "test",
        "fewshot_config": {"sampler": "first_n", "split": "test"},
    }
    if name.startswith("mmlu"):
        config["description"] = "The following are multiple choice questions (with answers) about human anatomy.\n\n"
    return config


def scores_of(name: str, model: HFLM, data: Path, work: Path) -> dict[str, Any]:
    """Run one task; its questions in the order of the file."""
    import yaml

    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task_config(name, data), sort_keys=False, allow_unicode=True))
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[f"own_{name}"],
        num_fewshot=TASKS[name][2],
        task_manager=TaskManager(include_path=str(work), include_defaults=False),
        log_samples=True,
        bootstrap_iters=2,  # means have an analytic error: nothing is drawn
    )
    results = found["results"][f"own_{name}"]
    samples = sorted(found["samples"][f"own_{name}"], key=lambda sample: sample["doc_id"])
    return {
        "shots": TASKS[name][2],
        "scores": {
            key.partition(",")[0]: {"value": float(value), "stderr": float(results[key.replace(",", "_stderr,")])}
            for key, value in results.items()
            if key.partition(",")[0] in ("acc", "acc_norm", "acc_bytes")
        },
        "questions": [
            {
                "prompt": sample["arguments"]["gen_args_0"]["arg_0"]
                if isinstance(sample["arguments"], dict)
                else sample["arguments"][0][0],
                "log_probs": [float(response[0]) for response in sample["filtered_resps"]],
                **{key: sample[key] for key in ("acc", "acc_norm") if key in sample},
            }
            for sample in samples
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Make tests/golden/choice from lm-evaluation-harness.")
    parser.add_argument("--llama-cpp", type=Path, default=Path("vendor/llama.cpp"), help="llama.cpp's sources")
    parser.add_argument("--out", type=Path, default=Path("tests/golden/choice"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # sums in one order
    torch.use_deterministic_algorithms(True)
    work = Path(tempfile.mkdtemp())
    try:
        texts = training_texts(arguments.out)
        folder = work / "model"
        folder.mkdir()
        tokenizer = save_tokenizer(folder, texts)
        model = trained_model(tokenizer, texts)
        model.save_pretrained(folder)
        Converter(arguments.llama_cpp).model(folder, arguments.out / "model.gguf")
        harness = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)
        tasks = work / "tasks"
        tasks.mkdir()
        numbers = {name: scores_of(name, harness, arguments.out.resolve(), tasks) for name in TASKS}
        versions = {name: version(name) for name in ("lm-eval", "torch", "transformers", "tokenizers")}
        text = json.dumps({"versions": versions, "tasks": numbers}, indent=1, ensure_ascii=False)
        (arguments.out / "scores.json").write_text(text + "\n", encoding="utf-8")
        for name, task in numbers.items():
            print(name, task["scores"])
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
