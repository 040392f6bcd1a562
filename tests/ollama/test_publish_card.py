import hashlib
import json
import re
from dataclasses import replace

import gguf_samples as samples
import pytest
import yaml
from run_folders import make_run

from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import read_adapter, write_adapter
from ggtune.gguf.io import model_fingerprint
from ggtune.publish.base_model import License, read_base
from ggtune.publish.card import model_card, yaml_header
from ggtune.publish.hub import uploads
from ggtune.publish.run_folder import read_run

LICENSE = License("apache-2.0")


def card_of(run, **options):
    """Metadata and sections of the card, by title."""
    files = uploads(read_run(run), "me/chem", **options)
    text = next(file.source for file in files if file.name == "README.md").decode()
    _, header, body = text.split("---\n", 2)
    first, *sections = re.split(r"^## ", body, flags=re.MULTILINE)
    return yaml.safe_load(header), {"": first} | dict(section.split("\n", 1) for section in sections)


def test_the_card_says_what_the_run_was(tmp_path):
    run = make_run(tmp_path)
    metadata, sections = card_of(run)
    assert metadata == {
        "license": "apache-2.0",
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["ggtune", "gguf", "lora", "llama.cpp", "ollama", "conversational"],
    }
    assert list(sections) == [
        "",
        "How to use it",
        "Data",
        "Settings",
        "Loss",
        "Proof of the merge",
        "Licence",
    ]
    assert "Tiny Base with a LoRA adapter merged into it" in sections[""]
    assert "does not say from which repository" in sections[""]
    assert "ollama run hf.co/me/chem:Q8_0" in sections["How to use it"]
    assert "llama-cli -m chem-Q8_0.gguf -cnv" in sections["How to use it"]
    assert "ggtune ask --model base.gguf --lora chem-lora.gguf" in sections["How to use it"]
    assert "prompt template `llama2`" in sections["How to use it"]
    assert "    Be short." in sections["How to use it"].splitlines()
    assert "| file | chem.csv |" in sections["Data"]
    assert "| questions and answers | 2 |" in sections["Data"]
    assert "| rank | 4 |" in sections["Settings"]
    assert "| 40 | 4.00 | 0.1250 | 0.1250 | 0.6250 |" in sections["Loss"]
    assert "None was made" in sections["Proof of the merge"]
    assert "apache-2.0: the licence of the base model, as its file names it" in sections["Licence"]


def test_no_path_of_the_machine_is_told(tmp_path):
    run = make_run(tmp_path)
    proof = {"base": str(tmp_path / "base.gguf"), "kept": 0.97, "files": {str(tmp_path / "m.gguf"): ["C:\\a b\\x.csv"]}}
    (run / "proof.json").write_text(json.dumps(proof))
    _, sections = card_of(run)
    text = "".join(sections.values())
    assert str(tmp_path) not in text
    assert "private folder" not in text
    assert "a b" not in text
    assert "| base | base.gguf |" in sections["Proof of the merge"]
    assert "| files.m.gguf | x.csv |" in sections["Proof of the merge"]


def test_a_proof_of_any_shape_becomes_a_table(tmp_path):
    run = make_run(tmp_path)
    proof = {
        "kept": 0.9712345678,
        "good": True,
        "trained": {"loss": {"base": 2.5, "merged": 1.0}, "rows": 100},
        "seeds": [1, 2],
        "tensors": [{"name": "a", "type": "Q4_K"}, {"name": "b|c", "type": None}],
        "end": "<|im_end|>",
    }
    (run / "proof.json").write_text(json.dumps(proof))
    _, sections = card_of(run)
    rows = [line for line in sections["Proof of the merge"].splitlines() if line.startswith("|")]
    assert rows[2:] == [
        "| kept | 0.971235 |",
        "| good | yes |",
        "| trained.loss.base | 2.5 |",
        "| trained.loss.merged | 1 |",
        "| trained.rows | 100 |",
        "| seeds | 1, 2 |",
        "| tensors.1.name | a |",
        "| tensors.1.type | Q4_K |",
        "| tensors.2.name | b&#124;c |",
        "| tensors.2.type |  |",
        "| end | &lt;&#124;im_end&#124;&gt; |",
    ]


def test_an_adapter_alone(tmp_path):
    run = make_run(tmp_path, merged=False)
    metadata, sections = card_of(run, base_models=["org/tiny"])
    assert metadata["base_model"] == "org/tiny"
    assert metadata["base_model_relation"] == "adapter"
    assert "ollama" not in metadata["tags"]
    assert "A LoRA adapter for Tiny Base (llama)." in sections[""]
    assert "[org/tiny](https://huggingface.co/org/tiny)" in sections[""]
    assert "ollama run" not in sections["How to use it"]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"general__repo_url": "https://huggingface.co/org/tiny"}, ("org/tiny",)),
        ({"general__source__huggingface__repository": "org/tiny"}, ("org/tiny",)),
        ({"general__source__url": "https://hf.co/org/tiny/tree/main"}, ("org/tiny",)),
        ({"general__repo_url": "https://github.com/org/tiny"}, ()),
        ({"general__repo_url": "tiny"}, ()),
        ({}, ()),
    ],
)
def test_the_repository_of_the_base(tmp_path, texts, expected):
    assert read_base(samples.write_model(tmp_path / "m.gguf", **texts)).repositories == expected


@pytest.mark.parametrize(
    ("texts", "metadata", "shown"),
    [
        ({"general__license": "Apache-2.0"}, {"license": "apache-2.0"}, "apache-2.0: the licence of the base"),
        (
            {
                "general__license": "other",
                "general__license__name": "Tiny License",
                "general__license__link": "https://x.test/LICENSE",
            },
            {"license": "other", "license_name": "tiny-license", "license_link": "https://x.test/LICENSE"},
            "[Tiny License](<https://x.test/LICENSE>): the licence of the base",
        ),
        (
            {"general__license": "Do what\nyou like."},
            {"license": "other", "license_name": "do-what"},
            "Do what: the licence of the base",
        ),
    ],
)
def test_the_licence_of_the_base(tmp_path, texts, metadata, shown):
    run = make_run(tmp_path, base_texts=texts)
    found, sections = card_of(run)
    assert {key: value for key, value in found.items() if key.startswith("license")} == metadata
    assert sections["Licence"].strip().startswith(shown)


def test_the_merged_file_keeps_the_licence_of_a_base_that_is_gone(tmp_path):
    run = make_run(tmp_path, base=False)
    metadata, sections = card_of(run)
    assert metadata["license"] == "apache-2.0"
    assert "Tiny Base with a LoRA adapter" in sections[""]


def test_without_a_licence_the_user_is_asked(tmp_path):
    run = make_run(tmp_path, base_texts={})
    with pytest.raises(GgtuneError, match=r"base\.gguf: no file here names the licence of the base.*--license ID"):
        uploads(read_run(run), "me/chem")
    metadata, sections = card_of(run, license_=License.parse("MIT"))
    assert metadata["license"] == "mit"
    assert "mit, as whoever published this model says: no file of the base model that names one" in sections["Licence"]


def test_another_licence_than_the_file_names_is_told(tmp_path):
    _, sections = card_of(make_run(tmp_path), license_=License.parse("mit"))
    assert "The file of the base model names apache-2.0." in sections["Licence"]


def test_a_base_that_another_model_has_taken_the_place_of(tmp_path):
    run = make_run(tmp_path, merged=False)
    fingerprint = model_fingerprint(tmp_path / "base.gguf")
    content = read_adapter(run / "adapter.gguf")
    write_adapter(run / "adapter.gguf", replace(content, notes={"base_fingerprint": fingerprint}))
    assert card_of(run)[0]["license"] == "apache-2.0"
    samples.write_model(tmp_path / "base.gguf", general__name="Other", general__license="mit")
    with pytest.raises(GgtuneError, match="no file here names the licence"):
        card_of(run)


@pytest.mark.parametrize(
    ("finetune", "merged", "expected"),
    [("adapter", True, "adapter.gguf"), ("adapter-best", True, "adapter-best.gguf"), ("", False, "adapter-best.gguf")],
)
def test_the_adapter_is_the_one_that_was_merged(tmp_path, finetune, merged, expected):
    run = make_run(tmp_path, merged=merged)
    if merged:
        samples.write_model(run / "model.gguf", general__finetune=finetune, general__license="mit")
    content = read_adapter(run / "adapter.gguf")
    write_adapter(run / "adapter-best.gguf", replace(content, notes={"step": "30"}))
    assert read_run(run).adapter == run / expected
    assert ("The adapter is that of step 30." in card_of(run)[1]["Loss"]) is (expected == "adapter-best.gguf")


