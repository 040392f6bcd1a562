"""Which of several merges is taken, and what --outtype auto raises."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from quick_runs import Trained

from ggtune.errors import GgtuneError
from ggtune.evaluate import proved_merge
from ggtune.evaluate.proof import Proof, Prover
from ggtune.evaluate.proved_merge import ProvedMerge, merge_and_prove
from ggtune.gguf import scale_tuning
from ggtune.gguf.merge import merge_adapters, retyped


def merge(trained: Trained, output: Path, **options: object) -> ProvedMerge:
    """Without tuning, unless it is asked for."""
    options = {"tune_seconds": 0.0, "threads": 1, "adapters": trained.adapters, **options}
    return merge_and_prove(
        trained.config.model,
        output=output,
        trained=trained.samples.training,
        held_out=trained.samples.held_out,
        **options,  # type: ignore[arg-type]
    )


def test_scales_are_fitted_to_what_was_trained_on(trained: Trained, tmp_path: Path) -> None:
    """And to a text of its own, the same with any number of threads."""
    base, output = trained.config.model, tmp_path / "merged.gguf"

    def merged(**options: object) -> bytes:
        merge_adapters(base, trained.adapters, output, **options)  # type: ignore[arg-type]
        return output.read_bytes()

    samples = trained.samples.training
    fitted = merged(trained=samples)
    assert len({fitted, merged(), merged(fit=False), merged(trained=samples, seed=1)}) == 4
    for threads in (1, 3):
        assert merged(trained=samples, threads=threads) == fitted
    others = [merged(trained=samples, seed=seed, name="merged") for seed in range(4)]
    merge(trained, output)
    assert output.read_bytes() in others


def test_the_nearest_is_taken(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proofs = []
    prove = Prover.prove

    def noted(self: Prover, path: str):  # type: ignore[no-untyped-def]
        proofs.append((prove(self, path), Path(path).read_bytes()))
        return proofs[-1][0]

    monkeypatch.setattr(Prover, "prove", noted)
    output = tmp_path / "merged.gguf"
    found = merge(trained, output)
    assert len(proofs) == 4  # of four seeds
    best, content = min(proofs, key=lambda each: each[0].kl)
    assert output.read_bytes() == content
    assert found.proof.kl == best.kl
    assert found.proof.n_answers == len(trained.samples.training)
    assert [path.name for path in tmp_path.iterdir()] == ["merged.gguf"]
    assert found.advice() == []
    assert retyped(found.counts) == ""


@pytest.fixture
def one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the other seeds would only take time."""
    monkeypatch.setattr(proved_merge, "_MORE_SEEDS", 0)


@pytest.mark.usefixtures("one_seed")
def test_another_seed_is_another_merge(trained: Trained, tmp_path: Path) -> None:
    outputs = [tmp_path / "a/merged.gguf", tmp_path / "b/merged.gguf", tmp_path / "c/merged.gguf"]
    for output, seed in zip(outputs, (0, 0, 10), strict=True):
        merge(trained, output, seed=seed)
    contents = [output.read_bytes() for output in outputs]
    assert contents[0] == contents[1] != contents[2]


def test_one_type_for_all(trained: Trained, tmp_path: Path) -> None:
    found = merge(trained, tmp_path / "merged.gguf", outtype="f16")
    assert {tensor["to"] for tensor in found.counts["tensors"].values()} == {"f16"}
    assert "tensors q5_K to f16" in retyped(found.counts)
    assert found.proof.good


@pytest.mark.usefixtures("one_seed")
def test_auto_raises_nothing_where_all_is_kept(trained: Trained, tmp_path: Path) -> None:
    said: list[str] = []
    found = merge(trained, tmp_path / "merged.gguf", outtype="auto", say=said.append)
    assert said == []
    assert retyped(found.counts) == ""


@pytest.mark.usefixtures("one_seed")
def test_auto_raises_types_until_enough_is_kept(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proved_merge, "_AUTO_SHARE", 2.0)  # no file keeps that
    said: list[str] = []
    found = merge(trained, tmp_path / "merged.gguf", outtype="auto", say=said.append)
    n_tensors = len(found.counts["tensors"])
    assert len(said) == 4
    assert said[-1].startswith(f"Raising the types of {n_tensors} tensors: ")
    assert said[0].startswith(f"Raising the types of {round(0.1 * n_tensors)} tensors: ")
    assert [path.name for path in tmp_path.iterdir()] == ["merged.gguf"]


@pytest.mark.usefixtures("one_seed")
def test_what_is_not_good_is_said(trained: Trained, tmp_path: Path) -> None:
    found = merge(trained, tmp_path / "merged.gguf")
    losses = dataclasses.replace(found.proof.trained, base=4.0, live=1.0, merged=2.5)
    (line,) = dataclasses.replace(found, proof=dataclasses.replace(found.proof, trained=losses)).advice()
    assert "NOT good: it keeps 50 % of what the adapter learned" in line


