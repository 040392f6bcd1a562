"""What a model file is, and whether and with what it can be trained; from its header alone."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ggtune._native import core
from ggtune.config import TrainConfig
from ggtune.data.chat_template import choose_template
from ggtune.data.templates import TEMPLATES, Template
from ggtune.errors import GgtuneError
from ggtune.gguf.io import gguf_structure
from ggtune.gguf.structure import Structure
from ggtune.system import available_memory, format_bytes
from ggtune.train.build import default_micro_batch
from ggtune.train.recomputation import fit_recomputation
from ggtune.train.targets import chosen_targets, group_of

if TYPE_CHECKING:
    from ggtune._core import Linear, Model

_PROBE = ("Which probe is this?", "It is the probe's answer.")


@dataclass(frozen=True)
class LinearKind:
    """Linears of one kind and shape."""

    kind: str  # "attn_q"
    group: str  # that --targets knows: attention, ffn, experts; router for what none takes, dense for all others
    n: int
    n_in: int
    n_out: int
    n_mat: int  # matrices of each, 1 but of stacks
    types: tuple[str, ...]


@dataclass(frozen=True)
class Memory:
    """What a run with the defaults of ``train`` takes."""

    rank: int
    context: int  # tokens
    targets: tuple[str, ...]  # kinds of linears
    narrow: tuple[str, ...]  # kinds that the rank is too high for
    dropped: tuple[str, ...]  # linears that the loss does not depend on
    n_adapter_params: int
    bytes_by_part: dict[str, int]
    available_bytes: int
    recompute_layers: int

    @property
    def total_bytes(self) -> int:
        """Peak."""
        return sum(self.bytes_by_part.values())


@dataclass(frozen=True)
class Inspection:
    """A model file."""

    path: str
    name: str
    architecture: str
    n_layer: int
    n_embd: int
    n_ctx_train: int
    n_params: int
    n_expert: int
    n_expert_used: int
    n_active_params: int  # that a token is multiplied with
    file_bytes: int
    bytes_by_type: dict[str, int]
    n_vocab: int
    tokenizer: str
    chat_template: str  # "" where there is none; what it writes as, or why it can't be used
    linears: tuple[LinearKind, ...]
    refusal: str  # why it can't be trained, "" where it can
    memory: Memory | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON keeps them."""
        values = asdict(self)
        if self.memory is not None:
            values["memory"]["total_bytes"] = self.memory.total_bytes
        return {**values, "trains": not self.refusal}

    def lines(self) -> list[str]:
        """Return the text for the user."""
        parameters = f"{_count(self.n_params)}"
        if self.n_expert:
            parameters += f", {_count(self.n_active_params)} of them for a token"
            parameters += f" ({self.n_expert_used} of {self.n_expert} experts)"
        types = ", ".join(f"{name} {format_bytes(n)}" for name, n in self.bytes_by_type.items())
        lines = [
            f"Model: {self.path}" + (f" ({self.name})" if self.name else ""),
            f"Architecture: {self.architecture}, {self.n_layer} layers, width {self.n_embd}, context "
            f"{self.n_ctx_train} tokens",
            f"Parameters: {parameters}",
            f"File: {format_bytes(self.file_bytes)}; {types}",
            f"Vocabulary: {self.n_vocab} tokens ({self.tokenizer})",
            f"Chat template: {self.chat_template or 'none'}",
            f"Linears that can carry an adapter: {sum(each.n for each in self.linears)}",
            *_table(self.linears),
            f"Trains: {'no: ' + self.refusal if self.refusal else 'yes'}",
        ]
        return lines + (self._memory_lines(self.memory) if self.memory else [])

    def _memory_lines(self, memory: Memory) -> list[str]:
        fits = "it fits" if memory.total_bytes <= memory.available_bytes else "it does NOT fit"
        again = (
            f", {memory.recompute_layers} of {self.n_layer} layers computed again" if memory.recompute_layers else ""
        )
        lines = [
            f"Memory by default (--rank {memory.rank} --ctx {memory.context}): {format_bytes(memory.total_bytes)} at "
            f"the peak, {format_bytes(memory.available_bytes)} are free: {fits}{again}",
            *(f"  {name:<10} {format_bytes(n)}" for name, n in memory.bytes_by_part.items()),
            f"  an adapter of {_count(memory.n_adapter_params)} parameters on {', '.join(memory.targets)}",
        ]
        if memory.narrow:
            lines.append(f"  left out, narrower than the rank: {', '.join(memory.narrow)}")
        if memory.dropped:
            lines.append(f"  left out, the loss does not depend on them: {', '.join(memory.dropped)}")
        return lines


