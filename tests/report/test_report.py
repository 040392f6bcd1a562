"""Reports of run folders of every kind: what stands in them, and that nothing in a run can spoil them."""

import json
import re
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from metrics import records, write_lines
from reported_runs import HOSTILE, add_everything, make_run, write_evaluation

from ggtune.cli import cli
from ggtune.errors import GgtuneError
from ggtune.pipeline.reporting import ReportOptions, report
from ggtune.report.page import MOST_BYTES, page
from ggtune.report.reading import names_of, read_record
from ggtune.report.sections import report_of
from ggtune.report.texts import shown_text

pytest.importorskip("matplotlib")


def text_of(*runs):
    return report(runs)[0].read_text()


def table_row(page, name):
    """Cells of the row with this name."""
    row = re.search(rf'<tr><th scope="row"><bdi dir="auto">{re.escape(name)}</bdi></th>(.*?)</tr>', page)
    return re.findall(r'<bdi dir="auto">(.*?)</bdi>', row[1]) if row else None


def titles(page):
    return re.findall("<h2>(.*?)</h2>", page)


def settings_in(page):
    """What stands of the settings that differ, and of those that do not."""
    return page.split('<section id="settings">')[1].split("<details>")


def test_a_whole_run(tmp_path):
    run = add_everything(make_run(tmp_path / "run", full=True, settings={"rank": 8, "lr": 1e-3}))
    page = text_of(run)
    assert titles(page) == [
        "What was found",
        "What to try next",
        "Main numbers",
        "Curves",
        "Scores",
        "What it broke",
        "Answers before and after",
        "Answers while training",
        "Rows that are worst learned",
        "Data",
        "What the merged file has kept",
        "Settings",
    ]
    last = records(120)[-1]
    assert table_row(page, "Training loss")[0].endswith(f"→ {last['smoothed_loss']:.4f} (smoothed)")
    assert table_row(page, "Held-out loss before") == ["3.5000"]
    assert table_row(page, "Time of training") == ["0:04:00"]
    assert table_row(page, "… of it evaluation and samples") == ["0:00:03"]
    best = min((r["held_out_loss"], r["step"]) for r in records(120) if "held_out_loss" in r)
    assert table_row(page, "Best held-out loss") == [f"{best[0]:.4f} at step {best[1]}"]
    assert table_row(page, "F1 of words") == [
        "0.412 [0.300, 0.520]",
        "0.612 [0.500, 0.720]",
        "better by 0.200 ± 0.100, p = 0.002",
    ]
    assert table_row(page, "Learned (counts in the loss)") == ["31 %"]
    assert table_row(page, "Skipped: question or answer empty") == ["2"]
    assert table_row(page, "Doubts: duplicate") == ["4"]
    assert table_row(page, "Answers that are the same") == ["7 of 8"]
    assert re.search(r'class="warning"><strong><bdi dir="auto">Overfitted</bdi>.</strong> .*It learned by heart', page)
    for shown in (
        "What is question 4?",
        "Before 4",
        "After 4",
        "Sampled 1?",
        "Answer at 100",
        "train.csv:7, loss 5.250",
    ):
        assert shown in page
    assert page.index("New 9") < page.index("New 8") < page.index("What got worse") < page.index("New 0")
    assert 'class="wide"><svg' in page
    assert page.count("<svg") == 2 + 5 + 1  # the loss twice, what else was recorded, the lengths


def test_settings_that_differ_from_the_defaults_stand_first(tmp_path):
    page = text_of(make_run(tmp_path / "run", settings={"rank": 8, "stop_loss": 0.5, "epochs": 3.0}))
    changed, same = settings_in(page)
    assert [name for name in ("--rank", "--stop-loss", "--model", "--lr", "--epochs") if f">{name}<" in changed] == [
        "--rank",
        "--stop-loss",
        "--model",
    ]
    assert all(f">{name}<" in same for name in ("--lr", "--epochs", "--batch"))


def test_a_run_until_its_loss_has_the_defaults_of_such_a_run(tmp_path):
    page = text_of(make_run(tmp_path / "run", settings={"stop_loss": 0.5}))
    changed, same = settings_in(page)
    assert ">--stop-loss<" in changed
    assert ">--schedule<" in same


