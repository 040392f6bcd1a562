"""Runs that go on from an adapter, with other data and a schedule of their own."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggtune._core import Model
from ggtune.config import TrainConfig
from ggtune.demo import DATA, MODEL
from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import load_adapter, read_adapter, write_adapter
from ggtune.gguf.base import adapter_fingerprint
from ggtune.gguf.stack import stack_adapters
from ggtune.run.checkpoint import load_checkpoint
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Progress
from ggtune.train.forecast import forecast
from ggtune.train.session import fine_tune, prepare
from ggtune.train.start import settled

GOLDEN = Path(__file__).parents[1] / "golden"


def config(data: Path, **changes: Any) -> TrainConfig:
    values = {"model": str(MODEL), "data": str(data), "ctx": 64, "batch": 2, "holdout": "0", "threads": 1}
    return TrainConfig(**{**values, "max_steps": 2, "lr": 1e-3, **changes})


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tables of other questions."""
    folder, lines = tmp_path_factory.mktemp("data"), DATA.read_text().splitlines(keepends=True)
    paths = folder / "one.csv", folder / "two.csv"
    for path, rows in zip(paths, (lines[1:5], lines[5:9]), strict=True):
        path.write_text(lines[0] + "".join(rows))
    return paths


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tables: tuple[Path, Path]) -> Path:
    """An adapter of rank 3 on attn_q and attn_v, trained as llama2 with a system text."""
    out = tmp_path_factory.mktemp("trained")
    settings = {"rank": 3, "alpha": 6.0, "targets": ("attn_q", "attn_v"), "template": "llama2", "system": "Be brief."}
    fine_tune(config(tables[0], **settings), out, quiet=True)
    return out / "adapter.gguf"


def test_it_starts_where_the_adapter_is(tmp_path: Path, tables: tuple[Path, Path], trained: Path) -> None:
    start = read_adapter(trained)
    session = prepare(config(tables[1], from_adapter=str(trained)), Outputs.folder(tmp_path))
    settings = session.built.config
    assert (settings.rank, settings.alpha, settings.targets) == (3, 6.0, ("attn_q", "attn_v"))
    assert (settings.template, settings.system) == ("llama2", "Be brief.")
    engine = session.built.engine
    assert set(engine.adapter.tensor_names()) == set(start.tensors)
    for name, values in start.tensors.items():
        np.testing.assert_array_equal(engine.adapter.get(name), values)
        np.testing.assert_array_equal(session.built.initial().tensors[name], values)
    assert all(not moment.any() for pair in engine.moments().values() for moment in pair)
    assert (engine.n_steps, session.state.step) == (0, 0)
    result = session.loop(Progress(quiet=True)).run()
    written = read_adapter(result.adapter)
    assert any((written.tensors[name] != values).any() for name, values in start.tensors.items())
    assert written.notes == {**start.notes, "from_adapter": adapter_fingerprint(trained), "step": "2"}
    assert TrainConfig.from_dict(settings.to_dict()) == settings
    assert forecast(config(tables[1], from_adapter=str(trained))).total_steps == 2


def test_a_continued_run_equals_an_uninterrupted_one(tmp_path: Path, tables: tuple[Path, Path], trained: Path) -> None:
    fine_tune(config(tables[1], from_adapter=str(trained), save_every="1"), tmp_path / "whole", quiet=True)
    checkpoint = load_checkpoint(tmp_path / "whole/checkpoint-1.gguf")
    again = prepare(checkpoint.config, Outputs.folder(tmp_path / "again"), checkpoint=checkpoint)
    again.loop(Progress(quiet=True)).run()
    one, other = (tmp_path / name / "adapter.gguf" for name in ("whole", "again"))
    assert one.read_bytes() == other.read_bytes()


