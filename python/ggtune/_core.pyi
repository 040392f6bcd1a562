"""Typed surface of the native module: llama.cpp, ggtune's gradients and kernels.

Shapes are NumPy shapes (row-major); a ggml tensor of ``ne = [a, b]`` is an array of shape ``(b, a)``.
Every call that takes long releases the GIL and can be interrupted by a signal (Ctrl-C) within about 0.1 s.
All failures raise :class:`ggtune.errors.GgtuneError` with a message for the user.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]

@final
class TensorInfo:
    """One tensor of a model file."""

    name: str
    type: str  # ggml's name in lower case: "f32", "q5_K", ...
    shape: tuple[int, ...]
    n_bytes: int

@final
class Linear:
    """A linear layer that can carry a LoRA adapter.

    Its weight has shape ``(n_out, n_in)``, or ``(n_mat, n_out, n_in)`` where it is a stack of matrices (experts,
    heads), each of which has a pair of its own.
    """

    name: str  # "blk.0.attn_q.weight"
    kind: str  # "attn_q", "ffn_up_exps": the part of the name between "blk.N." and ".weight"
    layer: int
    n_in: int
    n_out: int
    n_mat: int  # 1 where it is no stack
    routed: bool  # each token takes some of the matrices alone: experts
    scale: str  # tensor of a factor for each matrix's product, behind which an adapter's is added; "": none
    type: str

@final
class Model:
    """A GGUF model: memory-mapped weights, tokenizer, metadata."""

    def __init__(
        self,
        path: str,
        *,
        devices: Sequence[str] = (),
        device_layers: Sequence[int] = (),
        cpu_layers: Sequence[int] = (),
        cpu_experts: int = 0,
        exact: bool = False,
        vocab_only: bool = False,
        header_only: bool = False,
    ) -> None:
        """``header_only`` reads no weights: enough for ``Adapter`` and ``Trainer.memory``, not for training.

        The last layers lie on devices, the output head counted as one more (layer ``n_layer``): ``device_layers[i]`` of
        them on ``devices[i]``, in order; all others on the CPU, and so do ``cpu_layers``, whichever they are, and the
        experts' matrices of the first ``cpu_experts`` layers. ``exact``: devices compute in float32 where they have a
        choice, as ``precision="f32"`` needs it; a process opens devices one way alone. Raises ``DeviceMemoryError``
        where the weights don't fit, ``GgtuneError`` for devices and numbers of layers that there are not.
        """
    path: str
    architecture: str
    chat_template: str | None
    n_params: int
    n_bytes: int
    n_layer: int
    n_embd: int
    n_vocab: int
    n_ctx_train: int
    layer_bytes: list[int]  # of the weights of each layer; [n_layer] are the head's
    layer_devices: list[str]  # likewise: a device's name or "CPU"
    device_bytes: dict[str, int]  # of the weights, by device, "CPU" among them
    bos_token: int  # -1 where the model has none
    eos_token: int
    add_bos: bool  # the tokenizer asks for a BOS in front of every text
    add_eos: bool
    def metadata(self) -> dict[str, str]: ...
    def tensors(self) -> list[TensorInfo]: ...
    def linears(self) -> list[Linear]:
        """The weights of the blocks to which llama.cpp applies an adapter, by its own graph, in model order; none with
        ``vocab_only``."""
    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> IntArray:
        """Token ids; with ``parse_special`` the texts of special tokens (``<s>``, ...) become those tokens."""
    def detokenize(self, tokens: IntArray | Sequence[int], *, special: bool = False) -> bytes:
        """UTF-8 bytes of the tokens (a cut sequence may end inside a character)."""
    def check_answers(self) -> None:
        """Raise :class:`ggtune.errors.ModelError` for a model that llama.cpp can't answer with: one with an encoder, an
        embedding or diffusion model, one without a key that it needs. The header is enough."""
    def is_end_token(self, token: int) -> bool:
        """True for every end-of-generation token (EOS, EOT, ...)."""

@final
class Adapter:
    """A live LoRA adapter: F32 pairs A ``(rank, n_in)`` and B ``(n_out, rank)`` for each chosen linear; of a stack
    ``(n_mat, rank, n_in)`` and ``(n_mat, n_out, rank)``.

    A ~ N(0, 1/n_in) from a seed of its own per tensor, B = 0 (Hu et al. 2021, arXiv:2106.09685).
    ``alpha`` is the value of ``adapter.lora.alpha``: the product is scaled by ``alpha / rank``; with ``rslora`` the
    given alpha was multiplied by ``sqrt(rank)`` (arXiv:2312.03732).
    """

    def __init__(
        self, model: Model, *, rank: int, alpha: float, targets: Sequence[str], rslora: bool = False, seed: int = 0
    ) -> None:
        """``targets`` are kinds of :class:`Linear` ("attn_q", ...). Raises for an unknown kind or rank < 1."""
    rank: int
    alpha: float
    architecture: str
    n_params: int
    def tensor_names(self) -> list[str]:
        """``<base tensor name>.lora_a`` and ``.lora_b``, in model order."""
    def get(self, name: str) -> FloatArray:
        """A copy."""
    def set(self, name: str, values: FloatArray) -> None: ...
    def drop(self, linears: Sequence[str]) -> None:
        """Leave the pairs of these linears ("blk.0.attn_q.weight") out, before a trainer is made. Raises
        :class:`ggtune.errors.GgtuneError` where none would be left."""
    dropped: list[str]  # linears that were left out

@final
class BatchResult:
    loss_sum: float  # sum over rows of -weight * log p(target)
    weight_sum: float
    n_tokens: int
    n_targets: int  # rows whose weight is not zero
    log_probs: FloatArray  # (n_tokens,), NaN where the weight is 0
    predictions: IntArray | None  # (n_tokens,), the most probable tokens, -1 where the weight is 0; None: not asked for
    forward_s: float
    backward_s: float  # 0 for evaluate()

@final
class Trainer:
    """Loss, gradients and AdamW (Loshchilov & Hutter, arXiv:1711.05101) of an adapter on a frozen model.

    A micro-batch is five arrays of length n_tokens: row i holds token ``tokens[i]`` at ``positions[i]`` (from 0 in each
    sequence) of sequence ``sequences[i]`` (0, 1, ...: at most 256, rows of one sequence contiguous and in order),
    predicts ``targets[i]`` and counts with ``weights[i]``. Sequences do not see each other. Weight 0: no target.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        context: int,
        threads: int,
        dropout: float = 0.0,
        seed: int = 0,
        precision: str = "auto",
        ops: str = "cpu",
        ggml_layers: int | None = None,
        neftune_alpha: float = 0.0,
    ) -> None:
        """Train ``adapter`` on the model that it was made for; ``context`` is the longest sequence (it chooses RoPE
        factors).

        ``precision="f32"`` takes no int8 dot products, ``"llama.cpp"`` llama.cpp's own operations alone (slow; to
        compare with it: of a single sequence ``evaluate`` then gives the very numbers that ``llama_decode`` gives).
        ``ops="ggml"`` makes the graph of ggml's own operations, as for devices; of the first ``ggml_layers`` layers
        alone, the rest and the head as with ``ops="cpu"``. There products with quantized weights round activations as
        llama.cpp does, with every ``precision``.

        ``neftune_alpha`` puts noise on the embeddings while gradients are computed, uniform within alpha over the root
        of a sample's tokens times the width (NEFTune, arXiv:2310.05914).

        Raises :class:`ggtune.errors.ModelError`, and names each op that has no gradient rule.
        """
    recompute_layers: int
    """So many of the first layers keep only their input and are computed a second time for their gradient, 0 to
    ``model.n_layer``; it changes memory and time, and no bit of the result. Starts at 0."""
    @property
    def n_recomputable_layers(self) -> int:
        """How many layers ``recompute_layers`` can count: ``model.n_layer``, or 0 where llama.cpp's graph of the
        architecture can't be cut between its layers. More than 0 of them are then an error of the next micro-batch."""
    n_steps: int  # optimizer steps taken (AdamW bias correction)
    n_micro_batches: int  # counter of the dropout masks
    adapter: Adapter
    def accumulate(
        self, tokens: IntArray, positions: IntArray, sequences: IntArray, targets: IntArray, weights: FloatArray
    ) -> BatchResult:
        """Add the gradient of the summed loss to the accumulators."""
    def evaluate(
        self,
        tokens: IntArray,
        positions: IntArray,
        sequences: IntArray,
        targets: IntArray,
        weights: FloatArray,
        *,
        predictions: bool = False,
    ) -> BatchResult:
        """The same loss without gradients and without dropout; ``predictions`` asks for the most probable tokens."""
    def profile(
        self, tokens: IntArray, positions: IntArray, sequences: IntArray, targets: IntArray, weights: FloatArray
    ) -> dict[str, float]:
        """As :meth:`accumulate`; returns the seconds spent by kind of node."""
    def predict_seconds(
        self,
        tokens: IntArray,
        positions: IntArray,
        sequences: IntArray,
        targets: IntArray,
        weights: FloatArray,
        *,
        gradients: bool = True,
    ) -> float:
        """Seconds that :meth:`accumulate` will take (:meth:`evaluate` without gradients), from a trial.

        Each kind of operation is run once or a few times: it takes about as long as one layer and the head. The model's
        header is enough. Raises :class:`ggtune.errors.GgtuneError` where there is no memory for one operation.
        """
    def gradients(self) -> dict[str, FloatArray]:
        """Summed (not averaged) gradients by adapter tensor name, as copies."""
    def zero_gradients(self) -> None: ...
    def step(
        self,
        lr: float,
        *,
        divisor: float | None = None,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float = 0.0,
        lora_plus_ratio: float = 1.0,
    ) -> float:
        """Divide the gradients by ``divisor``, clip to global norm ``clip`` (0: never), take one AdamW step, zero the
        accumulators. Returns the norm before clipping. The rate of B is ``lora_plus_ratio`` times ``lr``, which is A's
        (LoRA+, arXiv:2402.12354).

        ``divisor`` None is the sum of the accumulated weights, so that the loss is a weighted mean; where weights have
        both signs (preference losses) give the number of samples or whatever else makes it a mean. Changes nothing and
        raises :class:`ggtune.errors.GgtuneError` for a divisor that is not above 0,
        :class:`ggtune.errors.NotFiniteError` for a norm that is not finite.
        """
    def moments(self) -> dict[str, tuple[FloatArray, FloatArray]]:
        """First and second moment by adapter tensor name, as copies."""
    def set_moments(self, moments: Mapping[str, tuple[FloatArray, FloatArray]]) -> None: ...
    @property
    def needs_equal_lengths(self) -> bool:
        """Whether a graph takes sequences of one length: shorter ones are filled up (recurrent layers)."""
    def graphs(self, n_rows: Sequence[int]) -> list[list[int]]:
        """Which sequences of a micro-batch are computed in one graph, as places in ``n_rows``, the rows of each."""
    def memory(self, n_tokens: int, n_targets: int, n_sequences: int = 1) -> dict[str, int]:
        """Bytes of main memory for such a graph: "weights", "adapter", "optimizer", "compute". Allocates none."""
    def device_memory(self, n_tokens: int, n_targets: int, n_sequences: int = 1) -> dict[str, dict[str, int]]:
        """Return the same of each device's memory, by its name; "optimizer" are gradients alone there."""
    def reserve(self, n_tokens: int, n_targets: int, n_sequences: int = 1) -> None:
        """Allocate for such a graph. Raises ``DeviceMemoryError`` where a device has not enough."""
    def allocated(self) -> dict[str, int]:
        """Bytes that graphs have been given so far, by device, "CPU" among them."""
    unsupported: list[tuple[int, str, str]]
    """Layers that their device can't compute, with the first op that it lacks and its tensor: load the model again with
    them in ``cpu_layers``. Such a trainer plans as if they were there, and computes nothing."""
    loss_scale: float
    """A power of two: gradients are computed of so many times the loss where a device rounds products to half
    precision; 0 until the first micro-batch, 1 where no device does. Belongs into checkpoints."""
    def splits(self, n_tokens: int, n_targets: int, n_sequences: int = 1) -> int:
        """How often such a graph goes over from one device, or the CPU, to another."""
    def nodes(self, n_tokens: int, n_targets: int, n_sequences: int = 1) -> dict[str, dict[str, int]]:
        """Nodes of such a graph: how many of each op, by device."""
    def n_custom_nodes(self, n_tokens: int, n_targets: int, n_sequences: int = 1) -> int:
        """Nodes of such a micro-batch's graph that call ggtune's own functions, which only a CPU runs."""

