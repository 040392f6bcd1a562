"""Run folders as runs, evaluations and diagnoses leave them, made without any of these."""

import json
import time

from metrics import records, write_lines

from ggtune.config import TrainConfig

HOSTILE = (
    "</style></script><script>document.title='taken'; console.error('taken')</script><img src=x onerror=\"alert(1)\">"
    "\u202eevil\u202c {{ 7 * 7 }} `a` | **b** \x00\x1b[31m\ud800" + "\u0300" * 50
)
SCORES = {
    "loss": {"value": 1.5, "low": 1.2, "high": 1.8},
    "f1": {"value": 0.412, "low": 0.3, "high": 0.52},
    "bleu": {"value": 12.5, "low": None, "high": None},
}


def make_run(folder, *, steps=120, state="finished", reason="all steps are done", full=False, settings=None, **options):
    """A run folder with metrics, settings and status alone; not ``full``: without what takes more figures."""
    folder.mkdir(parents=True, exist_ok=True)
    old = options.get("old", False)
    made = records(steps, only=() if full or old else ("loss", "smoothed_loss", "held_out_loss", "dropped"), **options)
    if made and not old and options.get("held_out", True):
        made[0]["held_out_before"] = 3.5
    write_lines(folder / "metrics.jsonl", made)
    config = TrainConfig(model="/models/base.gguf", data="train.csv", **(settings or {})).to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    status = {"state": state, "reason": reason, "total_steps": steps, "version": "0.1.0", "written": time.time()}
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def add_everything(folder, *, text="", n=5):
    """All that commands add to a run folder; ``text`` goes into everything that comes from data and models."""
    asked = [
        {
            "question": f"What is question {i}?{text}",
            "reference": f"Reference {i}{text}",
            "before": f"Before {i}{text}",
            "after": f"After {i}{text}",
            "before_ended": False,
            "after_ended": True,
            "row": i,
        }
        for i in range(n)
    ]
    write_lines(folder / "before_after.jsonl", asked)
    write_lines(
        folder / "samples.jsonl",
        [
            {
                "step": step,
                "epoch": step / 50,
                "question": f"Sampled {i}?{text}",
                "reference": f"Reference{text}",
                "answer": f"Answer at {step}{text}",
                "ended": step > 50,
                "n_tokens": 5,
            }
            for step in range(0, 101, 10)
            for i in range(2)
        ],
    )
    for label in ("base", "best"):
        write_evaluation(folder, label, text=text)
    differences = {"value": 0.2, "low": 0.1, "high": 0.3, "p_value": 0.001, "p_adjusted": 0.002}
    comparison = {
        "labels": ["base", "best" + text],
        "n_samples": 20,
        "scores": {
            "f1": {
                "title": "F1 of words",
                "values": [SCORES["f1"], {"value": 0.612, "low": 0.5, "high": 0.72}],
                "differences": [None, {**differences, "verdict": "better by 0.200 ± 0.100, p = 0.002"}],
            }
        },
        "rows": [
            {
                "where": f"train.csv:{i}{text}",
                "question": f"Compared {i}?{text}",
                "reference": f"Reference {i}{text}",
                "answers": [f"Old {i}{text}", f"New {i}{text}"],
                "kinds": ["wrong number", "right"],
                "changes": [0.0, i / 10 - 0.5],
            }
            for i in range(10)
        ],
    }
    (folder / "comparison.json").write_text(json.dumps(comparison))
    losses = {"n_samples": 9, "n_targets": 90, "base": 2.5, "live": 1.5, "merged": 1.6, "kept": 0.9}
    proof = {"trained": losses, "held_out": None, "end_live": 0.9, "end_merged": 0.8, "kl": 0.01, "good": True}
    (folder / "proof.json").write_text(json.dumps({**proof, "n_answers": 8, "n_same_answers": 7}))
    finding = {"kind": "overfitted", "severity": "warning", "text": f"It learned by heart.{text}", "advice": "Less."}
    (folder / "diagnosis.json").write_text(json.dumps({"findings": [finding]}))
    broken = [f"general text perplexity 20.1 -> 24.5 (+21.9 %){text}", "general questions 30 -> 28 of 40 right"]
    (folder / "general.json").write_text(json.dumps({"lines": broken}))
    worst = {
        "rows": [
            {
                "row": 7,
                "where": f"train.csv:7{text}",
                "loss": 5.25,
                "n_targets": 9,
                "question": f"Worst?{text}",
                "answer": f"Wrong{text}",
            }
        ],
        "contradictions": [{"where": f"train.csv:3{text}", "like": "train.csv:4"}],
        "n_looked_at": 90,
        "n_rows": 100,
    }
    (folder / "worst_rows.json").write_text(json.dumps(worst))
    card = {
        "rows": 100,
        "samples": 98,
        "held_out": 5,
        "tokens": 4321,
        "learned_share": 0.31,
        "lengths": {"least": 12, "median": 40.0, "most": 99, "edges": [12, 50, 100], "counts": [70, 28]},
        "context": 64,
        "fit_share": 0.9,
        "template": f"chatml{text}",
        "system": f"Be short.{text}",
        "skipped": {"question or answer empty": 2, "can't be used": 0},
        "skipped_rows": [f"train.csv:9: empty{text}"],
        "cut": 3,
        "doubts": {"duplicate": 4},
    }
    (folder / "data_card.json").write_text(json.dumps(card))
    return folder


def write_evaluation(folder, label, *, text="", scores=None):
    """An evaluation as ``ggtune eval`` leaves it."""
    values = {
        "format": 1,
        "label": label + text,
        "subject": {"model": "base.gguf", "adapters": [], "run": None, "which": label, "step": None},
        "data": "train.csv",
        "split": "held-out",
        "template": "chatml",
        "system": None,
        "n_samples": 20,
        "settings": {},
        "scores": scores or SCORES,
        "seconds": 1.0,
        "version": "0.1.0",
    }
    place = folder / "evaluation" / label
    place.mkdir(parents=True, exist_ok=True)
    (place / "evaluation.json").write_text(json.dumps(values))
