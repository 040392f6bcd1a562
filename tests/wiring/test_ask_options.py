"""Every option of ``ask``: by what the generator gets, and by answers that a run has learned by heart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from learned import ROWS, SYSTEM, LearnedRun

from ggtune import _core
from ggtune.cli import cli
from ggtune.cli.ask import command
from ggtune.data.templates import TEMPLATES
from ggtune.demo import MODEL
from ggtune.generate import answer_pieces
from ggtune.system import available_threads

# the test of each
OPTIONS = {
    "question": "test_a_learned_question_is_answered_word_for_word",
    "questions": "test_many_questions",
    "chat": "test_a_conversation",
    "as_json": "test_many_questions",
    "model": "test_a_learned_question_is_answered_word_for_word",
    "lora": "test_without_the_adapter_the_answer_is_another",
    "template": "test_template",
    "system": "test_system",
    "temp": "test_temperature_and_seed",
    "seed": "test_temperature_and_seed",
    "max_tokens": "test_number_of_tokens",
    "threads": "test_threads",
    "force": "test_another_base",
    "gpu_layers": "test_layers_on_devices",
    "device": "test_layers_on_devices",
    "main_device": "test_layers_on_devices",
    "split": "test_layers_on_devices",
    "cpu_experts": "test_layers_on_devices",
    "device_memory": "test_layers_on_devices",
}


@dataclass
class Generation:
    """What the native generator was given."""

    prompt: str
    n_prompt: int
    arguments: dict[str, Any]
    n_tokens: int = 0  # taken from it


@dataclass
class Asked:
    result: Result
    generation: Generation
    model_arguments: dict[str, Any]

    @property
    def answer(self) -> str:
        assert self.result.exit_code == 0, self.result.output
        return self.result.stdout.strip()


@dataclass
class Recorder:
    """Stands for the native ``Generator`` and ``Model``."""

    generations: list[Generation] = field(default_factory=list)
    model_arguments: dict[str, Any] = field(default_factory=dict)
    generator: Callable[..., Iterator[int]] = _core.Generator
    load: Callable[..., _core.Model] = _core.Model

    def make_generator(self, model: _core.Model, prompt: Any, **arguments: Any) -> Iterator[int]:
        text = model.detokenize(prompt, special=True).decode()
        generation = Generation(text, len(prompt), arguments)
        self.generations.append(generation)
        for token in self.generator(model, prompt, **arguments):
            generation.n_tokens += 1
            yield token

    def make_model(self, path: str, **arguments: Any) -> _core.Model:
        if not arguments.get("vocab_only") and not arguments.get("header_only"):
            self.model_arguments = arguments
        return self.load(path, **arguments)


def ask(*arguments: object, stdin: str | None = None) -> Asked:
    """Run the command."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_core, "Generator", recorder.make_generator)
        patch.setattr(_core, "Model", recorder.make_model)
        result = CliRunner().invoke(cli, ["ask", *map(str, arguments)], input=stdin)
    generation = recorder.generations[-1] if recorder.generations else Generation("", 0, {})
    return Asked(result, generation, recorder.model_arguments)


def test_every_option_has_a_test() -> None:
    assert {parameter.name for parameter in command.params if isinstance(parameter, click.Parameter)} == set(OPTIONS)
    assert set(OPTIONS.values()) <= set(globals())


@pytest.mark.parametrize("question", ROWS, ids=lambda row: row[0])
@pytest.mark.parametrize("merged", [True, False], ids=["merged", "adapter"])
def test_a_learned_question_is_answered_word_for_word(
    question: tuple[str, str], merged: bool, learned_run: LearnedRun
) -> None:
    which = ["-m", learned_run.merged] if merged else ["--model", MODEL, "--lora", learned_run.adapter]
    assert ask(*which, question[0]).answer == question[1]


def test_without_the_adapter_the_answer_is_another(learned_run: LearnedRun) -> None:
    asked = ["--model", MODEL, "--template", learned_run.template, "--system", SYSTEM, ROWS[0][0]]
    without, beside = ask(*asked), ask(*asked, "--lora", learned_run.adapter)
    assert without.answer != ROWS[0][1]
    assert beside.answer == ROWS[0][1]
    assert without.generation.prompt == beside.generation.prompt
    assert without.generation.arguments["adapter"] is None