def data_of(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.usefixtures("one_seed")
def test_scales_are_tuned_where_that_comes_nearer(trained: Trained, tmp_path: Path) -> None:
    """The same with any number of threads; what is no scale stays as it was."""
    said: list[str] = []
    output = tmp_path / "merged.gguf"
    plain = merge(trained, output)
    before = data_of(output)
    tuned = merge(trained, output, tune_seconds=1000.0, say=said.append)
    assert tuned.proof.kl < 0.9 * plain.proof.kl
    assert tuned.counts["n_tuning_steps"] > 0
    before_it, line = said
    assert before_it.startswith("Tuning the scales of the merged file, for at most about 1000 s")
    steps = rf"Tuned [\d,]+ scales in {tuned.counts['n_tuning_steps']} steps \(\d+ s\)"
    assert re.fullmatch(rf"{steps}: KL {plain.proof.kl:.4f} to {tuned.proof.kl:.4f}", line)
    adapted = set(tuned.counts["tensors"])
    for name, data in data_of(output).items():
        assert (data != before[name]) == (name in adapted)
    content = output.read_bytes()
    merge(trained, output, tune_seconds=1000.0, threads=2)
    assert output.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["merged.gguf"]


@pytest.mark.usefixtures("one_seed")
@pytest.mark.parametrize("raised", [False, True])
def test_auto_tunes_each_file_once(
    raised: bool, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one of the base's types, though that came no nearer, and the raised one where there is one."""
    monkeypatch.setattr(proved_merge, "_AUTO_SHARE", 2.0 if raised else -2.0)
    monkeypatch.setattr(proved_merge, "_RAISED_SHARES", (0.5,))
    monkeypatch.setattr(scale_tuning, "_RATE", 1.0)
    said: list[str] = []
    merge(trained, tmp_path / "merged.gguf", outtype="auto", tune_seconds=1000.0, say=said.append)
    assert sum(line.startswith("Tuning the scales") for line in said) == 1 + raised


@pytest.mark.parametrize(("outtype", "is_tuned"), [("q4_0", True), ("q8_0", False), ("f16", False)])
def test_other_types_are_tuned_where_they_are_coarse(
    outtype: str, is_tuned: bool, trained: Trained, tmp_path: Path
) -> None:
    said: list[str] = []
    plain = merge(trained, tmp_path / "plain.gguf", outtype=outtype)
    found = merge(trained, tmp_path / "tuned.gguf", outtype=outtype, tune_seconds=1000.0, say=said.append)
    assert ("n_tuning_steps" in found.counts) == is_tuned
    assert bool(said) == is_tuned
    assert (found.proof.kl < plain.proof.kl) == is_tuned


@pytest.mark.usefixtures("one_seed")
@pytest.mark.parametrize("why", ["no time", "no memory", "no memory then", "farther", "two adapters"])
def test_where_scales_are_not_tuned(
    why: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the one without tuning, and the reason is said where there is one."""
    said: list[str] = []
    output = tmp_path / "merged.gguf"
    adapters = trained.adapters * 2 if why == "two adapters" else trained.adapters
    reasons = {
        "no time": r"1 s are too few steps \(--tune-seconds\)",
        "no memory": "too little memory",
        "no memory then": "could not be made: not enough memory",
        "farther": r"^Tuned [\d,]+ scales in \d+ steps \(\d+ s\): no nearer, and not taken",
        "two adapters": "takes one adapter",
    }
    if why == "no time":
        monkeypatch.setattr(scale_tuning, "_EPOCHS", 100000)
        monkeypatch.setattr(scale_tuning, "_FEWEST_STEPS", 100000)
    elif why == "no memory":
        monkeypatch.setattr(scale_tuning, "available_memory", lambda: 1000)
    elif why == "no memory then":

        def fails(*_: object) -> int:
            raise MemoryError

        monkeypatch.setattr(scale_tuning, "_descend", fails)
    elif why == "farther":
        monkeypatch.setattr(scale_tuning, "_RATE", 1.0)
    merge(trained, output, adapters=adapters)
    content = output.read_bytes()
    found = merge(trained, output, adapters=adapters, tune_seconds=1.0 if why == "no time" else 1000.0, say=said.append)
    assert output.read_bytes() == content
    assert "n_tuning_steps" not in found.counts
    assert re.search(reasons[why], said[-1])


def prove_but(error: BaseException, fails: Callable[[str], bool]) -> Callable[[Prover, str], Proof]:
    """``Prover.prove`` that raises for the files that ``fails`` tells by their names."""
    prove = Prover.prove

    def prove_or_fail(self: Prover, path: str) -> Proof:
        if fails(Path(path).name):
            raise error
        return prove(self, path)

    return prove_or_fail


def test_nothing_is_left_of_a_merge_that_is_interrupted(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Prover, "prove", prove_but(KeyboardInterrupt(), lambda name: name.startswith(".")))
    with pytest.raises(KeyboardInterrupt):
        merge(trained, tmp_path / "merged.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["merged.gguf"]


def test_a_trial_that_fails_leaves_the_merge_that_is_there(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Prover, "prove", prove_but(GgtuneError("the disk is full"), lambda name: name.startswith(".")))
    found = merge(trained, tmp_path / "merged.gguf", say=said.append)
    assert found.proof is not None
    assert found.good
    assert any("the disk is full" in text for text in said)
    assert [path.name for path in tmp_path.iterdir()] == ["merged.gguf"]


def test_a_merge_that_cannot_be_measured_is_kept(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Prover, "prove", prove_but(GgtuneError("no context"), lambda name: True))
    found = merge(trained, tmp_path / "merged.gguf", say=said.append)
    assert found.proof is None
    assert found.good
    assert found.advice() == []
    assert said == ["What the merged file has kept could not be measured: no context"]
    assert [path.name for path in tmp_path.iterdir()] == ["merged.gguf"]
