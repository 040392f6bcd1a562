"""Scores of 20 answers and losses of 20 samples by formulas of their own, to hold ``ggtune eval`` against.

    python scripts/golden/make_scores.py                         # makes tests/golden/scores anew
    python scripts/golden/make_scores.py --check FOLDER          # recomputes the figures of an evaluation's folder

Nothing of ggtune's scores or engine is used. Exact match and F1 are written down here from their definition in the
SQuAD paper (arXiv:1606.05250, section 6.1), ROUGE-L is rouge-score's as its users call it, BLEU and chrF are
sacrebleu's corpus scores; the loss is a llama model's in NumPy, in double precision on dequantized weights (so an
evaluation that it is compared with has --precision f32). Token ids alone come from llama.cpp's tokenizer, of texts that
are written out here. The committed numbers were made with NumPy 2.4, gguf 0.19, rouge-score 0.1.2 and
sacrebleu 2.6.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from ggtune._native import core

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests/golden/scores"
MODEL = ROOT / "python/ggtune/demo/wordnet-10m-q5_k_m.gguf"
Array = NDArray[np.float64]

DIGITS = {
    "loss": 4,
    "perplexity": 2,
    "token_accuracy": 3,
    "exact_match": 3,
    "f1": 3,
    "rouge_l": 3,
    "bleu": 2,
    "chrf": 2,
}

# as the chat templates of these models write one question and its answer: what is given, what is learned
TEXTS = {
    "demo": ("<s>[INST] {question} [/INST]", " {answer} ", "</s>"),
    "smollm2": (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
        "{answer}",
        "<|im_end|>",
    ),
}


# --- scores of answers


def squad_words(text: str) -> list[str]:
    """Lower case, without punctuation, without articles."""
    kept = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def f1(answer: str, reference: str) -> float:
    given, wanted = squad_words(answer), squad_words(reference)
    if not given or not wanted:
        return float(given == wanted)
    left = list(wanted)
    n_same = 0
    for word in given:
        if word in left:
            left.remove(word)
            n_same += 1
    return 2 * n_same / (len(given) + len(wanted))  # the harmonic mean of n/given and n/wanted


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the rows, and corpus scores."""
    import sacrebleu
    from rouge_score import rouge_scorer

    rouge = rouge_scorer.RougeScorer(["rougeL"])
    answers = [row["answer"] for row in rows]
    references = [row.get("references") or [row["reference"]] for row in rows]
    n_most = max(map(len, references))
    streams = [[found[i] if i < len(found) else None for found in references] for i in range(n_most)]
    pairs = list(zip(answers, references, strict=True))
    return {
        "exact_match": float(np.mean([any(squad_words(a) == squad_words(r) for r in found) for a, found in pairs])),
        "f1": float(np.mean([max(f1(a, r) for r in found) for a, found in pairs])),
        "rouge_l": float(np.mean([max(rouge.score(r, a)["rougeL"].fmeasure for r in found) for a, found in pairs])),
        "bleu": sacrebleu.corpus_bleu(answers, streams).score,
        "chrf": sacrebleu.corpus_chrf(answers, streams).score,
    }


# --- a llama model


def _tensors(reader: Any) -> dict[str, Array]:
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}