@pytest.mark.parametrize(
    ("state", "reason", "found", "advice"),
    [
        ("interrupted", "a signal has ended it", 'class="warning".*a signal has ended it', "ggtune resume"),
        ("failed", "The run has diverged: 7", 'class="error".*>Diverged<.*The run has diverged: 7', None),
        ("failed", "the disk is full", 'class="error".*>Failed<.*the disk is full', None),
        ("running", "", 'class="error".*killed, or the machine went down', "ggtune resume"),  # its process is gone
        ("finished", "done", "No diagnosis was made", None),
    ],
)
def test_how_the_run_stands(tmp_path, state, reason, found, advice):
    page = text_of(make_run(tmp_path / "run", state=state, reason=reason))
    assert re.search(found, page)
    assert ("ggtune resume" in page) is (advice is not None)


def test_a_run_that_goes_on(tmp_path):
    from ggtune.run.lock import ProcessId

    run = make_run(tmp_path / "run")
    status = json.loads((run / "status.json").read_text()) | {"state": "running", **vars(ProcessId.own())}
    (run / "status.json").write_text(json.dumps(status))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 121, "lo')
    page = text_of(run)
    assert "The run is still going (step 120 of 120)" in page
    assert 'class="state running"' in page
    assert "can be read" not in page


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_run_that_has_just_begun(tmp_path, steps):
    page = text_of(make_run(tmp_path / "run", steps=steps, held_out=False))
    assert ("Nothing was recorded yet" in page) is (steps == 0)
    assert "eld-out loss" not in page.split("Settings")[0]


def test_dropped_steps_are_counted(tmp_path):
    page = text_of(make_run(tmp_path / "run", dropped={5, 6, 7}))
    assert table_row(page, "Dropped steps") == ["3"]
    assert "3 steps were dropped" in page


def test_an_old_run_folder(tmp_path):
    run = make_run(tmp_path / "run", old=True)
    config = json.loads((run / "config.json").read_text())
    del config["seed"], config["precision"]
    (run / "config.json").write_text(json.dumps({**config, "gone_setting": [1]}))
    page = text_of(run)
    assert titles(page) == ["What was found", "Main numbers", "Curves", "Data", "Settings"]
    assert table_row(page, "Most memory") is None
    assert ">--gone-setting<" in settings_in(page)[0]


JSON_FILES = ("config", "proof", "diagnosis", "general", "comparison", "worst_rows")
OTHER = '{"rows": 3, "scores": [], "labels": [1, 2], "findings": {"a": 1}, "lines": 5}\n'


@pytest.mark.parametrize("name", [*(f"{name}.json" for name in JSON_FILES), "before_after.jsonl"])
@pytest.mark.parametrize("damage", ["{", "[1]", OTHER])
def test_a_damaged_file_is_left_out_and_told(tmp_path, name, damage):
    run = add_everything(make_run(tmp_path / "run", steps=0))
    (run / name).write_text(damage + "\n[" if name.endswith("l") else damage)
    page = text_of(run)
    assert ("rows" in damage) or name in page.split("<h2>")[1]


def test_metrics_that_are_damaged_in_the_middle(tmp_path):
    run = make_run(tmp_path / "run", steps=20)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([*lines[:12], "nonsense\n", *lines[12:]]))
    assert "metrics.jsonl: of its lines only the first 12 can be read" in text_of(run)


def test_a_long_run_of_everything_at_its_largest_is_under_2_mb(tmp_path):
    run = add_everything(make_run(tmp_path / "long", steps=0), text="x " * 500_000)
    fields = ("loss", "smoothed_loss", "held_out_loss", "grad_norm")
    made = records(200_000, per_epoch=500, spike={99_999}, only=fields)
    text = page(report_of([replace(read_record(run), metrics=made)]))
    assert len(text.encode()) < MOST_BYTES
    assert "at step 99999" in text
    assert "more characters)" in text


def test_many_runs_are_under_2_mb(tmp_path):
    runs = [add_everything(make_run(tmp_path / f"r{i}", steps=300, seed=i), text="y" * 9000) for i in range(12)]
    made = report(runs, ReportOptions(tmp_path / "all.html"))[0]
    assert made.stat().st_size < MOST_BYTES


