"""What hypothesis draws: changes of bytes, and edits of GGUF files."""

import json
from pathlib import Path
from typing import Any

import gguf
from hypothesis import strategies as st

from fuzzing.gguf_edits import ARRAY, SCALARS, STRING, Edit, Parts

HEADER_BYTES = 2048
TOKENS = [b'"', b"\n", b",", b"<SFT>", b"{{", b"}}", b"{%", b"%}", b"**", b'"""', b"1e999", b"-1"]
INTERESTING = [0, 1, 2, 4, 8, 9, 12, 31, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
MAX_EDITS = 3

_SMALL = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 16, 17, 24, 31, 32, 33, 48, 64, 96, 128, 256, 257, 288, 512, 513, 1024]
_FLOATS = [0.0, -0.0, 0.5, 1.0, -1.0, 4.0, 1e-45, 1e-30, 1e9, 3e38, 1e308, float("nan"), float("inf"), float("-inf")]
_TYPES = [int(each) for each in gguf.GGMLQuantizationType] + [4, 5, 31, 36, 99, 2**31, 2**32 - 1]
_TENSORS = [name.format(bid=0, xid=0) + ".weight" for name in gguf.TENSOR_NAMES.values()]
_ARCHITECTURES = [name for name in gguf.MODEL_ARCH_NAMES.values() if name != "clip"]
_TEXTS = [
    *("", " ", "\n", "a", "a b", "ab c", "<s>", "</s>", "<0x0A>", "<0xZZ>", "<0x", "\xe2\x96\x81", "\xff\xfe", "\0"),
    *("<|endoftext|>", "<|im_end|>", "x" * 300, "\xc4\x8a", "\xc4\xa0", "\xc3", "\xf0\x9f\x98\x80", "Ã", "[EMPTY_1]"),
    *("llama", "gpt2", "bert", "t5", "rwkv", "plamo2", "gemma4", "none", "no_vocab", "hybriddna"),
    *(
        "default",
        "llama-bpe",
        "deepseek-llm",
        "falcon",
        "gpt-2",
        "qwen2",
        "tekken",
        "chatglm-bpe",
        "youtu",
        "whitespace",
    ),
    *("linear", "yarn", "longrope", "magic", "model", "adapter", "lora", "{{ messages[0].content }}", "{% for %}"),
]


def _known_keys() -> list[str]:
    groups = [group for group in vars(gguf.constants.Keys).values() if isinstance(group, type)]
    keys = {value for group in groups for name, value in vars(group).items() if name.isupper()}
    return sorted(key for key in keys if isinstance(key, str) and not key.startswith("clip."))


_KEYS = _known_keys()


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with one to four changes, most of them near its start, where headers are."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        end = len(data) if draw(st.booleans()) else min(len(data), HEADER_BYTES)
        at = draw(st.integers(0, max(0, end - 1)))
        kind = draw(st.sampled_from(["bit", "number", "bytes", "cut", "repeat", "truncate", "token"]))
        if kind == "bit" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "number":
            size = draw(st.sampled_from([1, 4, 8]))
            value = draw(st.sampled_from(INTERESTING)) % 256**size
            data[at : at + size] = value.to_bytes(size, "little")
        elif kind == "bytes":
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "repeat":
            part = bytes(data[at : at + draw(st.integers(1, 64))])
            data[at:at] = part * draw(st.integers(1, 4))
        elif kind == "token":
            data[at:at] = draw(st.sampled_from(TOKENS))
        else:
            del data[at:]
    return bytes(data)