class Llama:
    """Forward pass of one sequence."""

    def __init__(self, path: Path, adapter: Path | None = None) -> None:
        reader = gguf.GGUFReader(path)
        self.weights = _tensors(reader)

        def number(key: str, default: float = 0) -> float:
            field = reader.fields.get(f"llama.{key}")
            return float(field.contents()) if field else default

        self.n_layer, self.n_head = int(number("block_count")), int(number("attention.head_count"))
        self.n_head_kv = int(number("attention.head_count_kv", self.n_head))
        self.epsilon = number("attention.layer_norm_rms_epsilon")
        self.base = number("rope.freq_base", 10000)
        if adapter is not None:
            self._add(gguf.GGUFReader(adapter))

    def _add(self, reader: Any) -> None:
        tensors = _tensors(reader)
        alpha = float(reader.fields["adapter.lora.alpha"].contents())
        for name in [name for name in tensors if name.endswith(".lora_a")]:
            a, b = tensors[name], tensors[name[:-1] + "b"]
            self.weights[name.removesuffix(".lora_a")] += alpha / len(a) * b @ a

    def log_probs(self, tokens: list[int]) -> Array:
        """Of every next token, ``(n_tokens, n_vocab)``."""
        w = self.weights
        x = w["token_embd.weight"][tokens]
        for i in range(self.n_layer):
            block = {key: w[f"blk.{i}.{key}.weight"] for key in (
                "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"
            )}  # fmt: skip
            x = x + self._attention(self._normed(x, block["attn_norm"]), block)
            h = self._normed(x, block["ffn_norm"])
            gate = h @ block["ffn_gate"].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ block["ffn_up"].T)) @ block["ffn_down"].T
        logits = self._normed(x, w["output_norm.weight"]) @ w.get("output.weight", w["token_embd.weight"]).T
        logits -= logits.max(axis=1, keepdims=True)
        found: Array = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return found

    def _normed(self, x: Array, weight: Array) -> Array:
        found: Array = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + self.epsilon) * weight
        return found

    def _attention(self, h: Array, block: dict[str, Array]) -> Array:
        n = len(h)
        size = len(block["attn_q"]) // self.n_head
        q, k, v = ((h @ block[f"attn_{key}"].T).reshape(n, -1, size) for key in "qkv")
        q, k = self._rotated(q), self._rotated(k)
        k, v = (np.repeat(part, self.n_head // self.n_head_kv, axis=1) for part in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[2])
        scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
        scores = np.exp(scores - scores.max(axis=2, keepdims=True))
        scores /= scores.sum(axis=2, keepdims=True)
        return np.einsum("hij,jhd->ihd", scores, v).reshape(n, -1) @ block["attn_output"].T

    def _rotated(self, x: Array) -> Array:
        """RoPE of neighbouring pairs, as GGUF files of this architecture lie."""
        n, _, size = x.shape
        angles = np.arange(n)[:, None] * self.base ** (-np.arange(0, size, 2) / size)
        cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
        found = np.empty_like(x)
        found[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
        found[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
        return found


def losses(
    model: Path, adapter: Path | None, texts: tuple[str, str, str], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Loss per token over all answers with their end tokens, and how often the likeliest token is the right one."""
    llama, tokenizer = Llama(model, adapter), core.Model(str(model), vocab_only=True)
    loss, n_targets, n_right = 0.0, 0, 0
    for row in rows:
        given, learned, end = (text.format(question=row["question"], answer=row["reference"]) for text in texts)
        prompt = tokenizer.tokenize(given).tolist()
        tokens = tokenizer.tokenize(given + learned + end).tolist()
        assert tokens[: len(prompt)] == prompt, row
        log_probs = llama.log_probs(tokens[:-1])[len(prompt) - 1 :]
        targets = tokens[len(prompt) :]
        loss -= float(log_probs[np.arange(len(targets)), targets].sum())
        n_right += int((log_probs.argmax(axis=1) == targets).sum())
        n_targets += len(targets)
    return {
        "loss": loss / n_targets,
        "perplexity": float(np.exp(loss / n_targets)),
        "token_accuracy": n_right / n_targets,
        "n_targets": n_targets,
    }


def write_adapter(path: Path) -> None:
    """A small adapter whose effect is seen in the third digit and before."""
    sizes = {t.name: t.shape.tolist() for t in gguf.GGUFReader(MODEL).tensors}
    rng = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 3.0)
    for name in (f"blk.{i}.{kind}.weight" for i in (0, 2) for kind in ("attn_q", "ffn_up")):
        n_in, n_out = sizes[name]
        writer.add_tensor(f"{name}.lora_a", rng.normal(0, n_in**-0.5, (2, n_in)).astype(np.float32))
        writer.add_tensor(f"{name}.lora_b", rng.normal(0, 0.3, (n_out, 2)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make() -> None:
    rows = [json.loads(line) for line in (FOLDER / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    adapter = FOLDER / "adapter.gguf"
    write_adapter(adapter)
    found = {
        "answers": figures(rows),
        "base": losses(MODEL, None, TEXTS["demo"], rows),
        "adapter": losses(MODEL, adapter, TEXTS["demo"], rows),
    }
    (FOLDER / "figures.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def check(folder: Path, texts: str) -> int:
    """Say for each figure what the evaluation has and what comes out here, at the digits that are shown."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    subject = evaluation["subject"]
    adapter = Path(subject["adapters"][0][0]) if subject["adapters"] else None
    found = {**losses(Path(subject["model"]), adapter, TEXTS[texts], rows), **figures(rows)}
    n_wrong = 0
    for name, digits in DIGITS.items():
        theirs, here = (f"{value:.{digits}f}" for value in (evaluation["scores"][name]["value"], found[name]))
        n_wrong += theirs != here
        print(f"{name:<16} {theirs:>9} {here:>9}  {'' if theirs == here else 'DIFFERS'}")
    print(f"{len(rows)} rows, {found['n_targets']} targets")
    return int(n_wrong > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=Path, help="an evaluation's folder")
    parser.add_argument("--texts", choices=sorted(TEXTS), default="smollm2", help="how its model is asked")
    given = parser.parse_args()
    if given.check:
        return check(given.check, given.texts)
    make()
    return 0


if __name__ == "__main__":
    sys.exit(main())
