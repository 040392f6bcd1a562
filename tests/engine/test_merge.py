"""Merging adapters: the arithmetic, what stays as it was, and every error."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
from gguf_files import LINEARS, N_EMBD, N_LAYER, Arrays, model_arrays, random_pairs, write_adapter, write_model

from ggtune import _core
from ggtune.errors import GgtuneError, ModelError

ADAPTED = [f"blk.{layer}.{kind}.weight" for layer in range(N_LAYER) for kind in LINEARS]
QUERY = "blk.0.attn_q.weight"


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return model_arrays()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, arrays: Arrays) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "base.gguf", arrays)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, arrays: Arrays) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter") / "adapter.gguf", random_pairs(ADAPTED, arrays))


def key_bytes(path: Path) -> dict[str, bytes]:
    """The raw bytes of every key, in the file's order."""
    reader = gguf.GGUFReader(path)
    return {
        name: b"".join(part.tobytes() for part in field.parts)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }


def test_f32_merge_equals_numpy(base: Path, adapter: Path, arrays: Arrays, tmp_path: Path) -> None:
    output = tmp_path / "merged.gguf"
    counts = _core.merge(str(base), [(str(adapter), 0.5)], str(output), threads=2)
    assert counts["n_merged_tensors"] == len(ADAPTED)
    assert counts["n_tensors"] == len(arrays)
    assert counts["n_bytes"] == output.stat().st_size
    pairs = random_pairs(ADAPTED, arrays)
    for name, array in arrays.items():
        merged = gguf_files.tensors(output)[name].data
        if name not in pairs:
            assert np.array_equal(merged, array)
            continue
        a, b = (each.astype(np.float64) for each in pairs[name])
        expected = array + 0.5 * 8.0 / 4 * (b @ a)
        assert np.abs(merged - expected).max() < 1e-6
        assert np.abs(merged - array).max() > 1e-2
    assert gguf_files.names(tmp_path) == ["merged.gguf"]


def test_two_adapters_add_up(base: Path, arrays: Arrays, tmp_path: Path) -> None:
    first = random_pairs([QUERY, "blk.1.ffn_down.weight"], arrays, rank=2, seed=2)
    second = random_pairs([QUERY], arrays, rank=8, seed=3)
    paths = [
        (str(write_adapter(tmp_path / "first.gguf", first, alpha=4.0)), 1.0),
        (str(write_adapter(tmp_path / "second.gguf", second, alpha=0.0)), -0.25),  # no alpha: no division by the rank
    ]
    output = tmp_path / "merged.gguf"
    _core.merge(str(base), paths, str(output))
    product = 2.0 * first[QUERY][1] @ first[QUERY][0] - 0.25 * second[QUERY][1] @ second[QUERY][0]
    assert np.abs(gguf_files.tensors(output)[QUERY].data - (arrays[QUERY] + product)).max() < 1e-6
    down = arrays["blk.1.ffn_down.weight"] + 2.0 * np.matmul(*reversed(first["blk.1.ffn_down.weight"]))
    assert np.abs(gguf_files.tensors(output)["blk.1.ffn_down.weight"].data - down).max() < 1e-6
    assert gguf_files.field(output, "general.finetune") == "Chemistry + Chemistry"


