"""train, finetune, run, ask, export-lora and convert as a user calls them, on the demo model."""

import csv
import json
from pathlib import Path

import gguf
import pytest

from ggtune.cli import run
from ggtune.cli.old_flags import LOST_FLAGS
from ggtune.demo import DATA, MODEL

SMALL = ["--ctx", "64", "--batch", "2", "--rank", "2", "--threads", "1"]


def metrics(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_train_prints_a_line_per_step(ggtune, tmp_path, table) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "run"
    result = ggtune("train", "--model", MODEL, "--data", table, "--out", out, *SMALL, "--epochs", 2, "--holdout", 2)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line.startswith("step ")]
    assert len(lines) == len(metrics(out / "metrics.jsonl")) == 4
    for word in ("step 4/4", "epoch 2.00", "loss", "smoothed", "held-out", "tokens/s", "elapsed", "ETA"):
        assert word in lines[-1]
    for word in ("micro-batches of at most 512 tokens", "% packing efficiency", "Memory:", "all 4 steps are done"):
        assert word in result.stdout


def test_resume_takes_the_settings_of_the_run(ggtune, tmp_path, table) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "run"
    start = ["train", "--model", MODEL, "--data", table, "--out", out, *SMALL, "--holdout", 0]
    assert ggtune(*start, "--max-steps", 2).exit_code == 0
    result = ggtune("train", "--out", out, "--resume", "--max-steps", 4)
    assert result.exit_code == 0, result.output
    assert [record["step"] for record in metrics(out / "metrics.jsonl")] == [1, 2, 3, 4]
    refused = ggtune("train", "--out", out, "--resume", "--rank", 3)
    assert refused.exit_code == 1
    assert "--rank was 2 and is 3" in refused.stderr


def test_the_old_commands(ggtune, tmp_path, table, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    text = ggtune("convert", table, "-o", "train.txt", "--template", "llama2", "--system", "Be brief.")
    assert text.exit_code == 0, text.output
    old = ["finetune", "--model-base", MODEL, "--train-data", "train.txt", "--lora-out", "lora.bin", "--threads", 1]
    result = ggtune(*old, "--sample-start", "<SFT>", "--adam-iter", 11, "--batch", 2, "--ctx", 96, "--use-flash")
    assert result.exit_code == 0, result.output
    assert "--use-flash has no effect any more" in result.stderr
    names = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert names == {"checkpoint-10.gguf", "checkpoint-11.gguf", "checkpoint-LATEST.gguf"}
    assert Path("checkpoint-LATEST.gguf").read_bytes() == Path("checkpoint-11.gguf").read_bytes()

    whole = Path("lora.bin").read_bytes()
    only = ["--only-write-lora", "--lora-out", "again.bin"]
    result = ggtune("finetune", "--model-base", MODEL, "--checkpoint-in", "checkpoint-11.gguf", *only)
    assert result.exit_code == 0, result.output
    assert Path("again.bin").read_bytes() == whole

    result = ggtune(*old, "--checkpoint-in", "checkpoint-10.gguf", "--lora-out", "continued.bin")
    assert result.exit_code == 0, result.output
    assert Path("continued.bin").read_bytes() == whole

    merged = ggtune("export-lora", "--model-base", MODEL, "--lora", "lora.bin", "--model-out", "merged.gguf")
    assert merged.exit_code == 0, merged.output
    types = [
        {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
        for path in (MODEL, Path("merged.gguf"))
    ]
    assert types[0] == types[1]


def test_every_old_flag_is_taken(ggtune) -> None:  # type: ignore[no-untyped-def]
    given = [part for name, (takes_value, _) in LOST_FLAGS.items() for part in ([name, "1"] if takes_value else [name])]
    meant = """--model-base none.gguf --train-data none.txt --lora-out l.bin --checkpoint-out c-ITERATION.gguf
    --save-every 10 --sample-start x --include-sample-start --escape --overlapping-samples --separate-with-eos
    --separate-with-bos -c 128 -t 1 -b 8 --grad-acc 2 --epochs -1 --adam-iter 256 --adam-alpha 1e-3
    --adam-min-alpha 1e-4
    --adam-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.999 --adam-gclip 1.0 --warmup 100 --cos-decay-steps 1000
    --cos-decay-min 0.1 --lora-r 4 --lora-alpha 4 --seed 1 -ngl 0 --use-checkpointing"""
    result = ggtune("finetune", *given, *meant.split())
    assert result.exit_code == 1
    assert "none.gguf" in result.stderr  # nothing before that was wrong
    lines = result.stderr.splitlines()
    assert all(any(line.startswith(f"{name} has no effect") for line in lines) for name in LOST_FLAGS)
    assert not any(line.startswith("-ngl") for line in lines)
    assert ggtune("finetune", "--no-checkpointing", *meant.split()).exit_code == 1
    assert ggtune("train", "--no-checkpointing", "--model", MODEL, "--data", MODEL).exit_code == 2


@pytest.mark.parametrize(
    ("flags", "meant"),
    [
        ([], "auto"),
        (["--recompute"], "layers"),
        (["--recompute", "none"], "none"),
        (["--recompute=auto"], "auto"),
        (["--no-recompute"], "none"),
    ],
)
def test_forms_of_recompute(flags, meant, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """``--recompute`` alone does not take the data file behind it for its value."""
    seen = {}
    monkeypatch.setattr(run.command, "callback", lambda **values: seen.update(values))
    run.command.main(["--out", "out", *flags, "data.csv"], standalone_mode=False)
    assert (seen["data"], seen["recompute"]) == ("data.csv", meant)


def test_wrong_value_of_recompute(ggtune) -> None:  # type: ignore[no-untyped-def]
    result = ggtune("train", "--recompute", "sometimes", "--model", MODEL, "--data", MODEL)
    assert result.exit_code == 2
    assert "'sometimes' is not one of" in result.stderr


def test_run_makes_a_model_and_ask_answers(ggtune, tmp_path, table, rows) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "Bees & more"
    result = ggtune("run", table, "--model", MODEL, "--out", out, *SMALL, "--epochs", 1, "--store", tmp_path / "store")
    assert result.exit_code == 0, result.output
    assert {"adapter.gguf", "model.gguf", "Modelfile", "metrics.jsonl", "config.json"} <= {
        p.name for p in out.iterdir()
    }
    assert (tmp_path / "store/manifests/registry.ollama.ai/library/bees-more/latest").exists()
    live = ggtune("ask", "--model", MODEL, "--lora", out / "adapter.gguf", rows[0][0], "--max-tokens", 8)
    merged = ggtune("ask", "--model", out / "model.gguf", rows[0][0], "--max-tokens", 8)
    for asked in (live, merged):
        assert asked.exit_code == 0, asked.output
        assert asked.stdout.strip()


def test_convert_there_and_back(ggtune, tmp_path) -> None:  # type: ignore[no-untyped-def]
    text, back = tmp_path / "train.txt", tmp_path / "back.csv"
    assert ggtune("convert", DATA, "-o", text, "--template", "llama2", "--system", "Teach.").exit_code == 0
    assert text.read_text().startswith("<SFT><s>[INST] <<SYS>>\nTeach.\n<</SYS>>\n\n")
    assert ggtune("convert", text, "-o", back).exit_code == 0
    with DATA.open(newline="") as first, back.open(newline="") as second:
        assert [row[:2] for row in list(csv.reader(first))[1:]] == [row[:2] for row in list(csv.reader(second))[1:]]
