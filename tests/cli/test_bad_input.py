"""Each kind of bad input: exit status 1, one message, no traceback, nothing left behind."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from ggtune.demo import MODEL

Files = Callable[[Path], dict[str, Path]]

# name, options of `ggtune train` that replace the good ones ("{x}" is a file made by `files`), words of the message
CASES: list[tuple[str, dict[str, str], tuple[str, ...]]] = [
    ("missing model", {"model": "{tmp}/none.gguf"}, ("none.gguf", "No such file")),
    ("folder for a model", {"model": "{tmp}"}, ("Is a directory",)),
    ("empty model", {"model": "{empty}"}, ("not a GGUF", "empty")),
    ("truncated header", {"model": "{short}"}, ("short.gguf",)),
    ("truncated data", {"model": "{cut}"}, ("cut.gguf",)),
    ("not a GGUF", {"model": "{text}"}, ("not a GGUF",)),
    ("no tokenizer", {"model": "{no_tokenizer}"}, ("tokenizer",)),
    ("unsupported architecture", {"model": "{unsupported}"}, ("rwkv",)),
    ("missing table", {"data": "{tmp}/none.csv"}, ("none.csv",)),
    ("empty table", {"data": "{empty_csv}"}, ("empty.csv",)),
    ("one column", {"data": "{one_column}"}, ("one.csv",)),
    ("no usable row", {"data": "{no_rows}"}, ("no_rows.csv",)),
    ("undecodable bytes", {"data": "{latin}"}, ("UTF-8", "line 2")),
    ("context too small", {"ctx": "2"}, ("--ctx",)),
    ("rank 0", {"rank": "0"}, ("--rank", "at least 1")),
    ("unknown linear", {"targets": "attn_q,atn_v"}, ("atn_v", "attn_v")),
    ("more memory than there is", {"rank": "100000000", "targets": "attn_q"}, ("memory", "--rank")),
    ("a rank for no linear", {"rank": "100000000"}, ("narrower than the rank", "choose from")),
    ("unwritable folder", {"out": "{text}/run"}, ("can't write",)),
    ("a file for a folder", {"out": "{text}"}, ("can't write",)),
    ("missing adapter", {"from": "{tmp}/none.gguf"}, ("none.gguf", "No such file")),
    ("model for an adapter", {"from": str(MODEL)}, ("not a LoRA adapter",)),
    ("unknown template", {"template": "lama2"}, ("lama2", "llama2")),
    ("system text refused", {"template": "gemma", "system": "Be brief."}, ("no place for a system text",)),
]


def _gguf(path: Path, architecture: str, *, tokenizer: bool) -> Path:
    """Copy the demo model's keys into a file without most of its tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "b", "</s>"])
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(False)
    writer.add_tensor("token_embd.weight", np.zeros((3, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _without_tokenizer(path: Path) -> Path:
    """Copy the demo model without its tokenizer keys."""
    reader = gguf.GGUFReader(MODEL)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith(("GGUF.", "tokenizer.", "general.architecture")):
            continue
        writer.add_key_value(
            field.name, field.contents(), field.types[0], field.types[1] if len(field.types) > 1 else None
        )
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bad")
    whole = MODEL.read_bytes()
    contents = {
        "empty": ("empty.gguf", b""),
        "short": ("short.gguf", whole[:1000]),
        "cut": ("cut.gguf", whole[: len(whole) // 2]),
        "text": ("text.gguf", b"This is no model."),
        "empty_csv": ("empty.csv", b""),
        "one_column": ("one.csv", b"question\nWhy?\n"),
        "no_rows": ("no_rows.csv", b"question,answer\nWhy?,\n,Because.\n"),
        "latin": ("latin.csv", "question,answer\nWas?,Grün\n".encode("latin-1") + "Wie?,Grün\n".encode()),
    }
    made = {"tmp": folder}
    for key, (name, content) in contents.items():
        made[key] = folder / name
        made[key].write_bytes(content)
    made["no_tokenizer"] = _without_tokenizer(folder / "no_tokenizer.gguf")
    made["unsupported"] = _gguf(folder / "unsupported.gguf", "rwkv6", tokenizer=True)
    return made


def _train(options: dict[str, str]) -> list[str]:
    return ["train", *(part for name, value in options.items() for part in (f"--{name}", value))]


@pytest.mark.parametrize(("options", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input(ggtune, tmp_path, table, files, options, words) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "run"
    given = {"model": str(MODEL), "data": str(table), "out": str(out), "max-steps": "1"}
    given.update({name: value.format(**files) for name, value in options.items()})
    before = sorted(path.name for path in [*tmp_path.rglob("*"), *files["tmp"].rglob("*")])
    result = ggtune(*_train(given))
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ")
    assert all(word in result.stderr for word in words), result.stderr
    assert "Traceback" not in result.output
    assert "unexpected" not in result.stderr
    assert sorted(path.name for path in [*tmp_path.rglob("*"), *files["tmp"].rglob("*")]) == before


@pytest.mark.parametrize("command", [["ask", "Why?"], ["export-lora", "--model-out", "{out}"]])
def test_an_adapter_of_another_model(ggtune, tmp_path, command) -> None:  # type: ignore[no-untyped-def]
    from ggtune.gguf.adapter_file import AdapterFile, write_adapter

    pair = {"lora_a": np.ones((2, 64), dtype=np.float32), "lora_b": np.ones((64, 2), dtype=np.float32)}
    tensors = {f"blk.0.attn_q.weight.{side}": values for side, values in pair.items()}
    write_adapter(tmp_path / "other.gguf", AdapterFile("llama", 2.0, tensors))
    model_option = "--model" if command[0] == "ask" else "--model-base"
    arguments = [part.format(out=tmp_path / "merged.gguf") for part in command]
    result = ggtune(*arguments, model_option, MODEL, "--lora", tmp_path / "other.gguf")
    assert result.exit_code == 1
    assert "adapter of another model" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["other.gguf"]


@pytest.mark.parametrize("bad", ["empty", "text", "short"])
@pytest.mark.parametrize(
    "command",
    [
        ["ask", "Why?", "--model", "{bad}"],
        ["package", "{bad}", "--name", "x", "--no-store", "--out", "{out}"],
        ["export-lora", "--model-base", "{bad}", "--lora", "{bad}", "--model-out", "{out}"],
        ["run", "{table}", "--model", "{bad}", "--out", "{out}"],
        ["finetune", "--model-base", "{bad}", "--train-data", "{table}", "--lora-out", "{out}"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_refuses_what_is_no_model(ggtune, tmp_path, table, files, command, bad) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    result = ggtune(*(part.format(bad=files[bad], out=out, table=table) for part in command))
    assert result.exit_code == 1, result.output
    assert files[bad].name in result.stderr
    assert not out.exists()


def test_a_run_is_not_overwritten_unasked(ggtune, tmp_path, table) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    result = ggtune("train", "--model", MODEL, "--data", table, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr


def test_as_a_process(tmp_path: Path, table: Path) -> None:
    command = [sys.executable, "-m", "ggtune", "train", "--data", table, "--out", tmp_path / "run", "--model"]
    done = subprocess.run([*command, tmp_path / "none.gguf"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    debug = [*command[:3], "--debug", *command[3:]]
    done = subprocess.run([*debug, tmp_path / "none.gguf"], capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr
