"""How subjects are named: models, adapters with factors, runs and their steps, and names that hold the signs."""

from pathlib import Path

import pytest

from ggtune.errors import GgtuneError
from ggtune.evaluate.subject_text import SubjectText, labels


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("base.gguf", "a.gguf", "b.gguf", "c++.gguf", "odd@best"):
        (tmp_path / name).write_bytes(b"")
    for name in ("run", "run@old", "other/run"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_models_and_adapters(here: Path) -> None:
    assert SubjectText.parse("base.gguf") == SubjectText(Path("base.gguf"))
    assert SubjectText.parse("base.gguf+a.gguf").adapters == ((Path("a.gguf"), 1.0),)
    both = SubjectText.parse("base.gguf+a.gguf*0.5+b.gguf")
    assert both == SubjectText(Path("base.gguf"), ((Path("a.gguf"), 0.5), (Path("b.gguf"), 1.0)))
    assert both.label == "base+a*0.5+b"
    assert SubjectText.parse("odd@best").model == Path("odd@best")
    assert SubjectText.parse("c++.gguf+a.gguf") == SubjectText(Path("c++.gguf"), ((Path("a.gguf"), 1.0),))


def test_runs(here: Path) -> None:
    assert SubjectText.parse("run") == SubjectText(run=Path("run"), which="auto")
    for which in ("base", "best", "last", "merged", "auto", "40"):
        assert SubjectText.parse(f"run@{which}") == SubjectText(run=Path("run"), which=which)
    assert SubjectText.parse("run@old").run == Path("run@old")  # a folder of that name is there
    assert SubjectText.parse("run@40").label == "run@40"
    assert SubjectText.parse("run").label == "run"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "nothing: there is no such file or folder"),
        ("nothing+a.gguf", "nothing+a.gguf: there is no such file"),
        ("base.gguf+x.gguf", "x.gguf: there is no such adapter file"),
        ("base.gguf+a.gguf*much", "the adapter's factor 'much' is no number"),
        ("base.gguf+a.gguf*nan", "'nan' is no number"),
        ("run@first", "'first' is no step of a run"),
        ("run@-1", "'-1' is no step of a run"),
        ("run+a.gguf", "run is a folder"),
    ],
)
def test_what_can_not_be_meant(here: Path, text: str, message: str) -> None:
    with pytest.raises(GgtuneError) as error:
        SubjectText.parse(text)
    assert message in str(error.value)


def test_labels_are_different(here: Path) -> None:
    named = [SubjectText.parse(text) for text in ("run", "other/run", "run@best", "base.gguf", "base.gguf")]
    assert labels(named) == ["run (run)", "run (other/run)", "run@best", "base (base.gguf) #4", "base (base.gguf) #5"]