def test_data_of_a_folder_and_more_data_are_described(tmp_path):
    run = make_run(tmp_path)
    shards = tmp_path / "shards"
    shards.mkdir()
    for name in ("b.csv", "a.csv"):
        (shards / name).write_text(f"question,answer\nq of {name},a\n")
    (shards / "test.csv").write_text("question,answer\nnot,trained on\n")
    settings = json.loads((run / "config.json").read_text())
    more = f"{settings['data']}=0.5"
    (run / "config.json").write_text(json.dumps(settings | {"data": "shards", "more_data": [more]}))
    sha = {name: hashlib.sha256((shards / name).read_bytes()).hexdigest() for name in ("a.csv", "b.csv")}
    listed = hashlib.sha256("".join(f"{sha[name]}  {name}\n" for name in sha).encode()).hexdigest()
    section = card_of(run)[1]["Data"]
    assert "| folder | shards: 2 files |" in section
    assert f"| SHA-256 of the files' sha256sum lines | {listed} |" in section
    assert section.count("| questions and answers | 2 |") == 2
    assert "| file | chem.csv |" in section
    (shards / "a.csv").write_text("question,answer\nanother,a\n")
    assert listed not in card_of(run)[1]["Data"]
    status = json.loads((run / "status.json").read_text()) | {"started": (shards / "a.csv").stat().st_mtime - 1}
    (run / "status.json").write_text(json.dumps(status))
    assert "| file | shards |" in card_of(run)[1]["Data"]
    assert "not known: it is gone or has changed since" in card_of(run)[1]["Data"]


def test_data_that_have_changed_since_are_not_described(tmp_path):
    run = make_run(tmp_path)
    data = tmp_path / "private folder" / "chem.csv"
    for started, shown in ((data.stat().st_mtime + 1, True), (data.stat().st_mtime - 1, False)):
        status = json.loads((run / "status.json").read_text()) | {"started": started}
        (run / "status.json").write_text(json.dumps(status))
        assert ("| SHA-256 | " in card_of(run)[1]["Data"]) is shown
        assert ("has changed since" in card_of(run)[1]["Data"]) is not shown
    data.unlink()
    assert "| file | chem.csv |" in card_of(run)[1]["Data"]


def test_other_needs_a_name():
    with pytest.raises(GgtuneError, match="--license-name"):
        License.parse("other")
    assert License.parse("other", "Tiny License").slug == "tiny-license"


def test_texts_can_not_break_out_of_the_header():
    fields = {"license": "x: [a]\n---\nb: 'c'", "tags": ["- d", "#e", "ä"]}
    header = yaml_header(fields)
    assert yaml.safe_load(header.removeprefix("---\n").removesuffix("---\n")) == fields
    assert header.count("\n---\n") == 1


@pytest.mark.parametrize(
    ("state", "removed", "message"),
    [
        ("finished", ["adapter.gguf", "model.gguf"], "nothing to publish: no adapter.gguf nor model.gguf"),
        ("finished", ["status.json", "metrics.jsonl"], "is no run folder"),
        ("finished", ["Modelfile"], r"no Modelfile.*ggtune package"),
    ],
)
def test_folders_that_hold_no_finished_run(tmp_path, state, removed, message):
    run = make_run(tmp_path, state=state)
    for name in removed:
        (run / name).unlink()
    with pytest.raises(GgtuneError, match=message):
        read_run(run)


@pytest.mark.parametrize(
    ("state", "reason", "shown"),
    [
        ("finished", "all 12 steps are done", "The end: all 12 steps are done."),
        ("failed", "can't write /secret/place", "The end: the run was not finished (failed)."),
        ("finished", "", "epochs.\n"),
    ],
)
def test_how_the_run_ended(tmp_path, state, reason, shown):
    run = make_run(tmp_path, state=state)
    status = json.loads((run / "status.json").read_text()) | {"reason": reason}
    (run / "status.json").write_text(json.dumps(status))
    _, sections = card_of(run)
    assert shown in sections["Loss"]
    assert "secret" not in sections["Loss"]


