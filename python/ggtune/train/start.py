"""What a new run starts from: the settings that depend on the model, or on an adapter that is gone on from."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ggtune.config import LEAST_LR, MOST_LR, TrainConfig
from ggtune.data.readers.reader import ReadOptions
from ggtune.data.sources import is_rendered
from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import AdapterFile, check_fits, pairs_beside_layers, read_adapter
from ggtune.gguf.asked_with import ASKED_WITH
from ggtune.gguf.base import adapter_fingerprint, check_base
from ggtune.gguf.stack import STACKED
from ggtune.train.targets import chosen_targets

if TYPE_CHECKING:
    from ggtune._core import Adapter, Model

# of the data trained on last, even where that has none; and what holds for the adapter gone on from alone
_NOT_KEPT = (*ASKED_WITH, STACKED)
_TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class Start:
    """The settings of a new run, none of them open any more, and the adapter that it goes on from."""

    config: TrainConfig
    adapter: AdapterFile | None = None
    messages: tuple[str, ...] = ()

    @property
    def notes(self) -> dict[str, str]:
        """What the run's adapter file says of where it comes from."""
        if self.adapter is None:
            return {}
        kept = {key: value for key, value in self.adapter.notes.items() if key not in _NOT_KEPT}
        return {**kept, "from_adapter": adapter_fingerprint(self.adapter)}

    def fill(self, adapter: "Adapter") -> None:
        """Put the values into the run's adapter. A linear that the file leaves out keeps its random A and B = 0."""
        names = set(adapter.tensor_names())  # those that the loss doesn't depend on are not among them
        for name, values in self.adapter.tensors.items() if self.adapter is not None else ():
            if name in names:
                adapter.set(name, values)


def settled(config: TrainConfig, model: "Model") -> Start:
    """Settle what depends on the model and on ``config.from_adapter``.

    Raises :class:`GgtuneError` for an adapter that can't be gone on from, or whose rank, alpha or linears are not those
    that were asked for.
    """
    changes: dict[str, Any] = {}
    if config.lr is None:
        changes["lr"] = float(f"{min(MOST_LR, max(LEAST_LR, 1 / model.n_embd)):.2g}")
    path = config.from_adapter
    if not path:
        return Start(dataclasses.replace(config, **changes) if changes else config)
    content = read_adapter(path)
    check_fits(path, content, model)
    if others := pairs_beside_layers(content, model):
        raise GgtuneError(
            f"{path} adapts {', '.join(others)} beside the layers, which ggtune doesn't train: merge it into its base "
            "and train a new adapter on that"
        )
    messages = check_base(path, config.model, force=config.force, content=content)
    kind_of = {linear.name: linear.kind for linear in model.linears()}
    kinds = tuple(dict.fromkeys(kind for name, kind in kind_of.items() if name in content.bases))
    rank = _rank(path, content)
    # llama.cpp takes alpha 0 for a scale of 1 (llama_adapter_lora_weight::get_scale)
    changes.update(rank=rank, alpha=content.alpha or float(rank), targets=kinds)
    _check_given(config, changes, model)
    changes.update(_texts(config, content.notes))
    n_new = sum(kind in kinds for kind in kind_of.values()) - len(content.bases)
    messages.insert(
        0,
        f"Going on from {path}: {len(content.bases)} linears"
        + (f"; {n_new} more of the same kinds, which it leaves out, start at zero and are trained too" * bool(n_new)),
    )
    return Start(dataclasses.replace(config, **changes), content, tuple(messages))


def _rank(path: str, content: AdapterFile) -> int:
    ranks = {content.rank_of(base) for base in content.bases}
    if len(ranks) != 1:
        raise GgtuneError(
            f"{path} has pairs of different rank ({', '.join(map(str, sorted(ranks)))}), which can't be gone on from: "
            "merge it into its base and train a new adapter on that"
        )
    return ranks.pop()


def _check_given(config: TrainConfig, found: Mapping[str, Any], model: "Model") -> None:
    wrong = []
    if config.rank is not None and config.rank != found["rank"]:
        wrong.append(f"--rank is {config.rank}, and its rank {found['rank']}")
    if config.alpha is not None and np.float32(config.alpha) != np.float32(found["alpha"]):
        wrong.append(f"--alpha is {config.alpha:g}, and its alpha {found['alpha']:g}")
    if config.rslora:
        wrong.append("--rslora is given, and its scale is fixed by its alpha and rank")
    if config.targets is not None:
        given = chosen_targets(config.targets, model.linears(), found["rank"], config.model)
        if set(given.kinds) != set(found["targets"]):
            wrong.append(f"--targets is {','.join(config.targets)}, and its linears are {','.join(found['targets'])}")
    if wrong:
        raise GgtuneError(
            f"{config.from_adapter} can't be gone on from as asked: {'; '.join(wrong)}. Leave these options out."
        )


def _texts(config: TrainConfig, notes: Mapping[str, str]) -> dict[str, str]:
    """Take template and system text of the training before where none are given and the data is a table.

    ``<SFT>`` text has its own template in it.
    """
    try:
        if is_rendered(config.data, ReadOptions.of_settings(config.to_dict(), skip_bad=True)):
            return {}
    except GgtuneError:  # whoever reads the data says it better
        return {}
    return {key: notes[key] for key in ("template", "system") if notes.get(key) and not getattr(config, key)}
