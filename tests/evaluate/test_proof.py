"""What a proof says of files that hold all, a part, or nothing of an adapter."""

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from quick_runs import Trained, train

from ggtune import _core
from ggtune.config import TrainConfig
from ggtune.data.samples import Sample
from ggtune.demo import DATA, MODEL
from ggtune.errors import GgtuneError
from ggtune.evaluate import proof as proof_module
from ggtune.evaluate.proof import Losses, Proof, Prover
from ggtune.evaluate.verify import samples_of, samples_of_run, verify_file, verify_run
from ggtune.gguf.adapter_file import read_adapter, write_adapter
from ggtune.gguf.merge import merge_adapters
from ggtune.train.chosen import chosen_adapter


@pytest.fixture(scope="module")
def prover(trained: Trained) -> Prover:
    return trained.prover()


def merged(trained: Trained, output: Path, scale: float = 1.0, **options: object) -> str:
    adapters = [(path, scale) for path, _ in trained.adapters]
    merge_adapters(trained.config.model, adapters, output, threads=1, **options)  # type: ignore[arg-type]
    return str(output)


def target_log_probs(model: str, samples: Sequence[Sample], adapter: str | None = None) -> list[np.ndarray]:
    """Of each sample alone, by llama_decode."""
    loaded = _core.Model(model)
    return [
        _core.decode_log_probs(loaded, sample.tokens, adapter_path=adapter)[sample.weights[1:] > 0]
        for sample in samples
    ]


@pytest.mark.parametrize("outtype", ["f32", "f16"])
def test_types_that_hold_everything(prover: Prover, trained: Trained, tmp_path: Path, outtype: str) -> None:
    output = merged(trained, tmp_path / "merged.gguf", outtype=outtype)
    proof = prover.with_answers(prover.prove(output), output)
    assert proof.trained.kept == pytest.approx(1, abs=0.01)
    assert 0 <= proof.kl < 0.002
    assert proof.same_tokens > 0.95
    assert proof.n_answers == proof.n_same_answers == len(trained.samples.training)
    assert proof.good
    assert proof.end_merged == pytest.approx(proof.end_live, abs=0.01)


def test_the_base_keeps_nothing(prover: Prover) -> None:
    proof = prover.with_answers(prover.prove(str(MODEL)), str(MODEL))
    assert proof.trained.kept == pytest.approx(0, abs=1e-4)
    assert proof.trained.merged == pytest.approx(proof.trained.base, abs=1e-4)
    assert proof.end_merged == pytest.approx(proof.end_base, abs=1e-4)
    assert proof.kl > 1
    assert proof.same_tokens < 0.7
    assert proof.n_same_answers < proof.n_answers
    assert not proof.good


def test_a_part_is_a_part(prover: Prover, trained: Trained, tmp_path: Path) -> None:
    proof = prover.prove(merged(trained, tmp_path / "merged.gguf", scale=0.5, outtype="f16"))
    kept = proof.trained.kept
    assert kept is not None
    assert 0.1 < kept < 0.9
    assert not proof.good
    assert f"kept {100 * kept:.1f} ± {200 * proof.trained.kept_error:.1f} % of the gain" in proof.line()


def test_figures_are_those_of_llama_decode(prover: Prover, trained: Trained, tmp_path: Path) -> None:
    """The samples one by one; the cache is half precision there, and the sequences lie otherwise in it."""
    output = merged(trained, tmp_path / "merged.gguf")
    proof = prover.prove(output)
    assert proof.held_out is not None
    adapter = trained.adapters[0][0]
    for losses, samples in (
        (proof.trained, trained.samples.training),
        (proof.held_out, trained.samples.held_out),
    ):
        assert losses.n_samples == len(samples)
        assert losses.n_targets == sum(int(np.count_nonzero(sample.weights[1:])) for sample in samples)
        for found, model, with_adapter in (
            (losses.base, trained.config.model, None),
            (losses.live, trained.config.model, adapter),
            (losses.merged, output, None),
        ):
            expected = -np.concatenate(target_log_probs(model, samples, with_adapter)).mean()
            assert found == pytest.approx(expected, abs=1e-2)
    assert proof.held_out.live > proof.held_out.base + 0.1  # learned by heart, and not what was held out
    every = [*trained.samples.training, *trained.samples.held_out]
    for end, model, with_adapter in (
        (proof.end_base, trained.config.model, None),
        (proof.end_live, trained.config.model, adapter),
        (proof.end_merged, output, None),
    ):
        last = [math.exp(part[-1]) for part in target_log_probs(model, every, with_adapter)]
        assert end == pytest.approx(np.mean(last), abs=1e-2)