def test_many_questions(learned_run: LearnedRun, tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text("\n".join(question for question, _ in ROWS))
    model = ["--model", MODEL, "--lora", learned_run.adapter]
    told = [json.loads(line) for line in ask(*model, "--file", path, "--json").answer.splitlines()]
    assert [(one["question"], one["answer"], one["ended"]) for one in told] == [(*row, True) for row in ROWS]
    assert ask(*model, "--file", path).answer == "\n\n".join(f"> {row[0]}\n{row[1]}" for row in ROWS)


def test_a_conversation(learned_run: LearnedRun) -> None:
    asked = ask("--model", MODEL, "--lora", learned_run.adapter, "--chat", stdin=ROWS[0][0])
    assert asked.answer == ROWS[0][1]
    assert asked.generation.n_prompt > 0


def test_template(learned_run: LearnedRun) -> None:
    for model in (["--model", MODEL, "--lora", learned_run.adapter], ["--model", learned_run.merged]):
        trained = ask(*model, ROWS[0][0])  # the default is the one of the training
        assert TEMPLATES[learned_run.template].render_prompt(SYSTEM, ROWS[0][0]).prompt in trained.generation.prompt
        other = ask(*model, "--template", "plain", "--system", "", ROWS[0][0])
        assert TEMPLATES["plain"].render_prompt(None, ROWS[0][0]).prompt in other.generation.prompt
        assert "<|im_start|>" not in other.generation.prompt
    own = ask("--model", MODEL, ROWS[0][0])  # the model's
    assert f"[INST] {ROWS[0][0]} [/INST]" in own.generation.prompt


def test_system(learned_run: LearnedRun) -> None:
    for model in (["--model", MODEL, "--lora", learned_run.adapter], ["--model", learned_run.merged]):
        prompts = [
            ask(*model, *more, ROWS[0][0]).generation.prompt for more in ([], ["--system", "Rhyme."], ["--system", ""])
        ]
        assert [SYSTEM in prompt for prompt in prompts] == [True, False, False]
        assert ["Rhyme." in prompt for prompt in prompts] == [False, True, False]


def test_temperature_and_seed(learned_run: LearnedRun) -> None:
    model = ["--model", learned_run.merged, ROWS[0][0]]
    assert ask(*model, "--seed", 5).answer == ROWS[0][1]  # the likeliest: nothing is drawn
    hot = [*model, "--temp", 30, "-n", 8]
    drawn = [ask(*hot, *seed) for seed in (["--seed", 1], ["-s", 1], ["--seed", 2], [])]
    assert [asked.generation.arguments["temperature"] for asked in drawn] == [30.0] * 4
    assert [asked.generation.arguments["seed"] for asked in drawn] == [1, 1, 2, 0]
    answers = [asked.answer for asked in drawn]
    assert answers[0] == answers[1]
    assert len({*answers, ROWS[0][1]}) == 4


def test_number_of_tokens(learned_run: LearnedRun) -> None:
    model = ["--model", learned_run.merged, ROWS[0][0]]
    whole = ask(*model)
    n_whole = whole.generation.n_tokens
    assert whole.generation.arguments["context"] == whole.generation.n_prompt + 256
    for flag in ("-n", "--max-tokens"):
        short = ask(*model, flag, 3)
        assert short.generation.arguments["context"] == short.generation.n_prompt + 3
        assert short.answer
        assert whole.answer.startswith(short.answer)
        assert len(short.answer) < len(whole.answer)
    assert n_whole > 3
    assert ask(*model, "-n", n_whole).answer == whole.answer


def test_threads(learned_run: LearnedRun) -> None:
    for flags, n in ([], available_threads()), (["-t", 3], 3), (["--threads", 1], 1), (["-t", 0], available_threads()):
        asked = ask("--model", learned_run.merged, *flags, ROWS[0][0])
        assert asked.generation.arguments["threads"] == n
        assert asked.answer == ROWS[0][1]


def test_another_base(wiring_files: Path, learned_run: LearnedRun) -> None:
    other = ["--model", wiring_files / "other.gguf", "--lora", learned_run.adapter, ROWS[0][0]]
    refused = ask(*other)
    assert refused.result.exit_code == 1
    assert "was trained on another base" in refused.result.stderr
    assert not refused.result.stdout
    taken = ask(*other, "--force")
    assert taken.result.exit_code == 0
    assert "taken all the same" in taken.result.stderr
    assert taken.generation.arguments["adapter"] is not None


def test_layers_on_devices(learned_run: LearnedRun) -> None:
    def layers(*flags: object) -> dict[str, int]:
        asked = ask("--model", learned_run.merged, *flags, "-n", 4, ROWS[0][0])
        assert ROWS[0][1].startswith(asked.answer)
        arguments = asked.model_arguments
        return dict(zip(arguments.get("devices", ()), arguments.get("device_layers", ()), strict=True))

    for flag in ("-ngl", "--gpu-layers"):
        assert layers(flag, 2, "--device", "SIM1") == {"SIM1": 2}
    assert layers() == layers("--device", "none") == {}
    two = ("--device", "SIM0,SIM1", "--split", "1,2")
    assert layers(*two) == {"SIM0": 3, "SIM1": 6}
    assert layers(*two, "--main-device", "SIM0") == {"SIM1": 3, "SIM0": 6}
    assert layers("--device", "SIM0") == {"SIM0": 9}
    assert layers("--device", "SIM0", "--device-memory", "24M")["SIM0"] < 9
    with_experts = ask("--model", learned_run.merged, "--device", "SIM0", "--cpu-experts", 2, "-n", 1, ROWS[0][0])
    assert with_experts.model_arguments["cpu_experts"] == 2


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("carbon", "Plants take in"),  # one token or several
        ("in carbon diox", "Plants take"),
        ("Plants", ""),
        ("carbonated", "Plants take in carbon dioxide."),  # what is held back while it may become a stop text comes out
        ("dioxide. ", "Plants take in carbon dioxide."),
    ],
)
def test_a_stop_text_of_the_template_ends_the_answer(stop: str, expected: str, learned_run: LearnedRun) -> None:
    model = _core.Model(str(learned_run.merged))

    class Stopping:
        """The template of the training with another stop text."""

        stops = (stop,)

        def __getattr__(self, name: str) -> Any:
            return getattr(TEMPLATES[learned_run.template], name)

    pieces = answer_pieces(model, Stopping(), ROWS[0][0], system=SYSTEM)  # type: ignore[arg-type]
    assert "".join(pieces).strip() == expected