@final
class Generator:
    """Iterates over generated token ids, up to an end-of-generation token (not given out) or the full context."""

    def __init__(
        self,
        model: Model,
        prompt: IntArray | Sequence[int],
        *,
        adapter: Adapter | None = None,
        context: int = 0,
        threads: int = 1,
        temperature: float = 0.0,
        top_k: int = 40,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> None: ...
    def restart(self, prompt: IntArray | Sequence[int]) -> int:
        """Go on with another prompt. Tokens that it starts with and that were computed before are not computed again,
        where the model's memory allows that; gives their number."""
    def __iter__(self) -> Generator: ...
    def __next__(self) -> int: ...

@final
class BatchGenerator:
    """Answers to many prompts side by side; slots take the next prompts, some at a time, as soon as answers have ended.

    Products of 16 rows and more with quantized weights are ggtune's own: they differ from llama.cpp's by rounding.
    """

    def __init__(
        self,
        model: Model,
        adapters: Sequence[tuple[str, float]] = (),
        *,
        adapter: Adapter | None = None,
        prefix: IntArray | Sequence[int] = (),
        n_slots: int,
        context: int,
        threads: int = 1,
    ) -> None:
        """``context`` is the most tokens of a prompt and its answer. ``prefix`` are tokens that all prompts start with,
        and have more than: they are computed once, where the model's memory allows that."""
    def add(
        self,
        prompt: IntArray | Sequence[int],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_k: int = 40,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> None:
        """Put a prompt at the end of those that wait; its number is how many were added before it. Raises
        :class:`ggtune.errors.GgtuneError` for one that is empty, lacks the prefix or fills the context."""
    def step(self) -> list[tuple[int, int, bool]]:
        """The next token of each answer under way whose prompt has been read: number of the prompt, token, and whether
        it ends the answer, of which it is then no part. One that has reached its length just ends. Empty when all have
        ended."""
    def end(self, prompt: int) -> None:
        """End the answer to a prompt."""

@final
class ScaleTuner:
    """Tunes the scales and mins of a merged model through the whole model, towards its base with the live adapter.

    The last phase of EfficientQAT (Chen et al. 2024, arXiv:2407.11062) with the live adapter for a teacher. Codes stay.
    """

    def __init__(
        self,
        model: Model,
        adapter: str,
        merged: Sequence[tuple[str, str, bytes]],
        *,
        context: int,
        threads: int = 1,
        precision: str = "auto",
    ) -> None:
        """``model`` is the base; ``merged`` are the names, types and data of the merged file's adapted tensors.

        Raises :class:`ModelError` for a model that can't be trained or an adapter of another one,
        :class:`GgtuneError` for tensors that the model does not have, or that are of another size.
        """
    recompute_layers: int
    tuned: list[str]  # tensors with scales that are tuned: matrices that the graph multiplies by and nothing else
    n_factors: int  # scales and mins
    def add(
        self, tokens: IntArray, positions: IntArray, sequences: IntArray, targets: IntArray, weights: FloatArray
    ) -> int:
        """Keep a micro-batch and what the teacher makes of it; its number. Rows count with their weights."""
    def accumulate(self, number: int) -> float:
        """Add the gradient of the sum of weight times divergence (nats) over the rows; return that sum."""
    def step(self, lr: float) -> None:
        """One step of Adam: each weight goes about ``lr`` steps of its grid.

        Raises :class:`NotFiniteError` where a gradient is not finite, and changes nothing.
        """
    def gradients(self) -> dict[str, FloatArray]:
        """Those of the factors of each tuned tensor so far, flat from ``(n_out, kinds, blocks)``: scales, then mins."""
    def weights(self) -> dict[str, bytes]:
        """The tensors as they are now, as a file has them."""
    def memory(self, n_tokens: int, n_sequences: int = 1) -> int:
        """Bytes of main memory beside the base for micro-batches of at most that size."""

@final
class Scorer:
    """Several sequences at once through ``llama_decode``, with LoRA files and their scales beside the weights."""

    def __init__(
        self,
        model: Model,
        adapters: Sequence[tuple[str, float]] = (),
        *,
        n_tokens: int,
        n_sequences: int,
        threads: int = 1,
    ) -> None:
        """``n_tokens`` is the most that all sequences of a call have together."""
    def logits(self, tokens: IntArray, sequences: IntArray, outputs: NDArray[np.bool_]) -> FloatArray:
        """Logits ``(n_outputs, n_vocab)`` of the flagged rows; rows of a sequence are contiguous, from position 0."""

@final
class ContinuationScorer:
    """How probable given continuations are, by ``llama_decode`` in the precision of :func:`decode_log_probs`."""

    def __init__(
        self,
        model: Model,
        adapters: Sequence[tuple[str, float]] = (),
        *,
        n_tokens: int,
        n_sequences: int,
        threads: int = 1,
    ) -> None:
        """``n_tokens``: the most in a call, each prefix counted once; ``n_sequences``: the most continuations."""
    def log_probs(self, texts: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> list[list[FloatArray]]:
        """log p of each token of each continuation behind its prefix, which is computed once for all of its own."""

def decode_log_probs(
    model: Model, tokens: IntArray, *, adapter_path: str | None = None, threads: int = 1
) -> FloatArray:
    """log p(tokens[i+1] | tokens[:i+1]) through llama.cpp's public API alone (``llama_decode``), shape (n - 1,)."""

def merge(
    base: str,
    adapters: Sequence[tuple[str, float]],
    output: str,
    *,
    outtype: str | None = None,
    types: Mapping[str, str] = ...,
    scales: Mapping[str, str] = ...,
    rounding: str = "unbiased",
    seed: int = 0,
    tokens: Sequence[int] = (),
    sequences: Sequence[int] = (),
    metadata: Mapping[str, str] = ...,
    threads: int = 1,
) -> dict[str, Any]:
    """Stream ``base`` to ``output`` with W + scale * alpha / rank * B A in each adapted tensor.

    The codes of a tensor that keeps a type with a grid move: up with the probability of the fraction (``rounding``
    "unbiased"), by a hash of ``seed``, or to nearest. ``types`` are types of single tensors, ``scales`` the names of
    tensors with their factors (``Linear.scale``), by which the product is divided. ``tokens`` and ``sequences`` are a
    text such as the model will read, of 64 tokens or more: scales and mins are then fitted so that the outputs on it
    suffer least (cpp/kernels/scale_fit.h); otherwise, and where llama.cpp can't run the model, they stay as they are.
    Returns counts, ``not_fitted`` (why it can't, or ""), and by name of adapted tensor ``from``, ``to``, ``n_weights``,
    ``n_moved``, ``fitted`` (whether its scales were), ``change`` (sum of squares of what was added) and ``variance``
    (sum of the expected squares of the rounding error).
    """

def quantize_model(
    source: str,
    output: str,
    type: str,
    *,
    threads: int = 1,
    imatrix: Mapping[str, FloatArray] = ...,
    imatrix_source: tuple[str, str, int] = ...,
    allow_requantize: bool = False,
    pure: bool = False,
    leave_output_tensor: bool = False,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
) -> None:
    """llama.cpp's own quantizer; ``type`` is one of :func:`file_types` in any case. Whole or not at all.

    ``imatrix`` gives the mean square of each input by the weight's name, ``(n_in,)`` or ``(n_mat, n_in)``;
    ``imatrix_source`` says what the file tells of it: its file, the data and the number of chunks.
    """

def file_types() -> list[str]:
    """The file types that llama.cpp makes: "Q4_K_M", "Q8_0", ..."""

@final
class ImatrixCollector:
    """Sums, for every weight matrix of the blocks, the squares of its inputs, as llama.cpp's ``tools/imatrix`` does."""

    def __init__(self, model: Model, *, context: int, threads: int = 1, process_output: bool = False) -> None:
        """``context``: tokens of the longest text. ``process_output``: of the output layer as well."""
    def add(self, tokens: IntArray) -> None:
        """Decode one text. Raises :class:`ggtune.errors.GgtuneError` for an activation that is not finite."""
    def entries(self) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Sums ``(n_mat, n_in)`` and token counts ``(n_mat,)`` by the weight's name; of experts one matrix each."""

def dequantize(type: str, data: NDArray[np.uint8], n_per_row: int) -> FloatArray: ...
def quantize(type: str, values: FloatArray) -> NDArray[np.uint8]: ...
def weight_gradient_input(
    type: str,
    weight: NDArray[np.uint8],
    d_output: FloatArray,
    n_in: int,
    *,
    threads: int = 1,
    reference: bool = False,
) -> FloatArray:
    """dX = dY W, W quantized ``(n_out, n_in)``, dY ``(n_tokens, n_out)``; ``reference`` takes the plain loop."""

def bf16_product(
    type: str,
    weight: NDArray[np.uint8],
    x: NDArray[np.float32],
    n_in: int,
    *,
    gradient: bool = False,
    threads: int = 1,
    repeats: int = 1,
) -> tuple[NDArray[np.float32], float]:
    """``x @ W.T`` in bf16, ``x`` of shape ``[n_tokens, n_in]``; with ``gradient`` ``x @ W``, ``[n_tokens, n_out]``.

    ``weight`` holds the rows of ``W`` of shape ``[n_out, n_in]`` in a ggml type. Also the mean seconds of ``repeats``
    such products on the same threads, without rounding and packing ``x``.
    """

def matrix_unit_rate(*, threads: int = 1, seconds: float = 0.05) -> float | None:
    """Floating point operations per second that the CPU's matrix unit reaches on bf16 tiles in the L1 cache.

    The sum of ``threads`` threads that run side by side for ``seconds``. None where the CPU has no such unit.
    """

def check_gguf(path: str, *, vocab_only: bool = False) -> None:
    """Check a model file's header as llama.cpp needs it. Raises :class:`ggtune.errors.ModelError`."""

@final
class DeviceInfo:
    """A device that layers can lie on."""

    name: str  # ggml's: "CUDA0", "Vulkan0"
    description: str
    backend: str  # "CUDA", "ROCm", "Vulkan", "MTL", ...
    kind: str  # "gpu", "integrated" with memory that is the host's, "simulated" for tests
    free_bytes: int
    total_bytes: int
    half_products: bool  # products of floats are rounded to half precision, unless the model is opened as ``exact``

def devices() -> list[DeviceInfo]:
    """Return the devices of this build and machine, without the CPU."""

def set_log_verbose(verbose: bool) -> None:
    """Let llama.cpp's log through to standard error."""

def build_info() -> dict[str, str]:
    """llama.cpp version, ggml backends, CPU features, the variant of the kernels."""

def kernel_variant() -> str:
    """Return for which kind of CPU the kernels in use are compiled: the fastest of :func:`cpu_variants`, or what the
    environment variable ``GGTUNE_CPU`` names; an error if that is not there."""

def cpu_variants() -> list[str]:
    """Return the variants of the kernels in this build that the machine runs, slowest first."""