def test_kl_is_that_of_the_whole_distribution(prover: Prover, trained: Trained) -> None:
    """Against the logits of one sample after another."""
    sums, n = 0.0, 0
    model = _core.Model(trained.config.model)
    for sample in [*trained.samples.training, *trained.samples.held_out]:
        outputs = np.append(sample.weights[1:] > 0, False)
        sequences = np.zeros(len(sample.tokens), np.int32)
        parts = []
        for adapters in (trained.adapters, []):
            scorer = _core.Scorer(model, adapters, n_tokens=len(sample.tokens), n_sequences=1)
            logits = scorer.logits(sample.tokens, sequences, outputs).astype(np.float64)
            parts.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
        live, base = parts
        sums += float(np.sum(np.exp(live) * (live - base)))
        n += len(live)
    assert prover.prove(trained.config.model).kl == pytest.approx(sums / n, rel=0.01)


def test_answers_are_the_greedy_ones(prover: Prover, trained: Trained) -> None:
    """Learned by heart: what the live adapter answers is what it was trained on."""
    learned = sorted(tuple(sample.tokens[sample.n_prompt : -1].tolist()) for sample in trained.samples.training)
    assert sorted(answer.tokens for answer in prover._answers) == learned
    assert all(answer.ended for answer in prover._answers)


def test_nothing_held_out(trained: Trained) -> None:
    proof = Prover(trained.config.model, trained.adapters, trained.samples.training, threads=1).prove(str(MODEL))
    assert proof.held_out is None
    assert "held-out" not in proof.line()
    assert proof.to_dict()["held_out"] is None


def test_plain_text_has_no_answers(trained: Trained, tmp_path: Path) -> None:
    texts = [
        dataclasses.replace(
            sample, n_prompt=0, weights=np.append(0, np.ones(len(sample.tokens) - 1)).astype(np.float32)
        )
        for sample in trained.samples.training
    ]
    prover = Prover(trained.config.model, trained.adapters, texts, threads=1)
    output = merged(trained, tmp_path / "merged.gguf")
    proof = prover.with_answers(prover.prove(output), output)
    assert proof.n_answers == proof.n_same_answers == 0
    assert proof.trained.n_targets == sum(len(sample.tokens) - 1 for sample in texts)
    assert proof.trained.kept == pytest.approx(1, abs=0.05)
    assert "answers" not in proof.line()


def test_samples_without_targets_are_left_out(trained: Trained) -> None:
    none = [dataclasses.replace(s, weights=np.zeros_like(s.weights)) for s in trained.samples.training]
    proof = Prover(trained.config.model, trained.adapters, [*none, trained.samples.training[0]], threads=1).prove(
        str(MODEL)
    )
    assert proof.trained.n_samples == 1
    for samples in (none, []):
        with pytest.raises(GgtuneError, match="no sample to prove a merge on"):
            Prover(trained.config.model, trained.adapters, samples, threads=1)


def test_an_adapter_of_another_model_is_refused(trained: Trained) -> None:
    other = Path(__file__).parent.parent / "golden/llama-lora.gguf"
    with pytest.raises(GgtuneError):
        Prover(trained.config.model, [(str(other), 1.0)], trained.samples.training, threads=1)


@pytest.fixture(scope="module")
def many() -> list[Sample]:
    """More samples than one batch holds."""
    return samples_of(TrainConfig(model=str(MODEL), data=str(DATA), holdout="0")).training