def test_runs_side_by_side(tmp_path):
    first = add_everything(make_run(tmp_path / "a" / "run", settings={"rank": 8}))
    second = add_everything(make_run(tmp_path / "b" / "run", settings={"rank": 4, "seed": 3}, seed=1))
    made = report([first, second], ReportOptions(tmp_path / "out.html", title="Ranks"))[0].read_text()
    assert "<title>Ranks</title>" in made
    assert "Settings that differ" in titles(made)
    assert table_row(made, "--rank") == ["8", "4"]
    assert table_row(made, "--seed") == ["0", "3"]
    differing = made.split('<section id="differences">')[1].split("</section>")[0]
    assert "--lr" not in differing
    assert table_row(made, "Steps") == ["120 of 120, 2.40 epochs"] * 2
    assert made.count(">After: a/run<") == made.count(">After: b/run<") == 5
    assert made.count(">Before 3<") == 1


def test_runs_of_the_same_settings(tmp_path):
    runs = [make_run(tmp_path / name) for name in "ab"]
    assert "The runs have the same settings." in report(runs, ReportOptions(tmp_path / "o.html"))[0].read_text()


def test_names_tell_runs_apart(tmp_path):
    folders = [tmp_path / name for name in ("x/run", "y/run", "y/other")]
    assert names_of(folders) == ["x/run", "y/run", "y/other"]
    assert names_of(folders[1:]) == ["run", "other"]


