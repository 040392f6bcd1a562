"""Importance matrices: what is gathered, both file formats, and what a quantizer makes of them."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from gguf_files import N_EMBD, N_FF, N_LAYER, Arrays, add_tensor, finish, model_arrays, tensors, values, write_model

from ggtune import _core
from ggtune.cli import cli
from ggtune.errors import DataError, GgtuneError, ModelError
from ggtune.interchange.imatrix import Imatrix, ImatrixEntry, gather_imatrix, read_imatrix, write_imatrix
from ggtune.interchange.quantize import QuantizeOptions, quantize_file

TEXTS = [np.array([1, *range(40, 60)], np.int32), np.array([1, 259, 260, 261, 100, 101], np.int32)]
N_TOKENS = sum(len(text) for text in TEXTS)


def normalized(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-5) * weight


def gather(path: Path, *, process_output: bool = False) -> Imatrix:
    return gather_imatrix(
        _core.Model(str(path)), TEXTS, context=32, threads=2, dataset="texts", process_output=process_output
    )


def test_sums_equal_numpy(tmp_path: Path) -> None:
    arrays = model_arrays()
    imatrix = gather(write_model(tmp_path / "model.gguf", arrays))
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert set(imatrix.entries) == {f"blk.{layer}.{kind}.weight" for layer in range(N_LAYER) for kind in kinds}
    # the last layer's too, of which only rows with an output are computed: all of them have one
    assert all(entry.counts.tolist() == [N_TOKENS] for entry in imatrix.entries.values())
    rows = arrays["token_embd.weight"][np.concatenate(TEXTS)].astype(np.float64)
    expected = (normalized(rows, arrays["blk.0.attn_norm.weight"]) ** 2).sum(axis=0)
    for kind in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(imatrix.entries[f"blk.0.{kind}.weight"].sums[0], expected, rtol=1e-4)
    assert imatrix.entries["blk.1.ffn_down.weight"].sums.shape == (1, N_FF)
    assert (imatrix.n_chunks, imatrix.chunk_size, list(imatrix.datasets)) == (2, 14, ["texts"])


def test_output_layer_only_where_wanted(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf")
    tied = write_model(tmp_path / "tied.gguf", {k: v for k, v in model_arrays().items() if k != "output.weight"})
    for model, name in ((path, "output.weight"), (tied, "token_embd.weight")):
        assert name not in gather(model).entries
        entry = gather(model, process_output=True).entries[name]
        assert entry.sums.shape == (1, N_EMBD)
        assert entry.counts.tolist() == [N_TOKENS]


def mixture_arrays(n_expert: int) -> Arrays:
    rng = np.random.default_rng(7)
    arrays = {name: array for name, array in model_arrays().items() if ".ffn_" not in name or "norm" in name}
    for layer in range(N_LAYER):
        arrays[f"blk.{layer}.ffn_gate_inp.weight"] = rng.normal(0, 0.5, (n_expert, N_EMBD))
        for kind, shape in (("gate", (N_FF, N_EMBD)), ("up", (N_FF, N_EMBD)), ("down", (N_EMBD, N_FF))):
            arrays[f"blk.{layer}.ffn_{kind}_exps.weight"] = rng.normal(0, 0.05, (n_expert, *shape))
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def test_experts_have_sums_of_their_own(tmp_path: Path) -> None:
    numbers = {"llama.expert_count": 4, "llama.expert_used_count": 2}
    model = write_model(tmp_path / "model.gguf", mixture_arrays(4), numbers=numbers)
    entries = gather(model).entries
    router, gate, down = (entries[f"blk.0.ffn_{kind}.weight"] for kind in ("gate_inp", "gate_exps", "down_exps"))
    assert gate.sums.shape == (4, N_EMBD)
    assert down.sums.shape == (4, N_FF)
    assert gate.counts.sum() == 2 * N_TOKENS
    assert np.array_equal(gate.counts, down.counts)
    # each token's input goes to two experts, and to the router once
    np.testing.assert_allclose(gate.sums.sum(axis=0), 2 * router.sums[0], rtol=1e-5)
    quantize_file(
        str(model), tmp_path / "q2.gguf", "Q2_K_S", QuantizeOptions(), imatrix=Imatrix(entries), imatrix_file="x"
    )
    assert tensors(tmp_path / "q2.gguf")["blk.0.ffn_gate_exps.weight"].tensor_type.name == "Q2_K"


def test_expert_without_tokens_weighs_evenly() -> None:
    entry = ImatrixEntry(np.array([[2.0, 4.0], [0.0, 0.0]], np.float32), np.array([2.0, 0.0], np.float32))
    assert entry.means().tolist() == [[1.0, 2.0], [1.0, 1.0]]


def test_activations_that_are_not_finite(tmp_path: Path) -> None:
    arrays = model_arrays()
    arrays["blk.0.attn_norm.weight"][5] = np.inf
    with pytest.raises(GgtuneError, match=r"an input of blk\.0\.attn_q\.weight is not a finite number"):
        gather(write_model(tmp_path / "model.gguf", arrays))


def test_wrong_texts(tmp_path: Path) -> None:
    collector = _core.ImatrixCollector(_core.Model(str(write_model(tmp_path / "model.gguf"))), context=4)
    with pytest.raises(GgtuneError, match="5 tokens does not fit the context of 4"):
        collector.add(np.arange(5, dtype=np.int32))
    with pytest.raises(GgtuneError, match="not in the vocabulary"):
        collector.add(np.array([99999], np.int32))
    assert collector.entries() == {}


def test_gguf_round_trip(tmp_path: Path) -> None:
    imatrix = gather(write_model(tmp_path / "model.gguf"))
    write_imatrix(tmp_path / "imatrix.gguf", imatrix, "llama")
    again = read_imatrix(tmp_path / "imatrix.gguf")
    assert (list(again.datasets), again.n_chunks, again.chunk_size) == (["texts"], 2, 14)
    assert again.entries.keys() == imatrix.entries.keys()
    for name, entry in imatrix.entries.items():
        assert np.array_equal(again.entries[name].sums, entry.sums)
        assert np.array_equal(again.entries[name].counts, entry.counts)
    # as llama.cpp's loader looks them up
    raw = tensors(tmp_path / "imatrix.gguf")["blk.0.attn_q.weight.counts"]
    assert list(raw.shape) == [1, 1]


def legacy_bytes(entries: dict[str, tuple[int, list[float]]], *, end: bytes = b"") -> bytes:
    data = struct.pack("<i", len(entries))
    for name, (n_calls, numbers) in entries.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", n_calls, len(numbers))
        data += struct.pack(f"<{len(numbers)}f", *numbers)
    return data + end


def test_old_format(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    end = struct.pack("<ii", 7, 4) + b"wiki"
    path.write_bytes(legacy_bytes({"blk.0.attn_q.weight": (2, [2.0, 8.0]), "b": (0, [3.0])}, end=end))
    imatrix = read_imatrix(path)
    means = imatrix.means()
    assert means["blk.0.attn_q.weight"].tolist() == [[1.0, 4.0]]
    assert means["b"].tolist() == [[3.0]]
    assert (imatrix.n_chunks, list(imatrix.datasets)) == (7, ["wiki"])
    path.write_bytes(legacy_bytes({"b": (1, [3.0])}))
    assert read_imatrix(path).n_chunks == 0


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "imatrix"
    whole = legacy_bytes({"blk.0.attn_q.weight": (2, [2.0, 8.0])})

    def message(data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(ModelError) as caught:
            read_imatrix(path)
        return str(caught.value)

    for n in range(len(whole)):
        assert "importance matrix" in message(whole[:n])
    assert "it says that it has -5 entries" in message(struct.pack("<i", -5))
    assert "truncated" in message(struct.pack("<iii", 1, 4, 4))
    assert "not UTF-8" in message(whole.replace(b"blk", b"\xff\xfe\xff"))
    assert "sums of squares" in message(legacy_bytes({"b": (1, [-1.0])}))
    assert "sums of squares" in message(legacy_bytes({"b": (1, [float("nan")])}))
    model = write_model(tmp_path / "model.gguf")
    assert "is no importance matrix" in message(model.read_bytes())
    with pytest.raises(ModelError, match="can't read"):
        read_imatrix(tmp_path / "missing")
    writer = gguf.GGUFWriter(path, "llama")
    add_tensor(writer, "b.in_sum2", np.ones((2, 4), np.float32), "f32")
    finish(writer)
    with pytest.raises(ModelError, match=r"b\.counts is missing"):
        read_imatrix(path)


@pytest.mark.parametrize("file_type", ["Q4_K_S", "IQ4_XS", "Q3_K_S"])
def test_columns_of_weight_lose_less(file_type: str, tmp_path: Path) -> None:
    arrays = model_arrays()
    source = write_model(tmp_path / "source.gguf", arrays)
    name = "blk.0.ffn_up.weight"
    heavy = np.arange(N_EMBD) % 8 == 0
    entry = ImatrixEntry(np.where(heavy, 100.0, 0.01)[None].astype(np.float32), np.ones(1, np.float32))
    errors = []
    for imatrix in (None, Imatrix({name: entry})):
        quantize_file(str(source), tmp_path / "out.gguf", file_type, QuantizeOptions(pure=True), imatrix=imatrix)
        errors.append(((values(tmp_path / "out.gguf", name) - arrays[name])[:, heavy] ** 2).mean())
    assert errors[1] < 0.8 * errors[0]


def test_file_says_where_its_matrix_is_from(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source.gguf")
    imatrix = gather(source)
    output = tmp_path / "out.gguf"
    quantize_file(str(source), output, "Q4_K_M", QuantizeOptions(), imatrix=imatrix, imatrix_file="é" * 100)
    reader = gguf.GGUFReader(output)
    written = {key: reader.get_field(f"quantize.imatrix.{key}").contents() for key in ("file", "dataset")}
    assert written == {"file": "é" * 63, "dataset": "texts"}  # llama.cpp takes 127 bytes
    assert reader.get_field("quantize.imatrix.entries_count").contents() == len(imatrix.entries)
    assert reader.get_field("quantize.imatrix.chunks_count").contents() == 2


def test_matrix_of_another_model(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source.gguf")
    name = "blk.0.attn_q.weight"

    def message(name: str, n: int) -> str:
        entry = ImatrixEntry(np.ones((1, n), np.float32), np.ones(1, np.float32))
        with pytest.raises(GgtuneError) as caught:
            quantize_file(str(source), tmp_path / "o.gguf", "Q4_0", QuantizeOptions(), imatrix=Imatrix({name: entry}))
        assert not (tmp_path / "o.gguf").exists()
        return str(caught.value)

    assert f"{name} has 128 values in it, and is [256, 256]" in message(name, 128)
    assert "has none of the tensors" in message("blk.77.attn_q.weight", 256)


def test_extreme_matrices_abort_nothing(tmp_path: Path) -> None:
    # the largest weights that F16 holds, and importances whose product with them no float holds: ggml would assert
    arrays = {
        name: array * 2e5 if name.startswith("blk.") and array.ndim == 2 else array
        for name, array in model_arrays().items()
    }
    source = write_model(tmp_path / "source.gguf", arrays)
    rng = np.random.default_rng(0)
    for scale in (1e30, 1e-36, 0.0):
        entries = {}
        for name, array in arrays.items():
            if array.ndim == 2:
                sums = (np.exp(rng.normal(0, 3, (1, array.shape[1]))) * scale).astype(np.float32)
                entries[name] = ImatrixEntry(sums, np.ones(1, np.float32))
        quantize_file(
            str(source), tmp_path / "out.gguf", "IQ2_XXS", QuantizeOptions(threads=2), imatrix=Imatrix(entries)
        )
        assert np.isfinite(values(tmp_path / "out.gguf", "blk.0.attn_q.weight")).all()


def test_command(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source.gguf")
    data = tmp_path / "train.csv"
    data.write_text("question,answer\n" + "".join(f"a {i}?,b {i}\n" for i in range(12)))
    imatrix = tmp_path / "imatrix.gguf"
    runner = CliRunner()

    def run(*arguments: object) -> str:
        result = runner.invoke(cli, ["quantize", *map(str, arguments)])
        assert result.exit_code == 0, result.output
        return result.output

    gathered = ["--imatrix-data", data, "--template", "llama2", "--imatrix-samples", 5, "--imatrix-out", imatrix]
    assert "14 weights, 5 samples" in run(source, tmp_path / "a.gguf", "q2_k_s", *gathered)
    run(source, tmp_path / "b.gguf", "Q2_K_S", "--imatrix", imatrix)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    warned = run(tmp_path / "a.gguf", tmp_path / "c.gguf", "Q8_0", "--allow-requantize")
    assert "lost a second time" in warned

    def fail(status: int, *arguments: object) -> str:
        result = runner.invoke(cli, ["quantize", *map(str, arguments)])
        assert result.exit_code == status, result.output
        return result.output

    assert "--imatrix or --imatrix-data" in fail(1, source, tmp_path / "d.gguf", "Q2_K_S")
    assert "no file type 'Q9'" in fail(1, source, tmp_path / "d.gguf", "Q9")
    assert "quantized already" in fail(1, tmp_path / "a.gguf", tmp_path / "d.gguf", "Q4_0")
    assert "exclude each other" in fail(2, source, tmp_path / "d.gguf", "Q4_0", "--imatrix", imatrix, *gathered)
    assert "give that too" in fail(2, source, tmp_path / "d.gguf", "Q4_0", "--imatrix-out", imatrix)
    assert not (tmp_path / "d.gguf").exists()


def test_data_that_can_not_be_read(tmp_path: Path) -> None:
    from ggtune.interchange.quantize import ImatrixData, imatrix_from_data

    (tmp_path / "empty.csv").write_text("question,answer\n")
    with pytest.raises(DataError):
        imatrix_from_data(
            str(write_model(tmp_path / "m.gguf")), ImatrixData(tmp_path / "empty.csv", template="llama2"), threads=1
        )
