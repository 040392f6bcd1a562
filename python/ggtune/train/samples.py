"""The samples of a run: those it trains on and those held out."""

import dataclasses
import datetime
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, cast

import numpy as np

from ggtune.config import TrainConfig
from ggtune.data.dataset import Dataset
from ggtune.data.load import load_parts
from ggtune.data.options import Learn, LoadOptions
from ggtune.data.readers.reader import ReadOptions
from ggtune.data.samples import LossOn, Sample, TooLong
from ggtune.data.split import IndexArray, hold_out
from ggtune.setting_texts import DataPart, Holdout

if TYPE_CHECKING:
    from ggtune._core import Model


@dataclass(frozen=True)
class RunSamples:
    """The samples of a run."""

    context: int  # tokens of the longest sample: what was asked for, at most what the model was made for
    data: Dataset
    training: Sequence[Sample]
    held_out: Sequence[Sample]
    apart: Dataset | None = None  # of the file that is held out

    def fingerprint(self) -> str:
        """Hash the tokens and weights of all of them."""
        digest = hashlib.sha256(f"{len(self.training)} {len(self.held_out)}".encode())
        for sample in chain(self.training, self.held_out):
            digest.update(f"|{len(sample.tokens)}|".encode())
            digest.update(sample.tokens.tobytes())
            digest.update(sample.weights.tobytes())
        return digest.hexdigest()

    def file_fingerprints(self) -> dict[str, str]:
        """Hash the samples of each data file, by its name, to say which one has changed."""
        found = dict(_fingerprints(self.data))
        if self.apart is not None:
            found.update((f"{name} (held out)", digest) for name, digest in _fingerprints(self.apart))
        return found

    def changed_files(self, fingerprints: Mapping[str, str]) -> list[str]:
        """Name the files whose samples are in none of those that had these fingerprints."""
        known = set(fingerprints.values())
        return [name for name, digest in self.file_fingerprints().items() if digest not in known] if known else []


def _fingerprints(data: Dataset) -> Iterator[tuple[str, str]]:
    files = [(file.name, file.before) for file in data.report.files] or [(data.report.path, 0)]
    begins = np.searchsorted(data.samples.rows, [before for _, before in files], side="right").tolist()
    for (name, _), begin, end in zip(files, begins, [*begins[1:], len(data.samples)], strict=True):
        digest = hashlib.sha256()
        for block in data.samples.blocks(begin, end):
            digest.update(block)
        yield name, digest.hexdigest()


def load_data(
    config: TrainConfig, model: "Model", *, now: datetime.datetime | None = None, near_duplicates: bool = False
) -> Dataset:
    """Read the data as the settings say. Raises :class:`GgtuneError` for data that can't be used."""
    return load_parts(
        [DataPart(config.data, repeat=config.repeat), *map(DataPart.parse, config.more_data)],
        model,
        LoadOptions(
            context=longest_sample(config, model),
            template=config.template or None,
            system=config.system or None,
            loss_on=cast(LossOn, config.loss_on),
            too_long=cast(TooLong, config.too_long),
            learn=cast(Learn, config.learn),
            prompt_weight=config.prompt_weight,
            split_turns=config.split_turns,
            drop=config.drop,
            near_duplicates=near_duplicates or "near duplicate" in config.drop,
            read=ReadOptions.of_settings(config.to_dict()),
            include_sample_start=config.include_sample_start,
            overlapping_samples=config.overlapping_samples,
            now=now,
        ),
    )


def longest_sample(config: TrainConfig, model: "Model") -> int:
    """Tokens of the longest sample: what was asked for, at most what the model was made for."""
    return min(config.ctx, model.n_ctx_train) if model.n_ctx_train > 0 else config.ctx


def held_out_of(config: TrainConfig, data: Dataset) -> tuple[IndexArray, IndexArray]:
    """Give the indices of the samples to train on, and of those held out. Raises :class:`GgtuneError`."""
    holdout = Holdout.parse(config.holdout)
    if holdout.kind == "file":
        everything = np.arange(len(data.samples))
        return everything, everything[:0]
    return hold_out(len(data.samples), holdout, config.seed, data.groups)


def held_out_file(config: TrainConfig, model: "Model", *, now: datetime.datetime | None = None) -> Dataset | None:
    """Read the file that is held out; None where a part of the data is. Raises as :func:`load_data`."""
    path = Holdout.parse(config.holdout).path
    if not path:
        return None
    return load_data(dataclasses.replace(config, data=path, more_data=(), repeat=1, holdout="0"), model, now=now)


def read_samples(config: TrainConfig, model: "Model", *, now: datetime.datetime | None = None) -> RunSamples:
    """Read the data and hold some of it out. ``now`` is the time for templates that write the date.

    Raises :class:`GgtuneError` for data that can't be used.
    """
    data = load_data(config, model, now=now)
    training, held_out = held_out_of(config, data)
    chosen: Sequence[Sample] = data.samples.take(held_out)
    apart = held_out_file(config, model, now=now)
    if apart is not None:
        data.report.notes += [f"held out: {line}" for line in apart.report.lines()]
        chosen = apart.samples
    return RunSamples(longest_sample(config, model), data, data.samples.take(training), chosen, apart)