def test_embedding_pair_is_flipped(base: Path, arrays: Arrays, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    n_vocab = arrays["token_embd.weight"].shape[0]
    a = rng.normal(0, 1, (n_vocab, 3)).astype(np.float32)  # ne = [rank, n_vocab]
    a[7] = 0
    b = rng.normal(0, 1, (N_EMBD, 3)).astype(np.float32)  # ne = [rank, n_embd]
    path = write_adapter(tmp_path / "adapter.gguf", {"token_embd.weight": (a, b)}, alpha=3.0)
    output = tmp_path / "merged.gguf"
    counts = _core.merge(str(base), [(str(path), 1.0)], str(output))
    merged = gguf_files.tensors(output)["token_embd.weight"].data
    assert np.abs(merged - (arrays["token_embd.weight"] + a @ b.T)).max() < 1e-5
    assert counts["n_changed_rows"] == n_vocab - 1


# Unbiased rounding has up to sqrt(2) times the error of nearest, the ends of the grid add a little.
@pytest.mark.parametrize(("rounding", "most"), [("unbiased", 1.6), ("nearest", 1.1)])
@pytest.mark.parametrize("ggml_type", ["f16", "bf16", "q8_0", "q4_0", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_xs"])
def test_types_and_other_bytes_are_kept(
    ggml_type: str, rounding: str, most: float, adapter: Path, arrays: Arrays, tmp_path: Path
) -> None:
    types = dict.fromkeys(ADAPTED, ggml_type) | {"output.weight": "q6_K", QUERY: "q8_0"}
    base = write_model(tmp_path / "base.gguf", arrays, types=types, file_type=17)
    output = tmp_path / "merged.gguf"
    _core.merge(str(base), [(str(adapter), 1.0)], str(output), rounding=rounding, threads=2)
    before, after = gguf_files.tensors(base), gguf_files.tensors(output)
    assert list(before) == list(after)
    pairs = random_pairs(ADAPTED, arrays)
    for name, tensor in before.items():
        assert after[name].tensor_type == tensor.tensor_type
        if name not in pairs:
            assert after[name].data.tobytes() == tensor.data.tobytes()
            continue
        dequantized = gguf_files.values(base, name)
        expected = dequantized + 2.0 * pairs[name][1] @ pairs[name][0]
        quantized = _core.quantize(tensor.tensor_type.name, expected.astype(np.float32))
        rounded = _core.dequantize(tensor.tensor_type.name, quantized, expected.shape[1])
        # The sums differ in their last bits, and so may the scales that the quantizer finds; not so the accuracy.
        errors = [np.sqrt(np.mean((each - expected) ** 2)) for each in (gguf_files.values(output, name), rounded)]
        assert errors[0] <= most * errors[1]

    keys_before, keys_after = key_bytes(base), key_bytes(output)
    changed = {key for key in keys_before if keys_after.get(key) != keys_before[key]}
    assert changed == {"general.name"}
    added = set(keys_after) - set(keys_before)
    assert added == {"general.finetune", "general.base_model.count", "general.base_model.0.name"}
    assert [key for key in keys_after if key in keys_before] == list(keys_before)


def test_row_without_product_keeps_its_bytes(arrays: Arrays, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.gguf", arrays, types="q4_K")
    ((a, b),) = random_pairs([QUERY], arrays).values()
    b[: N_EMBD // 2] = 0
    path = write_adapter(tmp_path / "adapter.gguf", {QUERY: (a, b)})
    output = tmp_path / "merged.gguf"
    counts = _core.merge(str(base), [(str(path), 1.0)], str(output))
    before, after = gguf_files.tensors(base)[QUERY].data, gguf_files.tensors(output)[QUERY].data
    assert np.array_equal(before[: N_EMBD // 2], after[: N_EMBD // 2])
    assert (before[N_EMBD // 2 :] != after[N_EMBD // 2 :]).any(axis=1).all()
    assert counts["n_changed_rows"] == N_EMBD // 2


def test_number_of_threads_changes_nothing(arrays: Arrays, adapter: Path, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.gguf", arrays, types="q5_K")
    outputs = [tmp_path / f"{threads}.gguf" for threads in (1, 3)]
    for output, threads in zip(outputs, (1, 3), strict=True):
        _core.merge(str(base), [(str(adapter), 1.0)], str(output), threads=threads)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_outtype_is_of_the_adapted_tensors(arrays: Arrays, adapter: Path, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.gguf", arrays, types="q4_K", file_type=15)
    output = tmp_path / "merged.gguf"
    _core.merge(str(base), [(str(adapter), 1.0)], str(output), outtype="f16")
    for name, tensor in gguf_files.tensors(output).items():
        expected = "F16" if name in ADAPTED else gguf_files.tensors(base)[name].tensor_type.name
        assert tensor.tensor_type.name == expected
    pair = random_pairs(ADAPTED, arrays)[QUERY]
    expected = gguf_files.values(base, QUERY) + 2.0 * pair[1] @ pair[0]
    assert np.abs(gguf_files.values(output, QUERY) - expected).max() < 1e-3
    assert gguf_files.field(output, "general.file_type") == 1  # mostly F16
    _core.check_gguf(str(output))


def test_outtype_of_few_tensors_leaves_the_file_type(arrays: Arrays, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.gguf", arrays, types="q4_K", file_type=15)
    path = write_adapter(tmp_path / "adapter.gguf", random_pairs([QUERY], arrays))
    output = tmp_path / "merged.gguf"
    _core.merge(str(base), [(str(path), 1.0)], str(output), outtype="Q8_0")
    assert gguf_files.tensors(output)[QUERY].tensor_type.name == "Q8_0"
    assert gguf_files.field(output, "general.file_type") == 15


def test_names_and_metadata(arrays: Arrays, adapter: Path, tmp_path: Path) -> None:
    strings = {
        "general.organization": "Somebody",
        "general.base_model.0.name": "Ancestor",
        "general.base_model.0.repo_url": "https://example.com/ancestor",
    }
    base = write_model(tmp_path / "base.gguf", arrays, strings=strings, numbers={"general.base_model.count": 1})
    output = tmp_path / "merged.gguf"
    metadata = {"general.finetune": "tutor", "general.dataset.0.name": "Questions", "general.description": "é\n"}
    _core.merge(str(base), [(str(adapter), 1.0)], str(output), metadata=metadata)
    expected = {
        "general.name": "Tiny Chemistry",
        "general.finetune": "tutor",
        "general.base_model.count": 1,
        "general.base_model.0.name": "Tiny",
        "general.base_model.0.organization": "Somebody",
        "general.base_model.0.repo_url": None,
        "general.dataset.count": 1,
        "general.dataset.0.name": "Questions",
        "general.description": "é\n",
        "general.organization": "Somebody",
    }
    assert {key: gguf_files.field(output, key) for key in expected} == expected


def test_alignment_of_the_base_is_kept(arrays: Arrays, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.gguf", arrays)
    writer = gguf.GGUFWriter(tmp_path / "aligned.gguf", "llama")
    writer.add_custom_alignment(256)
    for name, tensor in gguf_files.tensors(base).items():
        writer.add_tensor(name, np.array(tensor.data))
    aligned = gguf_files.finish(writer)
    path = write_adapter(tmp_path / "adapter.gguf", random_pairs([QUERY], arrays))
    output = tmp_path / "merged.gguf"
    _core.merge(str(aligned), [(str(path), 1.0)], str(output), outtype="q8_0")
    assert all(tensor.data_offset % 256 == 0 for tensor in gguf_files.tensors(output).values())
    unchanged = "blk.1.ffn_up.weight"
    assert np.array_equal(gguf_files.tensors(output)[unchanged].data, arrays[unchanged])


def failing_merge(base: Path, adapter: Path | list[tuple[str, float]], output: Path, **options: object) -> str:
    """The message of a merge that has to fail and to leave nothing behind."""
    folder = output.parent
    before = gguf_files.names(folder) if folder.is_dir() else None
    adapters = adapter if isinstance(adapter, list) else [(str(adapter), 1.0)]
    with pytest.raises(GgtuneError) as caught:
        _core.merge(str(base), adapters, str(output), **options)  # type: ignore[arg-type]
    assert (gguf_files.names(folder) if folder.is_dir() else None) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "qwen2"}, "another model: it is for the architecture 'qwen2'"),
        ({"adapter_type": "control_vector"}, "not a LoRA adapter"),
        ({"general_type": "model"}, "not an adapter"),
        ({"alpha": float("nan")}, "alpha has to be a finite"),
    ],
)
def test_wrong_adapter_keys(base: Path, arrays: Arrays, tmp_path: Path, options: dict, message: str) -> None:
    path = write_adapter(tmp_path / "adapter.gguf", random_pairs([QUERY], arrays), **options)
    assert message in failing_merge(base, path, tmp_path / "merged.gguf")


def test_wrong_adapter_tensors(base: Path, arrays: Arrays, tmp_path: Path) -> None:
    def message(pairs: dict, rename: tuple[str, str] | None = None) -> str:
        path = write_adapter(tmp_path / "adapter.gguf", pairs)
        if rename is not None:
            path.write_bytes(path.read_bytes().replace(rename[0].encode(), rename[1].encode()))
        return failing_merge(base, path, tmp_path / "merged.gguf")

    a, b = random_pairs([QUERY], arrays)[QUERY]
    assert f"has no tensor {QUERY.replace('0', '9')}" in message({QUERY.replace("0", "9"): (a, b)})
    assert f"tensor {QUERY} is [256, 256]" in message({QUERY: (a[:, :128], b)})
    assert f"tensor {QUERY} is [256, 256]" in message({QUERY: (a[:2], b)})
    assert f"tensor {QUERY} is [256, 256]" in message({QUERY: (b, a)})
    assert "blk.0.attn_norm.weight is [256]" in message({"blk.0.attn_norm.weight": (a, b)})
    assert f"{QUERY}.lora_b is missing" in message({QUERY: (a, b)}, (".lora_b", ".lora_c"))
    assert "neither .lora_a nor .lora_b" in message(
        {QUERY: (a, b), "blk.0.attn_norm": (a, b)}, ("blk.0.attn_norm.lora_a", "blk.0.attn_norm.weight")
    )
    assert "holds no tensors" in message({})
    a[0, 0] = np.inf
    assert f"{QUERY}.lora_a holds values that are not finite" in message({QUERY: (a, b)})


def test_embedding_of_tied_output_is_refused(arrays: Arrays, tmp_path: Path) -> None:
    tied = {name: array for name, array in arrays.items() if name != "output.weight"}
    base = write_model(tmp_path / "base.gguf", tied)
    n_vocab = arrays["token_embd.weight"].shape[0]
    pair = (np.ones((n_vocab, 2), np.float32), np.ones((N_EMBD, 2), np.float32))
    path = write_adapter(tmp_path / "adapter.gguf", {"token_embd.weight": pair})
    assert "output layer too" in failing_merge(base, path, tmp_path / "merged.gguf")


def test_wrong_options(base: Path, adapter: Path, tmp_path: Path) -> None:
    output = tmp_path / "merged.gguf"
    assert "unknown tensor type 'q9'" in failing_merge(base, adapter, output, outtype="q9")
    assert "importance matrix" in failing_merge(base, adapter, output, outtype="iq1_s")
    message = failing_merge(base, adapter, output, types={QUERY: "iq2_xs"})
    assert QUERY in message
    assert "importance matrix" in message
    assert "--outtype" in message
    assert "no tensor none.weight" in failing_merge(base, adapter, output, types={"none.weight": "q8_0"})
    assert "rounding" in failing_merge(base, adapter, output, rounding="up")
    assert "no adapter" in failing_merge(base, [], output)
    assert "scale has to be" in failing_merge(base, [(str(adapter), float("inf"))], output)
    for key in ("general.architecture", "llama.block_count", "general.file_type", ""):
        assert "can't be set" in failing_merge(base, adapter, output, metadata={key: "x"})


def test_wrong_paths(base: Path, adapter: Path, tmp_path: Path) -> None:
    output = tmp_path / "merged.gguf"
    assert "no such file" in failing_merge(tmp_path / "missing.gguf", adapter, output)
    assert "no such file" in failing_merge(base, tmp_path / "missing.gguf", output)
    assert "doesn't exist" in failing_merge(base, adapter, tmp_path / "missing" / "merged.gguf")
    assert "not a folder" in failing_merge(base, adapter, tmp_path)
    before = base.read_bytes()
    link = tmp_path / "link.gguf"
    link.symlink_to(base)
    for same in (base, link):
        assert "the base model itself" in failing_merge(base, adapter, same)
    assert "the adapter itself" in failing_merge(base, adapter, adapter)
    assert base.read_bytes() == before


def test_truncated_files(base: Path, adapter: Path, tmp_path: Path) -> None:
    for source, name in ((base, "base"), (adapter, "adapter")):
        cut = tmp_path / f"{name}.gguf"
        cut.write_bytes(source.read_bytes()[:-1000])
        paths = (cut, adapter) if name == "base" else (base, cut)
        message = failing_merge(*paths, tmp_path / "merged.gguf")
        assert str(cut) in message
        assert "truncated" in message
        assert "1000 are missing" in message


def test_split_model_is_refused(arrays: Arrays, adapter: Path, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.gguf", arrays, numbers={"split.count": 3})
    assert "llama-gguf-split --merge" in failing_merge(base, adapter, tmp_path / "merged.gguf")


@pytest.mark.skipif(not hasattr(os, "statvfs"), reason="needs POSIX")
def test_lack_of_disk_space(arrays: Arrays, adapter: Path, tmp_path: Path) -> None:
    # A sparse tensor larger than the disk: nothing is ever written of it.
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    n_rows = free // (4 * N_EMBD) + 1000
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "llama")
    writer.add_tensor(QUERY, arrays[QUERY])
    writer.add_tensor_info("huge", (n_rows, N_EMBD), np.dtype(np.float32), n_rows * N_EMBD * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    base = tmp_path / "base.gguf"
    try:
        os.truncate(base, base.stat().st_size + arrays[QUERY].nbytes + n_rows * N_EMBD * 4 + 64)
    except OSError:
        pytest.skip("the file system has no such large files")
    path = write_adapter(tmp_path / "adapter.gguf", random_pairs([QUERY], arrays))
    assert "make room" in failing_merge(base, path, tmp_path / "merged.gguf")


def test_interrupt_leaves_nothing_behind(arrays: Arrays, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large = {QUERY: rng.normal(size=(8192, 4096)).astype(np.float32)}
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "llama")
    writer.add_tensor(QUERY, large[QUERY])
    base = gguf_files.finish(writer)
    adapter = write_adapter(tmp_path / "adapter.gguf", random_pairs([QUERY], large))
    sent = 0.0

    def interrupt() -> None:
        nonlocal sent
        sent = time.monotonic()
        signal.raise_signal(signal.SIGINT)

    timer = threading.Timer(0.3, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        _core.merge(str(base), [(str(adapter), 1.0)], str(tmp_path / "merged.gguf"), outtype="iq3_s")
    assert time.monotonic() - sent < 1
    assert gguf_files.names(tmp_path) == ["adapter.gguf", "base.gguf"]


def test_errors_of_files_are_model_errors(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not an adapter"):
        _core.merge(str(base), [(str(base), 1.0)], str(tmp_path / "merged.gguf"))