def test_nothing_in_a_run_becomes_markup(tmp_path):
    page = text_of(add_everything(make_run(tmp_path / "run", steps=20), text=HOSTILE))
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("</style>") == 1
    assert "{{ 7 * 7 }}" in page  # no template of ours
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", page)
    assert "⟨U+202E⟩evil" in page
    assert "script-src" not in page
    assert "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="(?!#|data:,)', page)
    assert not re.search(r"url\((?!#)|@import|@font-face", page)


def test_a_page_in_a_browser(browser, tmp_path):
    run = add_everything(make_run(tmp_path / "run", full=True, spike={40}, dropped={60}), text=HOSTILE)
    made = report([run])[0]
    for width, dark in ((1280, False), (390, False), (390, True)):
        browser.open(made)
        browser.look(width, 844, dark=dark)
        assert browser.console() == []
        assert browser.width_beyond() == 0
        assert browser.driver.title == "run"
        shown = browser.run("return [...document.querySelectorAll('figure')].map(f => f.offsetWidth)")
        assert sum(w > 0 for w in shown) == len(shown) - 1  # one of the two of the loss
        assert max(shown) <= width
    colours = []
    for dark in (False, True):
        browser.look(dark=dark)
        colours.append(
            browser.run(
                "const line = document.querySelector('svg.plot path[style*=\"--plot-1\"]');"
                "return [getComputedStyle(line).stroke, getComputedStyle(document.body).backgroundColor]"
            )
        )
    assert colours == [["rgb(11, 98, 176)", "rgb(255, 255, 255)"], ["rgb(108, 178, 255)", "rgb(20, 23, 26)"]]
    browser.look(media="print", dark=True)
    assert browser.run("return getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_markdown_and_pictures(tmp_path):
    run = add_everything(make_run(tmp_path / "run"), text=HOSTILE)
    files = report([run], ReportOptions(tmp_path / "my report.html", markdown=True))
    text = (tmp_path / "my report.md").read_text()
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert "my%20report-loss.png" in pictures
    assert sorted(name.replace("%20", " ") for name in pictures) == sorted(f.name for f in files if f.suffix == ".png")
    assert "<script" not in text
    assert "| Learned (counts in the loss) | 31 % |" in text
    rows = [line for line in text.split("\n") if line.startswith("| After")]
    assert [row.count("|") for row in rows] == [4] * 5
    assert "**Overfitted.** It learned by heart." in text


def test_pictures_alone(tmp_path):
    run = make_run(tmp_path / "run", steps=5, full=True)
    report([run], ReportOptions(png=True))
    assert sorted(path.name for path in run.glob("report*")) == [
        "report-gradient.png",
        "report-loss.png",
        "report-memory.png",
        "report-rate.png",
        "report-speed.png",
        "report.html",
    ]


def test_a_report_is_written_again_and_nothing_else_is(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    report([run], ReportOptions(markdown=True))
    report([run], ReportOptions(markdown=True))
    for name in ("report.html", "report.md", "report-loss.png"):
        mine = run / name
        before = {path: path.read_bytes() for path in run.glob("report*")}
        mine.write_text("my own notes")
        with pytest.raises(GgtuneError, match=rf"{re.escape(name)} is there, and it is no report.*--overwrite"):
            report([run], ReportOptions(markdown=True))
        assert mine.read_text() == "my own notes"
        assert all(path.read_bytes() == content for path, content in before.items() if path != mine)
        report([run], ReportOptions(markdown=True, overwrite=True))
        assert mine.read_bytes() != b"my own notes"


def ggtune(*arguments):
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


def test_the_command(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    result = ggtune(run)
    assert result.exit_code == 0, result.output
    assert result.output.split() == [str(run / "report.html")]
    assert (run / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["empty"], "empty is no run folder: it has neither status.json nor metrics.jsonl"),
        (["file"], "file is no run folder"),
        (["run", "run"], "run is given twice"),
        (["run", "--out", "x.pdf"], "x.pdf: a report is an .html file"),
        (["run", "--out", "file/x.html"], "can't write"),
        (["run", "--out", "taken.html"], "taken.html: it is a folder"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", steps=3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken.html").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    result = ggtune(*arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = make_run(tmp_path / "run", steps=3)
    result = ggtune(run)
    assert result.exit_code == 1
    assert 'needs matplotlib: pip install "ggtune[report]"' in result.output
    assert not (run / "report.html").exists()


def test_evaluations_of_several_runs_stand_beside_each_other(tmp_path):
    runs = [make_run(tmp_path / name, steps=3) for name in "ab"]
    for i, run in enumerate(runs):
        write_evaluation(run, "best", scores={"loss": {"value": 1.0 + i, "low": 0.5, "high": 3.0}})
    page = report(runs, ReportOptions(tmp_path / "o.html"))[0].read_text()
    assert table_row(page, "Loss (nats per token)") == ["1.0000 [0.5000, 3.0000]", "2.0000 [0.5000, 3.0000]"]
    assert "b: best" in page


def test_a_damaged_evaluation_is_told(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    write_evaluation(run, "best")
    (run / "evaluation/best/evaluation.json").write_text("{")
    assert "evaluation/best: can&#39;t read" in text_of(run)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb\rc", "a\nb⟨U+000D⟩c"),
        ("\u202eabc\u2066", "⟨U+202E⟩abc⟨U+2066⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("e\u0301" + "\u0301" * 9, "e" + "\u0301" * 4),
        ("abcdefgh", "abcde … (3 more characters)"),
    ],
)
def test_texts_are_made_fit_to_be_shown(text, shown):
    assert shown_text(text, 20 if text != "abcdefgh" else 5) == shown


def test_what_a_record_says_of_a_plain_folder(tmp_path):
    record = read_record(make_run(tmp_path / "run", steps=3))
    assert record.name == "run"
    assert record.problems == []
    assert report_of([record]).sections[0].title == "What was found"


def test_what_a_sweep_would_cost_is_said(tmp_path):
    run = make_run(tmp_path / "run", full=True)
    advice = text_of(run).split("What to try next</h2>")[1].split("</section>")[0]
    assert re.search(r"[Aa] sweep .* would take about .*ggtune sweep", advice)
    made = report([run, make_run(tmp_path / "other")], ReportOptions(tmp_path / "two.html"))[0].read_text()
    assert "ggtune sweep" not in made
    assert "ggtune sweep" not in text_of(make_run(tmp_path / "failed", full=True, state="failed", reason="diverged"))


def test_questions_that_are_not_answered_yet(tmp_path):
    run = make_run(tmp_path / "run", steps=0)
    write_lines(run / "before_after.jsonl", [{"question": "q", "reference": "r", "before": "b", "row": 1}])
    made = text_of(run)
    assert ">Before<" in made
    assert ">After<" not in made


def test_what_going_on_would_bring(tmp_path):
    options = {"steps": 120, "per_epoch": 20}
    ended = text_of(make_run(tmp_path / "ended", **options))
    worth = re.search(r"Another epoch is worth about (\d\.\d{3}) of held-out loss", ended)
    assert 0 <= float(worth[1]) < 0.3
    assert "fitted to held-out, with its range" in ended
    assert "You can stop now" not in ended  # it has
    failed = text_of(make_run(tmp_path / "failed", state="failed", reason="diverged", **options))
    assert "nother epoch" not in failed
    few = text_of(make_run(tmp_path / "few", steps=40, per_epoch=20))
    assert "nother epoch" not in few


def test_lines_that_are_not_whole_yet(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    write_lines(run / "samples.jsonl", [{"step": 0, "question": "q", "answer": "a"}])
    with (run / "samples.jsonl").open("a") as file:
        file.write('{"step": 5, "ques')
    assert read_record(run).problems == []
    assert "Answers while training" in text_of(run)
