"""Training with ggml's own operations, as devices run them, against PyTorch and against the CPU's kernels."""

import re
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
from test_golden import (
    NAMES,
    Batch,
    Golden,
    assert_adamw_follows_pytorch,
    assert_all_below,
    assert_loss_and_log_probs_equal_pytorch,
    load,
    relative_errors,
)

from architectures import files as architectures
from architectures import verdict
from ggtune import _core
from ggtune._core import Adapter, Model, Trainer
from ggtune.demo import MODEL
from ggtune.errors import GgtuneError

TEXTS = [
    '<s>[INST] What is the meaning of the noun "argon"? [/INST] a gas that does not burn </s>',
    "<s>[INST] What kind of thing is a beaker? [/INST] A beaker is a kind of vessel. </s>",
]
# CUDA, Vulkan and Metal have them all in llama.cpp 0c1e570, but for the last one, which Metal lacks (BackendTraits)
OF_DEVICES = {
    *(
        "MUL_MAT",
        "MUL_MAT_ID",
        "ARGSORT",
        "GET_ROWS",
        "SET_ROWS",
        "CONT",
        "ADD",
        "SUB",
        "MUL",
        "DIV",
        "SCALE",
        "SQR",
        "SQRT",
        "LOG",
        "CLAMP",
        "FILL",
        "ACC",
        "ADD_ID",
        "SSM_CONV",
    ),
    *("SUM_ROWS", "SOFT_MAX", "NORM", "RMS_NORM", "ROPE", "ROPE_BACK", "SILU_BACK", "CONCAT", "SET", "REPEAT"),
    *("SILU", "SIGMOID", "TANH", "EXP", "ABS", "SGN", "STEP", "RELU", "GELU_ERF", "SWIGLU", "GEGLU_ERF", "REGLU"),
    "SWIGLU_OAI",
    *("VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"),
    "GET_ROWS_BACK",
}
DROPOUT = {"dropout": 0.3, "seed": 5}

# families whose gradients need a scan backwards, which ggml has no op for
SCANS = [
    name for name in NAMES if name.startswith(("falcon-h", "granitehybrid", "jamba", "mamba", "nemotron-h", "qwen35"))
]
SCANS += ["qwen3next"]
NO_SCAN = r"ops=ggml has no gradient for (SSM_SCAN|GATED_DELTA_NET|GATED_LINEAR_ATTN|RWKV_WKV6|RWKV_WKV7)$"

Gradients = dict[str, np.ndarray]


@pytest.fixture(scope="module", params=[name for name in NAMES if name not in SCANS])
def golden(request: pytest.FixtureRequest) -> Golden:
    return load(request.param)


def n_layers(golden: Golden) -> int:
    return 1 + max(int(name.split(".")[1]) for name in golden.gradients)


def gradients_of(trainer: Trainer, batch: Batch) -> tuple[float, Gradients]:
    return trainer.accumulate(*batch).loss_sum, trainer.gradients()


def assert_same_bits(one: tuple[float, Gradients], other: tuple[float, Gradients]) -> None:
    assert one[0] == other[0]
    assert {name for name, values in one[1].items() if not np.array_equal(values, other[1][name])} == set()


def n_custom_nodes(trainer: Trainer, batch: Batch) -> int:
    return trainer.n_custom_nodes(len(batch[0]), int(np.count_nonzero(batch[4])), int(batch[2].max()) + 1)


@pytest.mark.parametrize("name", SCANS)
def test_scans_are_refused(name: str) -> None:
    with pytest.raises(GgtuneError, match=NO_SCAN):
        load(name).new_trainer(ops="ggml")


def test_gradients_equal_pytorch_without_a_node_of_ours(golden: Golden) -> None:
    trainer = golden.new_trainer(ops="ggml")
    assert n_custom_nodes(trainer, golden.batch) == 0
    assert_loss_and_log_probs_equal_pytorch(golden, trainer.evaluate(*golden.batch))
    assert_loss_and_log_probs_equal_pytorch(golden, trainer.accumulate(*golden.batch))
    assert_all_below(relative_errors(trainer.gradients(), golden.gradients), 1e-4)