def test_a_run_that_goes_on(tmp_path):
    import psutil

    from ggtune.run.lock import ProcessId

    run = make_run(tmp_path)
    own = ProcessId.own()
    status = json.loads((run / "status.json").read_text()) | {"state": "running", **vars(own)}
    (run / "status.json").write_text(json.dumps(status))
    assert psutil.pid_exists(own.pid)
    with pytest.raises(GgtuneError, match="still going"):
        read_run(run)


def test_files_that_do_not_fit(tmp_path):
    run = make_run(tmp_path)
    samples.write_adapter(run / "adapter.gguf", architecture="gemma")
    with pytest.raises(GgtuneError, match="an adapter for a gemma model"):
        read_run(run)
    (run / "model.gguf").rename(run / "adapter.gguf")
    with pytest.raises(GgtuneError, match="not a LoRA adapter"):
        read_run(run)


@pytest.mark.parametrize("name", ["config.json", "proof.json"])
@pytest.mark.parametrize("text", ["{", "[1]"])
def test_damaged_records(tmp_path, name, text):
    run = make_run(tmp_path)
    (run / name).write_text(text)
    with pytest.raises(GgtuneError, match=rf"{name}: not"):
        read_run(run)


def test_the_loss_is_a_picture_and_a_short_table(tmp_path):
    run = make_run(tmp_path)
    lines = "".join(json.dumps({"step": i, "loss": 1.0, "held_out_loss": 2.0}) + "\n" for i in range(1, 1001))
    (run / "metrics.jsonl").write_text(lines)
    files = uploads(read_run(run), "me/chem")
    picture = next(file for file in files if file.name == "loss.png")
    assert picture.source.startswith(b"\x89PNG")
    section = card_of(run)[1]["Loss"]
    assert "1000 steps" in re.search(r"!\[([^\]]*)\]\(loss\.png\)", section)[1]
    rows = [line for line in section.splitlines() if re.match(r"\| \d", line)]
    assert 12 <= len(rows) <= 24
    assert rows[0].startswith("| 1 |")
    assert rows[-1].startswith("| 1000 |")


@pytest.mark.parametrize("lines", ["", '{"step": 1, "loss": 2.0}\n'])
def test_without_a_curve_there_is_no_picture(tmp_path, lines):
    run = make_run(tmp_path)
    (run / "metrics.jsonl").write_text(lines)
    assert "loss.png" not in [file.name for file in uploads(read_run(run), "me/chem")]
    assert "![" not in card_of(run)[1]["Loss"]


def test_scores_answers_and_findings_are_those_of_the_report(tmp_path):
    run = make_run(tmp_path)
    asked = {"question": "Which | *one*?", "reference": "r", "before": "<b>", "after": "this", "before_ended": False}
    (run / "before_after.jsonl").write_text("".join(json.dumps(asked | {"row": i}) + "\n" for i in range(3)))
    finding = {"kind": "overfitted", "severity": "warning", "text": f"See {run}/metrics.jsonl.", "advice": "Less."}
    (run / "diagnosis.json").write_text(json.dumps({"findings": [finding]}))
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    values = {
        "labels": ["base", "best"],
        "n_samples": 20,
        "scores": {"f1": {"title": "F1", "values": [estimate, estimate], "differences": [None, {"verdict": "same"}]}},
        "rows": [{"question": "private", "answers": ["a", "b"], "changes": [0, 1]}],
    }
    (run / "comparison.json").write_text(json.dumps(values))
    sections = card_of(run)[1]
    assert list(sections)[2:5] == ["Findings", "Scores", "Answers before and after"]
    assert sections["Findings"].strip() == "⚠ **Overfitted.** See run/metrics.jsonl."
    assert "| F1 | 0.500 &#91;0.400, 0.600&#93; | 0.500 &#91;0.400, 0.600&#93; | same |" in sections["Scores"]
    assert "private" not in sections["Scores"]
    assert "**Which &#124; &#42;one&#42;?**" in sections["Answers before and after"]
    assert "| Before | &lt;b&gt; | cut: it did not end by itself |" in sections["Answers before and after"]
    assert "Answers before and after" not in card_of(run, examples=False)[1]


def test_names_that_markdown_would_take_for_marks(tmp_path):
    run = make_run(tmp_path, base_texts={"general__name": "a|b *c* [d](e) <f>", "general__license": "mit"})
    card = model_card(read_run(run), "me/chem", {}, LICENSE, ())
    assert "a&#124;b &#42;c&#42; &#91;d&#93;(e) &lt;f&gt; with a LoRA adapter" in card