def test_memory_bounds_the_samples(trained: Trained, many: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    n_vocab = _core.Model(str(MODEL), vocab_only=True).n_vocab
    monkeypatch.setattr(proof_module, "_LOGIT_BYTES", 200 * 4 * n_vocab)
    proof = trained_on(many, trained).prove(str(MODEL))
    assert 150 < proof.trained.n_targets <= 200
    proof = Prover(trained.config.model, trained.adapters, many[:40], many[40:], threads=1).prove(str(MODEL))
    assert proof.held_out is not None
    assert proof.trained.n_targets <= 200 * 2 // 3
    assert 0 < proof.held_out.n_targets <= 200 // 3


def test_time_bounds_the_samples(trained: Trained, many: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(proof_module, "_LONGEST_ANSWER", 1)  # without a bound, all samples are answered
        everything = trained_on(many, trained, seconds=math.inf).prove(str(MODEL))
    assert everything.trained.n_samples == len(many)
    hurried = trained_on(many, trained, seconds=1e-6)
    proof = hurried.with_answers(hurried.prove(str(MODEL)), str(MODEL))
    assert 0 < proof.trained.n_samples < len(many) / 2  # one batch
    assert proof.n_answers == 8  # as many as are decoded at once


def trained_on(samples: list[Sample], trained: Trained, **options: object) -> Prover:
    return Prover(trained.config.model, trained.adapters, samples, threads=1, **options)  # type: ignore[arg-type]


def test_without_a_gain_there_is_no_share() -> None:
    losses = Losses(n_samples=3, n_targets=30, base=2.0, live=1.995, merged=2.5)
    assert losses.kept is None
    assert dataclasses.replace(losses, live=2.5).kept is None
    assert dataclasses.replace(losses, live=1.0).kept == pytest.approx(-0.5)
    proof = Proof(losses, None, 0.5, 0.6, 0.7, kl=0.1, same_tokens=0.9)
    assert proof.good
    assert "the adapter gains nothing on these samples" in proof.line()
    assert proof.to_dict()["trained"]["kept"] is None
    for merged_loss, good in ((1.09, True), (1.11, False)):
        changed = dataclasses.replace(proof, trained=dataclasses.replace(losses, live=1.0, merged=merged_loss))
        assert changed.good == changed.to_dict()["good"] == good


def test_the_verdict_knows_how_uncertain_the_share_is() -> None:
    """A tenth lost is no fault where the samples differ by more than that; with the same loss in each it is one."""
    losses = Losses(n_samples=20, n_targets=200, base=2.0, live=1.98, merged=1.985, kept_error=0.1)
    proof = Proof(losses, None, 0.5, 0.6, 0.7, kl=0.1, same_tokens=0.9)
    assert losses.kept == pytest.approx(0.75)
    assert proof.good
    assert "kept 75.0 ± 20.0 % of the gain" in proof.line()
    for error in (0.05, 0.0):
        assert not dataclasses.replace(proof, trained=dataclasses.replace(losses, kept_error=error)).good


def test_the_error_of_the_share_is_what_other_samples_would_show() -> None:
    """Against the spread of the share over many sets of samples of the same kind."""
    rng = np.random.default_rng(3)
    n_sets, n_samples = 4000, 40
    gain = rng.gamma(4, 0.5, (n_sets, n_samples))
    lost = 0.2 * gain + rng.normal(0, 0.4, (n_sets, n_samples))
    base = rng.uniform(5, 9, (n_sets, n_samples))
    shares = 1 - lost.sum(1) / gain.sum(1)
    sums = np.stack([base, base - gain, base - gain + lost], axis=2)
    errors = [proof_module._kept_error(one) for one in sums]
    assert np.mean(errors) == pytest.approx(shares.std(), rel=0.03)
    assert proof_module._kept_error(sums[0, :1]) == 0


def test_verify_of_files_and_of_a_folder(trained: Trained, tmp_path: Path) -> None:
    output = Path(merged(trained, tmp_path / "merged.gguf"))
    by_file = verify_file(output, trained.config.model, trained.adapters, trained.config.data, holdout="2", threads=1)
    assert by_file.good
    assert by_file.held_out is not None
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    with pytest.raises(GgtuneError, match=r"has no model\.gguf"):
        verify_run(folder)
    shutil.copy(output, folder / "model.gguf")
    by_folder = verify_run(folder, threads=1)
    for one, other in ((by_file.trained, by_folder.trained), (by_file.held_out, by_folder.held_out)):
        assert one == other
    assert by_file.kl == by_folder.kl


def test_verify_takes_the_adapter_that_was_merged(trained: Trained, tmp_path: Path) -> None:
    """Whether the best or the last one; and none that is not of this run."""
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    model = folder / "model.gguf"
    best = chosen_adapter(folder, "best").path
    assert best.name == "adapter-best.gguf"
    live = []
    for adapter in (best, folder / "adapter.gguf"):
        merge_adapters(trained.config.model, [(str(adapter), 1.0)], model, threads=1, outtype="f16")
        proof = verify_run(folder, threads=1)
        assert proof.kl < 0.002
        live.append(proof.trained.live)
    assert live[0] > live[1] + 0.1
    content = read_adapter(best)
    tensors = {name: 0.5 * tensor for name, tensor in content.tensors.items()}
    other = tmp_path / "other.gguf"
    write_adapter(other, dataclasses.replace(content, tensors=tensors))
    merge_adapters(trained.config.model, [(str(other), 1.0)], model, threads=1)
    with pytest.raises(GgtuneError, match="is merged from another adapter than"):
        verify_run(folder, threads=1)
    model.write_bytes(MODEL.read_bytes())  # a file that does not say what was merged into it
    assert verify_run(folder, threads=1).trained.kept == pytest.approx(0, abs=1e-3)


def test_template_and_system_are_those_of_the_training(tmp_path: Path) -> None:
    trained = train(tmp_path, template="llama2", system="Be brief.", epochs=1.0)
    output = Path(merged(trained, tmp_path / "merged.gguf", outtype="f16"))
    files = output, trained.config.model, trained.adapters, trained.config.data
    found = verify_file(*files, holdout="2", threads=1)
    expected = samples_of_run(trained.folder, trained.config).training
    adapter = trained.adapters[0][0]
    live = -np.concatenate(target_log_probs(trained.config.model, expected, adapter)).mean()
    assert found.trained.live == pytest.approx(live, abs=1e-2)
    other = verify_file(*files, holdout="2", threads=1, template="chatml", system="Be long.")
    assert abs(other.trained.live - live) > 0.05