def test_all_operations_are_devices(golden: Golden) -> None:
    trainer = golden.new_trainer(ops="ggml", **DROPOUT)
    assert {name.split()[0] for name in trainer.profile(*golden.batch)} <= OF_DEVICES


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {*SCANS, "deepseek3"}])
def test_attention_is_made_a_stretch_of_rows_at_a_time(name: str) -> None:
    """But for multi-head latent attention, whose heads see all keys as one."""
    golden = load(name)
    shape = len(golden.batch[0]), int(np.count_nonzero(golden.batch[4])), int(golden.batch[2].max()) + 1
    own, of_llama_cpp = (
        golden.new_trainer(ops="ggml", precision=precision).nodes(*shape)["CPU"]["SOFT_MAX"]
        for precision in ("auto", "llama.cpp")
    )
    assert own > of_llama_cpp  # its gradient computes the scores again


def test_adamw_follows_pytorch(golden: Golden) -> None:
    assert_adamw_follows_pytorch(golden, golden.new_trainer(ops="ggml"))


def test_half_of_the_layers(golden: Golden) -> None:
    trainer = golden.new_trainer(ops="ggml", ggml_layers=n_layers(golden) // 2)
    of_cpu = n_custom_nodes(golden.new_trainer(), golden.batch)
    assert 0.1 * of_cpu < n_custom_nodes(trainer, golden.batch) < 0.9 * of_cpu  # layers differ in mixtures
    assert_loss_and_log_probs_equal_pytorch(golden, trainer.accumulate(*golden.batch))
    assert_all_below(relative_errors(trainer.gradients(), golden.gradients), 1e-4)


def test_adamw_follows_pytorch_with_half_of_the_layers(golden: Golden) -> None:
    assert_adamw_follows_pytorch(golden, golden.new_trainer(ops="ggml", ggml_layers=n_layers(golden) // 2))


def test_recomputation_and_threads_change_no_bit(golden: Golden) -> None:
    expected = gradients_of(golden.new_trainer(ops="ggml"), golden.batch)
    for n_again, threads in ((1, 2), (n_layers(golden), 1)):
        trainer = golden.new_trainer(ops="ggml", recompute_layers=n_again, threads=threads)
        assert n_custom_nodes(trainer, golden.batch) == 0
        assert_same_bits(gradients_of(trainer, golden.batch), expected)


def test_packed_samples_equal_samples_alone(golden: Golden) -> None:
    packed, alone = golden.new_trainer(ops="ggml"), golden.new_trainer(ops="ggml")
    packed.accumulate(*golden.batch)
    for sample in golden.samples():
        alone.accumulate(*sample)
    assert_all_below(relative_errors(packed.gradients(), alone.gradients()), 1e-5)


@pytest.mark.parametrize("layers", [None, 1])
def test_dropout_has_the_mask_of_the_cpu(layers: int | None) -> None:
    golden = load("llama")
    plain = golden.new_trainer(ops="ggml", ggml_layers=layers, **DROPOUT)
    cpu = golden.new_trainer(**DROPOUT)
    for n in range(2):  # each micro-batch has a mask of its own
        plain.n_micro_batches = cpu.n_micro_batches = n
        _, found = gradients_of(plain, golden.batch)
        _, expected = gradients_of(cpu, golden.batch)
        assert_all_below(relative_errors(found, expected), 1e-4)
    assert min(relative_errors(found, {k: 2 * v for k, v in golden.gradients.items()}).values()) > 0.1
    assert (n_custom_nodes(plain, golden.batch) == 0) == (layers is None)


def test_dropout_when_recomputed_has_the_same_mask() -> None:
    golden = load("llama")
    expected = gradients_of(golden.new_trainer(ops="ggml", **DROPOUT), golden.batch)
    again = golden.new_trainer(ops="ggml", recompute_layers=2, **DROPOUT)
    assert_same_bits(gradients_of(again, golden.batch), expected)


@pytest.mark.parametrize("name", ["gemma2", "gpt2"])
def test_llama_cpp_alone_has_no_node_of_ours(name: str) -> None:
    """llama.cpp's own nodes forward and ggml's backward; GELU is read from a table then."""
    golden = load(name)
    trainer = golden.new_trainer(ops="ggml", precision="llama.cpp")
    assert n_custom_nodes(trainer, golden.batch) == 0
    trainer.accumulate(*golden.batch)
    assert_all_below(relative_errors(trainer.gradients(), golden.gradients), 1e-2)


def demo_batch(model: Model) -> Batch:
    texts = [model.tokenize(text) for text in TEXTS]
    rows = [np.arange(len(text) - 1, dtype=np.int32) for text in texts]
    return (
        np.concatenate([text[:-1] for text in texts]),
        np.concatenate(rows),
        np.concatenate([np.full_like(own, i) for i, own in enumerate(rows)]),
        np.concatenate([text[1:] for text in texts]),
        np.ones(sum(map(len, rows)), dtype=np.float32),
    )


def demo_adapter(model: Model) -> Adapter:
    return Adapter(model, rank=4, alpha=4.0, targets=sorted({linear.kind for linear in model.linears()}))


def demo_trainer(model: Model, **options: Any) -> Trainer:
    """Every linear adapted, by A and B that are the same for each file of the model."""
    adapter = demo_adapter(model)
    rng = np.random.default_rng(0)
    for linear in model.linears():
        adapter.set(f"{linear.name}.lora_b", rng.normal(0, 0.1, (linear.n_out, 4)).astype(np.float32))
    return Trainer(adapter, context=64, threads=2, **options)


def test_quantized_weights() -> None:
    """As close to llama.cpp's operations as floats are, and to float32 as rounding activations to 8 bits allows.

    The gradient of a quantized weight is exact, its product is ggml's: with the demo model that is 3e-3 of the loss and
    3 to 5 % of the gradients, by whomever the rest of the graph is computed.
    """
    model = Model(str(MODEL))
    batch = demo_batch(model)
    trainer = demo_trainer(model, ops="ggml")
    assert n_custom_nodes(trainer, batch) == 0
    loss, found = gradients_of(trainer, batch)
    rounded_loss, rounded = gradients_of(demo_trainer(model, precision="llama.cpp"), batch)
    assert loss == pytest.approx(rounded_loss, rel=1e-6)
    assert_all_below(relative_errors(found, rounded), 1e-4)
    exact_loss, exact = gradients_of(demo_trainer(model, precision="f32"), batch)
    assert loss == pytest.approx(exact_loss, rel=1e-2)
    assert np.median(list(relative_errors(found, exact).values())) < 0.1
    half_loss, _ = gradients_of(demo_trainer(model, ops="ggml", ggml_layers=model.n_layer // 2), batch)
    assert half_loss == pytest.approx(exact_loss, rel=1e-2)


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The demo model's weights as float32."""
    path = tmp_path_factory.mktemp("floats") / "model.gguf"
    _core.quantize_model(str(MODEL), str(path), "F32", allow_requantize=True)
    return Model(str(path))


def test_float_copies_of_quantized_weights(floats: Model) -> None:
    """Nothing is rounded: the same numbers as from the quantized weights in float32."""
    assert {tensor.type for tensor in floats.tensors()} == {"f32"}
    model = Model(str(MODEL))
    batch = demo_batch(model)
    exact_loss, exact = gradients_of(demo_trainer(model, precision="f32"), batch)
    for layers in (None, model.n_layer // 2):
        loss, found = gradients_of(demo_trainer(floats, precision="f32", ops="ggml", ggml_layers=layers), batch)
        assert loss == pytest.approx(exact_loss, rel=1e-6)
        assert_all_below(relative_errors(found, exact), 1e-4)


def test_logits_in_chunks_and_weights_in_tiles(tmp_path: Path) -> None:
    """With so large a vocabulary that 150 rows are two chunks of logits, and its matrix in float32 above 64 MiB."""
    n_vocab, n, length = 66000, 150, 50
    names = [f"word{i}" for i in range(n_vocab - len(gguf_files.VOCABULARY))]
    arrays = gguf_files.model_arrays()
    rng = np.random.default_rng(2)
    for name in ("token_embd.weight", "output.weight"):
        arrays[name] = rng.normal(0, 0.05, (n_vocab, gguf_files.N_EMBD)).astype(np.float32)
    types = dict.fromkeys(("token_embd.weight", "output.weight"), "q8_0")
    path = gguf_files.write_model(
        tmp_path / "model.gguf", arrays, types=types, vocabulary=[*gguf_files.VOCABULARY, *names]
    )
    model = Model(str(path))
    tokens, targets = rng.integers(3, n_vocab, (2, n), dtype=np.int32)
    rows = np.arange(n, dtype=np.int32)
    batch = (tokens, rows % length, rows // length, targets, np.ones(n, dtype=np.float32))
    loss, found = gradients_of(demo_trainer(model, ops="ggml"), batch)
    expected_loss, expected = gradients_of(demo_trainer(model, precision="llama.cpp"), batch)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_all_below(relative_errors(found, expected), 1e-4)


def test_scores_of_all_rows_are_never_there_at_once() -> None:
    """2,048 tokens: packed samples see their own keys alone; of a long one, some rows come after the others."""
    model = Model(str(MODEL), header_only=True)
    n_head = 4
    all_scores = n_head * 2048 * 2048 * 4

    def compute_bytes(n_samples: int, **options: Any) -> int:
        trainer = Trainer(demo_adapter(model), context=2048, threads=2, **options)
        trainer.recompute_layers = model.n_layer
        return trainer.memory(2048, 64, n_samples)["compute"]

    of_others = compute_bytes(1)  # the CPU's kernel writes no scores
    assert compute_bytes(32, ops="ggml") < of_others + all_scores / 8
    assert compute_bytes(1, ops="ggml") < of_others + 2.5 * all_scores
    assert compute_bytes(32, ops="ggml", precision="llama.cpp") > of_others + 2.5 * all_scores


def test_seconds_and_bytes_are_predicted() -> None:
    model = Model(str(MODEL), header_only=True)
    cpu = Trainer(demo_adapter(model), context=64, threads=2)
    ggml = Trainer(demo_adapter(model), context=64, threads=2, ops="ggml", **DROPOUT)
    assert ggml.memory(64, 32)["compute"] > cpu.memory(64, 32)["compute"] > 0
    assert ggml.predict_seconds(*demo_batch(Model(str(MODEL)))) > 0


@pytest.mark.parametrize("name", [name for name, why_not in verdict.read_page().items() if not why_not])
def test_every_architecture(tmp_path: Path, name: str) -> None:
    """Weights as floats, so that nothing is rounded; all layers made of ggml's operations, and half of them."""
    path = str(tmp_path / "floats.gguf")
    _core.quantize_model(str(architectures.write_model(tmp_path, name)), path, "F32", allow_requantize=True)
    model = Model(path)
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(3, model.n_vocab, (2, 24), dtype=np.int32)
    rows = np.arange(24, dtype=np.int32)
    batch = (tokens, rows % 12, rows // 12, targets, (rows % 12 > 1).astype(np.float32))
    expected_loss, expected = gradients_of(verdict.make_trainer(model, precision="f32"), batch)
    # its 22 layers of random weights make roundings ten times as large
    tolerance = 1e-3 if model.architecture == "gemma3n" else 1e-4
    for layers in (None, model.n_layer // 2):
        try:
            trainer = verdict.make_trainer(model, precision="f32", ops="ggml", ggml_layers=layers)
        except GgtuneError as error:
            if re.search(NO_SCAN, str(error)) is None:
                raise
            pytest.skip("a scan's gradient is a kernel alone")
        trainer.recompute_layers = model.n_layer - 1
        assert (n_custom_nodes(trainer, batch) == 0) == (layers is None)
        loss, found = gradients_of(trainer, batch)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert_all_below(relative_errors(found, expected), tolerance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ops": "cuda"}, "ops must be cpu or ggml, not 'cuda'"),
        ({"ops": "ggml", "ggml_layers": 9}, "0 to the model's 8, not 9"),
        ({"ops": "ggml", "ggml_layers": -1}, "0 to the model's 8, not -1"),
        ({"ops": "cpu", "ggml_layers": 1}, 'layers for ops="ggml"'),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    model = Model(str(MODEL), header_only=True)
    with pytest.raises(GgtuneError, match=message):
        Trainer(demo_adapter(model), context=64, threads=1, **options)