def inspect_model(path: str, *, rank: int | None = None, ctx: int | None = None) -> Inspection:
    """Read the header of the model at ``path``, and ask the engine for what a run with these settings needs.

    Without them, with the defaults. Raises :class:`GgtuneError` for a file that is no model.
    """
    structure = gguf_structure(path)
    model = core.Model(path, header_only=True)
    linears = model.linears()
    n_expert = int(structure.number(f"{model.architecture}.expert_count") or 0)
    used = structure.numbers(f"{model.architecture}.expert_used_count")
    n_expert_used = int(max(used, default=0))
    refusal, memory = "", None
    try:
        memory = _memory(model, TrainConfig.for_face("train", model=path, data="-", **_given(rank=rank, ctx=ctx)))
    except GgtuneError as error:
        refusal = str(error).removeprefix(f"{path}: ")
    return Inspection(
        path=path,
        name=structure.text("general.name"),
        architecture=model.architecture,
        n_layer=model.n_layer,
        n_embd=model.n_embd,
        n_ctx_train=model.n_ctx_train,
        n_params=model.n_params,
        n_expert=n_expert,
        n_expert_used=n_expert_used,
        n_active_params=model.n_params - _idle_params(structure, n_expert, n_expert_used),
        file_bytes=Path(path).stat().st_size,
        bytes_by_type=_bytes_by_type(structure),
        n_vocab=model.n_vocab,
        tokenizer=structure.text("tokenizer.ggml.model"),
        chat_template=_chat_template(model),
        linears=tuple(_kinds(linears)),
        refusal=refusal,
        memory=memory,
    )


def _given(**values: int | None) -> dict[str, int]:
    return {name: value for name, value in values.items() if value is not None}


def _memory(model: "Model", config: TrainConfig) -> Memory:
    targets = chosen_targets(config.targets, model.linears(), config.rank, config.model)
    context = min(config.ctx, model.n_ctx_train)
    adapter = core.Adapter(model, rank=config.rank, alpha=config.effective_alpha, targets=targets.kinds)
    engine = core.Trainer(adapter, context=context, threads=1, precision=config.precision)
    available = available_memory()
    n_tokens = min(config.micro_batch_tokens or default_micro_batch(context, model, engine), config.batch * context)
    largest = n_tokens, n_tokens, config.batch
    parts = fit_recomputation(engine, config.recompute, largest, available, n_params=adapter.n_params)
    parts["program"] = psutil.Process().memory_info().rss
    return Memory(
        rank=config.rank,
        context=context,
        targets=targets.kinds,
        narrow=targets.narrow,
        dropped=tuple(adapter.dropped),
        n_adapter_params=adapter.n_params,
        bytes_by_part=parts,
        available_bytes=available,
        recompute_layers=engine.recompute_layers,
    )


def _idle_params(structure: Structure, n_expert: int, n_used: int) -> int:
    """Count the parameters of experts that a token does not go through."""
    idle = 0
    for tensor in structure.tensors:
        stacked = len(tensor.shape) == 3 and tensor.shape[2] == n_expert > 0 and "_exps." in tensor.name
        if stacked:
            idle += tensor.shape[0] * tensor.shape[1] * (n_expert - n_used)
    return idle


def _bytes_by_type(structure: Structure) -> dict[str, int]:
    """Bytes of the tensors of each type, the largest first."""
    found: dict[str, int] = {}
    for tensor in structure.tensors:
        found[tensor.type_name] = found.get(tensor.type_name, 0) + tensor.n_bytes
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _chat_template(model: "Model") -> str:
    if not model.chat_template:
        return ""
    try:
        own = choose_template("model", model)
        found = next((t.name for t in TEMPLATES.values() if t.end and _writes_as(own, t)), "")
    except GgtuneError as error:
        return f"its own, which can't be used: {error}"
    return f"its own, which writes a turn as {found} does" if found else "its own, none of the named ones"


def _writes_as(own: Template, named: Template) -> bool:
    """Whether question and answer stand in the same words; a system text of its own may stand before them."""
    turns = [template.render(None, *_PROBE) for template in (own, named)]
    prompts, answers = [turn.prompt for turn in turns], [turn.answer.strip() for turn in turns]
    return prompts[0].strip().endswith(prompts[1].strip()) and answers[0] == answers[1]


def _kinds(linears: Iterable["Linear"]) -> list[LinearKind]:
    found: dict[tuple[str, int, int, int], list[Linear]] = {}
    for linear in linears:
        found.setdefault((linear.kind, linear.n_in, linear.n_out, linear.n_mat), []).append(linear)
    return [
        LinearKind(
            kind=kind,
            group=group_of(members[0]),
            n=len(members),
            n_in=n_in,
            n_out=n_out,
            n_mat=n_mat,
            types=tuple(sorted({member.type for member in members})),
        )
        for (kind, n_in, n_out, n_mat), members in found.items()
    ]


def _table(kinds: Iterable[LinearKind]) -> list[str]:
    rows = [("kind", "number", "in", "out", "of each", "types", "group")]
    rows += [
        (k.kind, str(k.n), str(k.n_in), str(k.n_out), str(k.n_mat) if k.n_mat > 1 else "", ", ".join(k.types), k.group)
        for k in kinds
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    is_number = [1, 2, 3, 4]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if i in is_number else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _count(n: int) -> str:
    return f"{n / 1e9:.2f}B" if n >= 1e9 else f"{n / 1e6:.2f}M"