class EditStrategies:
    """Draws edits of one seed file."""

    def __init__(self, data: bytes) -> None:
        parts = Parts(data)
        self._keys = parts.keys
        self._tensors = parts.tensors
        architecture = parts.keys["general.architecture"].value
        self._known = [key.replace("{arch}", architecture) for key in _KEYS]
        self._arrays = [name for name, key in parts.keys.items() if key.kind == ARRAY]
        self._n_layers = (
            parts.keys[f"{architecture}.block_count"].value if f"{architecture}.block_count" in parts.keys else 2
        )
        self._own_keys = list(parts.keys)
        self._own_tensors = list(parts.tensors)
        self._n_bytes = len(data)
        # how often each kind is drawn: those that leave a loadable file more often
        kinds = {
            self._set: 8,
            self._set_known: 5,
            self._unset: 2,
            self._item: 3 if self._arrays else 0,
            self._resize: 1,
        }
        kinds |= {self._shape: 3, self._retype: 2, self._name: 2, self._drop: 1, self._fill: 1, self._raw: 2}
        self._kinds = [kind for kind, weight in kinds.items() for _ in range(weight)]

    def edits(self, draw: st.DrawFn) -> list[Edit]:
        """One to three edits."""
        return [draw(st.sampled_from(self._kinds))(draw) for _ in range(draw(st.integers(1, MAX_EDITS)))]

    def _value(self, draw: st.DrawFn, kind: int, before: Any = None) -> Any:
        if kind == STRING:
            return draw(st.sampled_from(_TEXTS))
        if kind == 7:
            return draw(st.sampled_from([0, 1]))
        if kind in (6, 12):
            return draw(st.sampled_from(_FLOATS))
        if isinstance(before, int) and draw(st.booleans()):
            return draw(st.sampled_from([before + 1, max(0, before - 1), 2 * before, before // 2, -before]))
        return draw(st.sampled_from([*_SMALL, *INTERESTING, -1, -2]))

    def _new_value(self, draw: st.DrawFn, key: str) -> Edit:
        if draw(st.integers(0, 4)) == 0:  # one per layer
            element = draw(st.sampled_from([4, 5, 6, 7, STRING]))
            count = draw(st.sampled_from([self._n_layers, self._n_layers, 0, 1, 3, 4, 600]))
            one, other = self._value(draw, element), self._value(draw, element)
            return ["set", key, ARRAY, [element, [one if i % 2 else other for i in range(count)]]]
        kind = draw(st.sampled_from([4, 4, 4, 5, 6, 7, STRING, *SCALARS]))
        return ["set", key, kind, self._value(draw, kind)]

    def _set(self, draw: st.DrawFn) -> Edit:
        name = draw(st.sampled_from(self._own_keys))
        key = self._keys[name]
        if name == "general.architecture" and draw(st.integers(0, 9)):
            return ["architecture", draw(st.sampled_from(_ARCHITECTURES))]
        if key.kind == ARRAY or draw(st.integers(0, 5)) == 0:
            return self._new_value(draw, name)
        return ["set", name, key.kind, self._value(draw, key.kind, key.value)]

    def _set_known(self, draw: st.DrawFn) -> Edit:
        return self._new_value(draw, draw(st.sampled_from(self._known)))

    def _unset(self, draw: st.DrawFn) -> Edit:
        return ["unset", draw(st.sampled_from(self._own_keys))]

    def _item(self, draw: st.DrawFn) -> Edit:
        name = draw(st.sampled_from(self._arrays))
        index = draw(st.integers(0, min(300, max(0, len(self._keys[name].value) - 1))))
        return ["item", name, index, self._value(draw, self._keys[name].element)]

    def _resize(self, draw: st.DrawFn) -> Edit:
        name = draw(st.sampled_from(self._arrays or self._own_keys))
        size = len(self._keys[name].value) if self._arrays else 1
        return ["resize", name, draw(st.sampled_from([0, 1, 2, max(0, size - 1), size + 1, 2 * size]))]

    def _shape(self, draw: st.DrawFn) -> Edit:
        name = draw(st.sampled_from(self._own_tensors))
        tensor = self._tensors[name]
        ne = list(tensor.ne)
        what = draw(st.sampled_from(["one", "one", "swap", "more", "less"]))
        if what == "one":
            at = draw(st.integers(0, len(ne) - 1))
            ne[at] = draw(st.sampled_from([*_SMALL, 2 * ne[at], ne[at] // 2, ne[at] + 1, *INTERESTING])) % 2**64
        elif what == "swap":
            ne.reverse()
        elif what == "more":
            ne.append(draw(st.sampled_from([1, 2])))
        elif len(ne) > 1:
            ne.pop()
        return ["shape", name, ne, tensor.kind]

    def _retype(self, draw: st.DrawFn) -> Edit:
        name = draw(st.sampled_from(self._own_tensors))
        return ["shape", name, list(self._tensors[name].ne), draw(st.sampled_from(_TYPES))]

    def _name(self, draw: st.DrawFn) -> Edit:
        name = draw(st.sampled_from(self._own_tensors))
        new = draw(st.sampled_from([*_TENSORS, *self._own_tensors, name.replace("weight", "bias"), "blk.99.x.weight"]))
        return [draw(st.sampled_from(["copy", "rename"])), name, new]

    def _drop(self, draw: st.DrawFn) -> Edit:
        return ["drop", draw(st.sampled_from(self._own_tensors))]

    def _fill(self, draw: st.DrawFn) -> Edit:
        patterns = ["00", "ff", "0000c07f", "0000807f", "ffff7f7f", "01000000", "00000080"]
        return ["fill", draw(st.sampled_from(self._own_tensors)), draw(st.sampled_from(patterns))]

    def _raw(self, draw: st.DrawFn) -> Edit:
        if draw(st.integers(0, 9)) == 0:
            return ["truncate", draw(st.integers(0, self._n_bytes))]
        size = draw(st.sampled_from([1, 4, 8]))
        value = draw(st.sampled_from(INTERESTING)) % 256**size
        return ["bytes", draw(st.integers(0, HEADER_BYTES)), value.to_bytes(size, "little").hex()]


@st.composite
def recipes(draw: st.DrawFn, strategies: dict[str, dict[str, EditStrategies]]) -> bytes:
    """A JSON text: the name of a seed, and edits of each of its files, where at least one file has some."""
    name = draw(st.sampled_from(list(strategies)))
    files = strategies[name]
    edited = draw(st.sampled_from([*files, *(["both"] if len(files) > 1 else [])]))
    edits = {file: each.edits(draw) for file, each in files.items() if edited in (file, "both")}
    return json.dumps({"seed": name, **edits}).encode()


def recipe_strategies(folder: Path, files: dict[str, str]) -> dict[str, dict[str, EditStrategies]]:
    """Strategies for each seed; ``files`` gives a file's name in the recipe and the end of its name in the folder."""
    names = [path.stem for path in sorted(folder.glob("*.gguf")) if not path.stem.endswith("-lora")]
    return {
        name: {file: EditStrategies((folder / f"{name}{end}").read_bytes()) for file, end in files.items()}
        for name in names
    }