def test_given_settings_go_before_the_files(tmp_path: Path, tables: tuple[Path, Path], trained: Path) -> None:
    given = {"rank": 3, "alpha": 6.0, "targets": ("attn_v", "attn_q"), "template": "chatml"}
    session = prepare(config(tables[1], from_adapter=str(trained), **given), Outputs.folder(tmp_path))
    assert session.built.config.template == "chatml"
    assert session.state.notes["template"] == "chatml"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"rank": 4}, "--rank is 4, and its rank 3"),
        ({"alpha": 3.0}, "--alpha is 3, and its alpha 6"),
        ({"targets": ("all",)}, "--targets is all, and its linears are attn_q,attn_v"),
        ({"targets": ("attn_q",)}, "--targets is attn_q, and"),
        ({"rslora": True}, "--rslora"),
    ],
)
def test_what_disagrees_is_named(
    tmp_path: Path, tables: tuple[Path, Path], trained: Path, given: dict[str, Any], text: str
) -> None:
    with pytest.raises(GgtuneError, match=text):
        prepare(config(tables[1], from_adapter=str(trained), **given), Outputs.folder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def changed(adapter: Path, to: Path, **changes: Any) -> str:
    write_adapter(to, dataclasses.replace(read_adapter(adapter), **changes))
    return str(to)


def test_different_ranks_are_refused(tmp_path: Path, tables: tuple[Path, Path], trained: Path) -> None:
    tensors = dict(read_adapter(trained).tensors)
    name = "blk.0.attn_q.weight"
    tensors[name + ".lora_a"] = tensors[name + ".lora_a"][:2]
    tensors[name + ".lora_b"] = tensors[name + ".lora_b"][:, :2]
    mixed = changed(trained, tmp_path / "mixed.gguf", tensors=tensors)
    with pytest.raises(GgtuneError, match=r"pairs of different rank \(2, 3\)"):
        prepare(config(tables[1], from_adapter=mixed), Outputs.folder(tmp_path / "run"))


def test_alpha_0_is_a_scale_of_1(tables: tuple[Path, Path], tmp_path: Path, trained: Path) -> None:
    path = changed(trained, tmp_path / "a.gguf", alpha=0.0)
    assert settled(config(tables[1], from_adapter=path), Model(str(MODEL))).config.effective_alpha == 3.0


def test_another_base_is_refused(tmp_path: Path, tables: tuple[Path, Path], trained: Path) -> None:
    notes = {**read_adapter(trained).notes, "base_fingerprint": "0" * 64}
    other = changed(trained, tmp_path / "other.gguf", notes=notes)
    with pytest.raises(GgtuneError, match="another base"):
        prepare(config(tables[1], from_adapter=other), Outputs.folder(tmp_path / "run"))
    session = prepare(config(tables[1], from_adapter=other, force=True), Outputs.folder(tmp_path / "run"))
    assert any("another base" in line for line in session.report)
    assert session.state.notes["base_fingerprint"] == session.state.model_fingerprint


def test_linears_that_the_file_leaves_out(tmp_path: Path, tables: tuple[Path, Path], trained: Path) -> None:
    left_out = ("blk.3.attn_q.weight", "blk.5.attn_v.weight")
    tensors = {k: v for k, v in read_adapter(trained).tensors.items() if not k.startswith(left_out)}
    partial = changed(trained, tmp_path / "partial.gguf", tensors=tensors)
    session = prepare(config(tables[1], from_adapter=partial), Outputs.folder(tmp_path / "run"))
    assert "2 more of the same kinds, which it leaves out, start at zero" in session.report[0]
    for name in left_out:
        assert session.built.engine.adapter.get(name + ".lora_a").any()
        assert not session.built.engine.adapter.get(name + ".lora_b").any()


def test_a_table_with_columns_of_other_names_is_asked_alike(tmp_path: Path, trained: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("Frage,Antwort\nWarum?,Darum.\nWo?,Da.\n")
    columns = {"question_column": "Frage", "answer_column": "Antwort"}
    session = prepare(config(table, from_adapter=str(trained), **columns), Outputs.folder(tmp_path / "run"))
    assert session.state.notes["template"] == "llama2"
    assert session.state.notes["system"] == "Be brief."


def test_sft_text_keeps_its_own_template(tmp_path: Path, trained: Path) -> None:
    text = tmp_path / "train.txt"
    text.write_text("<SFT><|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause.<|im_end|>\n" * 4)
    session = prepare(config(text, from_adapter=str(trained)), Outputs.folder(tmp_path / "run"))
    assert session.state.notes["template"] == "chatml"
    assert not session.state.notes.get("system")


@pytest.mark.parametrize("name", ["llama", "gemma", "qwen2"])
def test_an_adapter_of_llama_cpps_converter(name: str, tables: tuple[Path, Path]) -> None:
    path = GOLDEN / f"{name}-lora.gguf"
    start = settled(config(tables[0], from_adapter=str(path)), Model(str(GOLDEN / f"{name}.gguf")))
    content = read_adapter(path)
    assert (start.config.rank, start.config.alpha) == (content.rank, content.alpha)
    assert start.notes == {"from_adapter": adapter_fingerprint(path)}


@pytest.mark.parametrize(("name", "flipped"), [("token_embd.weight", True), ("output.weight", False)])
def test_pairs_beside_the_layers_are_refused(
    tmp_path: Path, tables: tuple[Path, Path], name: str, flipped: bool
) -> None:
    """An imported adapter may have them; only merging and llama.cpp can use them."""
    model = Model(str(GOLDEN / "llama.gguf"))
    shape = next(tensor.shape for tensor in model.tensors() if tensor.name == name)  # (rows, columns)
    content = read_adapter(GOLDEN / "llama-lora.gguf")
    a, b = (np.ones((content.rank, shape[1]), np.float32), np.ones((shape[0], content.rank), np.float32))
    if flipped:
        a, b = np.ones((shape[0], content.rank), np.float32), np.ones((shape[1], content.rank), np.float32)
    path = tmp_path / "a.gguf"
    tensors = {f"{name}.lora_a": a, f"{name}.lora_b": b, **content.tensors}
    write_adapter(path, dataclasses.replace(content, tensors=tensors))
    with pytest.raises(GgtuneError, match=f"adapts {name} beside the layers, which ggtune doesn't train"):
        settled(config(tables[0], from_adapter=str(path)), model)
    with pytest.raises(GgtuneError, match=f"adapts {name} beside the layers, which ggtune does only in a merged"):
        load_adapter(path, model)


def test_a_sum_of_adapters_is_none_any_more(tmp_path: Path, tables: tuple[Path, Path], trained: Path) -> None:
    path = tmp_path / "sum.gguf"
    stack_adapters([(trained, 1.0), (trained, 0.5)], path)
    start = settled(config(tables[1], from_adapter=str(path)), Model(str(MODEL)))
    assert (start.config.rank, set(start.notes)) == (6, {"base_fingerprint", "from_adapter", "step"})


def test_a_checkpoint_is_no_adapter(tmp_path: Path, tables: tuple[Path, Path], trained: Path) -> None:
    with pytest.raises(GgtuneError, match="is a checkpoint, not an adapter"):
        settled(config(tables[0], from_adapter=str(trained.parent / "checkpoint-2.gguf")), Model(str(MODEL)))


def test_without_an_adapter_nothing_is_changed(tables: tuple[Path, Path]) -> None:
    settings = config(tables[0])
    start = settled(settings, Model(str(MODEL), header_only=True))
    assert start.config is settings
    assert (start.notes, start.messages) == ({}, ())
