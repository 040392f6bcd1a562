"""What data files hold that is not as it should be, and how several files are told apart."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ggtune import _core
from ggtune.cli import cli
from ggtune.data.conversation import Conversation
from ggtune.data.dataset import Dataset
from ggtune.data.doubts import Inspector, NearDuplicates
from ggtune.data.load import load_parts, load_samples
from ggtune.data.options import LoadOptions
from ggtune.data.readers import text_files
from ggtune.data.readers.code_pages import find_code_page
from ggtune.data.readers.csv_lines import open_quote
from ggtune.data.readers.reader import ReadOptions
from ggtune.data.readers.sft_samples import samples_of, split_samples
from ggtune.data.records import read_csv
from ggtune.data.sources import open_source
from ggtune.data.split import hold_out
from ggtune.demo import MODEL
from ggtune.errors import DataError
from ggtune.setting_texts import DataPart, Holdout


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def found(path: Path, **options: Any) -> tuple[list[tuple[int, list[str]]], list[tuple[int, str]], list[str]]:
    """Rows with their texts, bad rows, notes."""
    source = open_source(path, ReadOptions(**options))
    items = [
        (item.row, [turn.text for turn in item.turns] if isinstance(item, Conversation) else [item.text])
        for item in source.items
    ]
    return items, source.findings.bad, source.findings.notes


def run(command: str, *arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(cli, [command, "--model", str(MODEL), *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.output


# --- Quotes


@pytest.mark.parametrize(
    ("table", "bad", "rows"),
    [
        # never closed: the rest of the table is read all the same
        ('a,"b\nc,d\ne,f\n', [(2, r"a double quote is never closed: it opens in line 2$")], [(3, "c"), (4, "e")]),
        # closed by the next quote of the table, in which the next row would have been lost
        (
            'a,"b\n"c",d\ne,f\n',
            [(2, "the double quote that opens in line 2 is not closed there")],
            [(3, "c"), (4, "e")],
        ),
        ('a,b\n"x\ny",z\n"c,d\ne,f\n', [(4, "never closed: it opens in line 5$")], [(2, "a"), (3, "x\ny"), (5, "e")]),
        # the quote opens in a later line than the row
        ('"a\nb","c\ne,f\ng,h\n', [(2, "never closed: it opens in line 3$")], [(3, "e"), (4, "g")]),
        # a rest of the broken cell is not taken for a row
        ('a,"b\nmore\nc,d\n', [(2, "never closed"), (3, "is no whole row, and stands behind .* line 2")], [(4, "c")]),
        # a quote that is not written twice, in one line: nothing is read again
        ('"he said "hi" to me",b\nc,d\n', [(2, "inside a quoted cell is not written twice")], [(3, "c")]),
    ],
)
def test_an_open_quote_takes_its_own_row_alone(
    tmp_path: Path, table: str, bad: list[tuple[int, str]], rows: list[tuple[int, str]]
) -> None:
    path = write(tmp_path / "a.csv", "question,answer\n" + table)
    items, wrong, _ = found(path)
    assert [(row, texts[0]) for row, texts in items] == rows
    assert [row for row, _ in wrong] == [row for row, _ in bad]
    for (_, reason), (_, expected) in zip(wrong, bad, strict=True):
        assert re.search(expected, reason), reason
    assert [record.row for record in read_csv(path, skip_bad=True).records] == [row for row, _ in rows]


def test_an_open_quote_in_front_of_very_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read to the end of the file."""
    monkeypatch.setattr("ggtune.data.readers.csv_table._LARGEST_CELL", 500)
    table = 'question,answer\na,"b\n' + "".join(f"q{i},a\n" for i in range(1000))
    items, bad, _ = found(write(tmp_path / "a.csv", table))
    assert [row for row, _ in items] == list(range(3, 1003))
    assert bad == [
        (2, "a cell has more than 500 characters: is the double quote that opens in line 2 never closed?"),
    ]


def test_where_a_quote_opens() -> None:
    assert open_quote(['a;"b";"c\n', "d\n"], ";") == 0
    assert open_quote(['"a\n', 'b";  "c""\n', '"" d\n'], ";") == 1
    assert open_quote(['a"b;"x\n', "y\n", 'z"q\n'], ";") == 0


# --- Numbers of rows, headers, marks


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("\n\n\nquestion,answer\na,b\n", [5]),
        (",\n , \nquestion,answer\n\na,b\n", [5]),
        ("sep=;\n\nquestion;answer\na;b\n", [3]),
    ],
)
def test_rows_are_counted_as_a_spreadsheet_counts_them(tmp_path: Path, table: str, rows: list[int]) -> None:
    assert [row for row, _ in found(write(tmp_path / "a.csv", table))[0]] == rows


def test_tables_that_were_put_together(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "\ufeffquestion,answer\na,b\n\ufeff\n\ufeffQuestion, Answer\nc,d\n\ufeffe,f\n")
    items, bad, notes = found(path)
    assert items == [(2, ["a", "b"]), (5, ["c", "d"]), (6, ["e", "f"])]
    assert not bad
    assert notes == ["row 4 is the header once more (files put together?): left out"]
    write(path, "question,answer,id\na,b,1\nanswer,question,id\nd,c,2\n")
    with pytest.raises(DataError, match=r"row 3 is another header \(answer, question, id\): tables with different"):
        found(path)


def test_marks_within_json_lines_and_texts(tmp_path: Path) -> None:
    row = json.dumps({"question": "a", "answer": "b"})
    items, bad, _ = found(write(tmp_path / "a.jsonl", f"\ufeff{row}\n\ufeff{row}\n"))
    assert ([row for row, _ in items], bad) == ([1, 2], [])
    assert found(write(tmp_path / "a.txt", "\ufeffOne.\n\ufeffTwo.\n"))[0] == [(1, ["One.\nTwo.\n"])]


def test_ids_and_numbers_of_columns_with_gaps(tmp_path: Path) -> None:
    """A column of whole numbers with a gap is one of floats in pandas: 1 becomes 1.0."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = {
        "message_id": [1, 2, 3, 4],
        "parent_id": [None, 1.0, float("nan"), 3.0],
        "role": ["prompter", "assistant"] * 2,
        "text": ["a", "b", "c", "d"],
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "tree.parquet")
    expected = [(2, ["a", "b"]), (4, ["c", "d"])]
    assert found(tmp_path / "tree.parquet")[0] == expected
    tree = "message_id,parent_id,role,text\n1,,prompter,a\n2,1.0,assistant,b\n3,,prompter,c\n4,3.0,assistant,d\n"
    assert [texts for _, texts in found(write(tmp_path / "tree.csv", tree))[0]] == [["a", "b"], ["c", "d"]]

    rows = {
        "question": ["a", "b", "c", "e"],
        "answer": [42.0, None, 7.0, float("nan")],
        "weight": [1.0, None, 0.5, None],
        "price": [float("inf"), 1.5, None, 2.0],
    }
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    arrow, schema = str(tmp_path / "a.arrow"), pyarrow.table(rows).schema
    with pyarrow.OSFile(arrow, "wb") as file, pyarrow.ipc.new_file(file, schema) as writer:
        writer.write_table(pyarrow.table(rows))
    for name in ("a.parquet", "a.arrow"):
        assert found(tmp_path / name)[0] == [(1, ["a", "42"]), (3, ["c", "7"])]
    parquet.write_table(pyarrow.table({"question": ["a"], "answer": [42.0]}), tmp_path / "b.parquet")
    assert found(tmp_path / "b.parquet")[0] == [(1, ["a", "42.0"])]  # without a gap it was one of floats


def test_parquet_columns_of_other_kinds(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    decimal = pyarrow.array(["1.50"]).cast(pyarrow.decimal128(5, 2))
    parquet.write_table(pyarrow.table({"question": [b"a"], "answer": decimal}), tmp_path / "a.parquet")
    assert found(tmp_path / "a.parquet")[0] == [(1, ["a", "1.50"])]
    parquet.write_table(pyarrow.table({"question": [b"\xff"], "answer": ["b"]}), tmp_path / "a.parquet")
    assert found(tmp_path / "a.parquet")[1] == [(1, "'question' holds bytes that are no UTF-8 text")]


@pytest.mark.parametrize("text", ["=SUM(A1:A3)", "=A2&$B$3", '=IF(A1>2,"yes","no")', "#NAME?", "#NUM!", "Err:502"])
@pytest.mark.parametrize("place", ["question", "answer", "system", "text"])
def test_formulas_in_any_cell(tmp_path: Path, demo_model: _core.Model, text: str, place: str) -> None:
    row = {"text": text} if place == "text" else {"question": "Why?", "answer": "It is so.", place: text}
    path = write(tmp_path / "a.jsonl", json.dumps(row))
    data = load_samples(path, demo_model, context=128, template="chatml")
    assert "formula" in {doubt.kind for doubt in data.report.doubts}


@pytest.mark.parametrize("text", ["=SUM(A1:A3) gives what?", "= 3", "What is #NAME?", "=> go on", "E=mc2"])
def test_texts_that_are_no_formulas(text: str) -> None:
    inspector = Inspector()
    assert not inspector._no_value(1, text)


# --- Encodings

TEXTS = {
    "cp1251": "Почему небо голубое?,Воздух рассеивает синий свет сильнее.\nКто там?,Это я.\n",
    "koi8_r": "Почему небо голубое?,Воздух рассеивает синий свет сильнее.\nКто там?,Это я.\n",
    "cp1253": "Γιατί ο ουρανός είναι μπλε;,Ο αέρας διασκορπίζει το μπλε φως.\n",
    "cp1252": "Warum ist der Himmel blau?,Die Luft streut blaues Licht am stärksten – für größere Wellen nicht.\n",
    "cp1250": "Dlaczego niebo jest niebieskie?,Zażółć gęślą jaźń, proszę. Światło niebieskie rozprasza się.\n",
    "cp1254": "Gökyüzü neden mavidir?,Hava mavi ışığı en çok saçar. İstanbul'da yağmur yağıyor.\n",
    "cp1255": "למה השמיים כחולים?,האוויר מפזר את האור הכחול יותר מכל.\n",
    "cp1256": "لماذا السماء زرقاء؟,الهواء يشتت الضوء الأزرق أكثر من غيره.\n",
}


@pytest.mark.parametrize("encoding", TEXTS)
@pytest.mark.parametrize("suffix", ["csv", "txt"])
def test_code_pages_are_found_and_said(tmp_path: Path, encoding: str, suffix: str) -> None:
    text = TEXTS[encoding].replace("Zażółć gęślą jaźń, ", "Zażółć gęślą jaźń: ")
    path = write(tmp_path / f"a.{suffix}", f"question,answer\n{text}".encode(encoding))
    items, bad, notes = found(path, **({} if suffix == "csv" else {"sample_start": "", "format": "text"}))
    assert not bad
    assert "".join(items[0][1]).replace(",", "") in f"question,answer\n{text}".replace(",", "")
    title = dict(find_code_page(text.encode(encoding)))[encoding]
    assert notes[0].startswith(f"not UTF-8: read as {title} (special characters first in line 2)")
    assert "--encoding" in notes[0]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Where is the café?,It’s there – “near” the naïve fool…\n", "cp1252"),
        ("Miért kék az ég?,A levegő a kék fényt szórja a legerősebben. Tűzről pattant, őrült nő.\n", "cp1250"),
    ],
)
def test_of_two_latin_pages_the_one_with_the_letters_of_its_languages(text: str, encoding: str) -> None:
    assert next(find_code_page(text.encode(encoding)))[0] == encoding


def test_the_encoding_that_is_given(tmp_path: Path) -> None:
    text = "question,answer\nПочему?,Потому что.\n"
    path = write(tmp_path / "a.csv", text.encode("cp866"))
    assert found(path, encoding="cp866") == ([(2, ["Почему?", "Потому что."])], [], [])
    write(path, ("question,answer\n" + "a,b\n" * 3 + "空はなぜ,青い\n").encode("shift_jis"))
    assert found(path, encoding="shift_jis")[0][3] == (5, ["空はなぜ", "青い"])
    with pytest.raises(DataError, match=r"line 5 is not UTF-8 .* name its --encoding"):
        found(path)  # a page with several bytes for a character is not guessed at
    with pytest.raises(DataError, match=r"line 5 is not utf-8 text \(byte 0x8b: invalid start byte\)"):
        found(path, encoding="utf-8")
    with pytest.raises(DataError, match="no text encoding 'hex'"):
        found(path, encoding="hex")
    for name, content in (("a.jsonl", '{"question": "ж", "answer": "я"}'), ("a.txt", "<SFT>ж"), ("b.txt", "ж")):
        assert "ж" in str(found(write(tmp_path / name, content.encode("cp1251")), encoding="cp1251")[0])
    write(path, "question,answer\nПочему?,Потому что.\n".encode("cp866"))
    for source, out in ((path, tmp_path / "out.txt"), (tmp_path / "dos.txt", tmp_path / "out.csv")):
        result = CliRunner().invoke(cli, ["convert", str(source), "-o", str(out), "--encoding", "cp866"])
        assert result.exit_code == 0, result.output
        assert "Потому что." in out.read_text(encoding="utf-8")
        write(tmp_path / "dos.txt", (tmp_path / "out.txt").read_text(encoding="utf-8").encode("cp866"))
    output = run("preview", "--data", path, "--encoding", "hex", status=1)
    assert "--encoding names no text encoding (it is 'hex')" in output


# --- JSON by its content

ROWS = [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]
JSON: dict[str, tuple[str, bool]] = {  # the text, and whether its lines are the rows
    "lines": ("\n".join(map(json.dumps, ROWS)), True),
    "a list on one line": (json.dumps(ROWS), False),
    "a list": (json.dumps(ROWS, indent=1), False),
    "objects of several lines": ("\n".join(json.dumps(row, indent=2) for row in ROWS), False),
    "objects with commas between": (",\n".join(json.dumps(row, indent=2) for row in ROWS), False),
    "a list under a name": (json.dumps({"data": ROWS}, indent=1), False),
    "two lists": (json.dumps(ROWS[:1]) + "\n" + json.dumps(ROWS[1:]), False),
}


@pytest.mark.parametrize("form", JSON)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "noname"])
def test_json_is_read_by_its_content(tmp_path: Path, form: str, name: str) -> None:
    text, by_line = JSON[form]
    if name == "a.jsonl" and form == "two lists":
        pytest.skip("lines that hold lists are bad rows of JSON lines")
    path = write(tmp_path / name, text)
    source = open_source(path, ReadOptions(format="json" if name == "noname" and form.startswith("two") else ""))
    assert [item.turns[0].text for item in source.items] == ["a", "c"]  # type: ignore[union-attr]
    assert source.findings.unit == ("line" if by_line else "row")
    assert not source.findings.bad
    assert bool(source.findings.notes) is (not by_line and source.kind == "jsonl")


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ('{"question": "a",\n' + "\n".join(map(json.dumps, ROWS)), [1]),  # the first line is damaged
        ("\n".join([json.dumps(ROWS[0]), "[1, 2]", json.dumps(ROWS[1])]), [2]),
        ("[1, 2]\n" + "\n".join(map(json.dumps, ROWS)), [1]),
        ('{"question": "a"', [1]),
    ],
)
def test_a_damaged_line_makes_no_other_format(tmp_path: Path, text: str, bad: list[int]) -> None:
    path = write(tmp_path / "a.jsonl", text)
    assert [row for row, _ in found(path)[1]] == bad


def test_an_error_in_a_list_names_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '[\n {"question": "a", "answer": "b"},\n {"question": c}\n]')
    with pytest.raises(DataError, match=r"is no JSON: Expecting value: line 3 column 15"):
        found(path)


# --- Texts larger than memory


def tokens_of(data: Dataset) -> list[tuple[list[int], int]]:
    return [(sample.tokens.tolist(), sample.row) for sample in data.samples]


@pytest.mark.parametrize("size", [150, 1000])
@pytest.mark.parametrize("overlapping", [False, True])
def test_a_text_in_pieces_gives_the_same_windows(
    tmp_path: Path, demo_model: _core.Model, monkeypatch: pytest.MonkeyPatch, size: int, overlapping: bool
) -> None:
    rng = np.random.default_rng(0)
    words = ["iron", "rusts", "Don't", "go.", "It's", "naïve,", "3.14", "(so)", "  two", "tab\t", "</s>", "\r\n\r\n"]
    text = "".join(f"{words[i]}{' ' if i % 5 else chr(10)}" for i in rng.integers(0, len(words), 3000))
    path = write(tmp_path / "a.txt", text)
    options: dict[str, Any] = {"context": 32, "overlapping_samples": overlapping}
    whole = load_samples(path, demo_model, **options)
    monkeypatch.setattr(text_files, "_PIECE", size)
    texts = [item.text for item in open_source(path, ReadOptions()).items]  # type: ignore[union-attr]
    assert len(texts) > 5
    assert max(map(len, texts)) <= size
    assert "".join(texts) == text.replace("\r\n", "\n")
    pieces = load_samples(path, demo_model, **options)
    assert tokens_of(pieces) == tokens_of(whole)
    assert pieces.report.notes == whole.report.notes


def test_samples_behind_markers_in_pieces() -> None:
    text = "before\n<SFT>one\ntwo\n<SFT>\n<SFT>three<SFT>four\n"
    expected = split_samples("x", text)
    assert [(sample.text, sample.line) for sample in expected] == [("one\ntwo", 2), ("three", 5), ("four", 5)]
    for size in range(1, 9):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert list(samples_of("x", pieces, "<SFT>")) == expected


@pytest.mark.parametrize("overlapping", [False, True])
def test_windows_of_one_text_are_held_out_but_those_that_overlap(
    tmp_path: Path, demo_model: _core.Model, overlapping: bool
) -> None:
    path = write(tmp_path / "a.txt", "".join(f"Line {i} of the text.\n" for i in range(400)))
    data = load_samples(path, demo_model, context=32, overlapping_samples=overlapping)
    held_out = hold_out(len(data.samples), Holdout.parse("10%"), 0, data.groups)[1]
    assert len(held_out) == (0 if overlapping else round(0.1 * len(data.samples)))


# --- Several files


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two files of a name in two folders, and another; each with something wrong."""
    (tmp_path / "x").mkdir()
    long = "very " * 80
    write(tmp_path / "a.jsonl", '{"question": "Why is it?", "answer": "It is so."}\n{\n')
    table = f'question,answer\nWhy is it?,It is so.\nWho is it?,\nWhat is it?,A thing.\nWhere is it?,{long}\n"a\n'
    write(tmp_path / "x" / "a.jsonl", '{"question": "Who was it?", "answer": "It was me."}\n')
    write(tmp_path / "b.csv", table)
    return tmp_path


def load(folder: Path, model: _core.Model, *names: str, **options: Any) -> Dataset:
    parts = [DataPart.parse(f"{folder}/{name}") for name in names]
    read = ReadOptions(skip_bad=True)
    return load_parts(parts, model, LoadOptions(**{"context": 64, "template": "chatml", "read": read, **options}))


def test_rows_of_several_files_carry_their_names(files: Path, demo_model: _core.Model) -> None:
    report = load(files, demo_model, "a.jsonl", "b.csv*2").report
    assert "skipped, question or answer empty: b.csv rows 3" in report.lines()
    assert "skipped, can't be used: a.jsonl lines 2; b.csv rows 6" in report.lines()
    assert "cut to the context: b.csv rows 5" in report.lines()
    duplicates = [doubt for doubt in report.doubts if doubt.kind == "duplicate"]
    assert [(report.where(doubt.row), doubt.text) for doubt in duplicates] == [("b.csv row 2", "of a.jsonl line 1")]
    dropped = load(files, demo_model, "a.jsonl", "b.csv", drop=("duplicate",)).report
    assert "left out by --drop, duplicate: b.csv rows 2" in dropped.lines()
    named = load(files, demo_model, "a.jsonl", "x/a.jsonl").report
    assert named.where(3) == f"{files}/x/a.jsonl line 1"
    alone = load(files, demo_model, "b.csv").report
    assert alone.where(2) == "row 2"
    assert "skipped, question or answer empty: rows 3" in alone.lines()


def test_check_data_and_preview_name_files(files: Path) -> None:
    options = ("--data", files / "a.jsonl", "--more-data", files / "b.csv", "--template", "chatml", "--skip-bad")
    output = run("check-data", *options)
    assert "    b.csv row 2: of a.jsonl line 1" in output
    assert "skipped, a.jsonl line 2: is no JSON" in output
    assert "skipped, b.csv row 6: a double quote is never closed: it opens in line 6" in output
    held_out = run("check-data", "--data", files / "x/a.jsonl", "--skip-bad", "--holdout", files / "b.csv")
    assert "held out: skipped, b.csv row 6: a double quote" in held_out

    def titles(rows: str) -> list[str]:
        return re.findall(r"^(.*): \d+ tokens", run("preview", *options, "--rows", rows), re.MULTILINE)

    assert titles("b.csv:4,a.jsonl:1") == ["b.csv row 4", "a.jsonl line 1"]
    assert titles("1") == ["a.jsonl line 1"]
    assert titles("4") == ["b.csv row 4"]
    for rows, message in (
        ("c.csv:1", "no data file 'c.csv'; there are a.jsonl, b.csv"),
        ("4,a.jsonl:4,9", "there is no sample of row a.jsonl:4, 9"),
    ):
        assert message in run("preview", *options, "--rows", rows, status=1)


def test_more_weights_than_a_store_holds_name_the_row(tmp_path: Path, demo_model: _core.Model) -> None:
    rows = [{"question": f"Is it {i}?", "answer": f"It is {i}.", "weight": 0.5 + i / 1000} for i in range(300)]
    for name, part in (("a.jsonl", rows[:150]), ("b.jsonl", rows[150:])):
        write(tmp_path / name, "".join(json.dumps(row) + "\n" for row in part))
    with pytest.raises(DataError, match=r"b\.jsonl: line 105: its weight 0\.754 is one too many: there may be 256"):
        load(tmp_path, demo_model, "a.jsonl", "b.jsonl")


CHATML = "<SFT><|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
LLAMA2 = "<SFT>[INST] Why? [/INST] So. </s>\n"


@pytest.mark.parametrize("order", [("a.jsonl", "cm.txt"), ("cm.txt", "a.jsonl"), ("cm.txt", "l2.txt")])
def test_files_of_different_templates_are_refused(
    tmp_path: Path, demo_model: _core.Model, order: tuple[str, str]
) -> None:
    """The adapter would name one of them, and a model is asked by one."""
    write(tmp_path / "a.jsonl", json.dumps(ROWS[0]))
    write(tmp_path / "cm.txt", CHATML)
    write(tmp_path / "l2.txt", LLAMA2)
    with pytest.raises(
        DataError, match=rf"{order[1]} is in the template '.*', and .*{order[0]} in '.*': a model is asked"
    ):
        load(tmp_path, demo_model, *order, template=None)
    chatml = load(tmp_path, demo_model, "cm.txt", "a.jsonl")
    assert chatml.report.template == "chatml"
    own = load(tmp_path, demo_model, "a.jsonl", "l2.txt", template=None)
    assert (own.report.template, len(own.samples)) == ("model", 2)


def test_a_text_without_tags_takes_no_template_away(tmp_path: Path, demo_model: _core.Model) -> None:
    write(tmp_path / "a.jsonl", json.dumps(ROWS[0]))
    write(tmp_path / "b.txt", "<SFT>Iron rusts.")
    write(tmp_path / "c.txt", "Gold does not.")
    data = load(tmp_path, demo_model, "a.jsonl", "b.txt", "c.txt", template=None, loss_on="all")
    assert data.report.template == "model"
    assert data.report.lines()[0].endswith("3 rows, template 'model'")


# --- Near duplicates


def test_near_duplicates_take_a_few_hundred_bytes() -> None:
    """The hashes of a text's bands, not its sketch and its place in nine dictionaries."""
    pytest.importorskip("datasketch")
    import tracemalloc

    near = NearDuplicates()
    texts = [" ".join(map(str, np.random.default_rng(i).integers(0, 9999, 12))) for i in range(3000)]
    tracemalloc.start()
    try:
        assert [near.add(row, text) for row, text in enumerate(texts, start=1)] == [None] * 3000
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert grown < 500 * len(texts)
    assert near.add(9000, texts[7] + " ") == 8
    assert near.add(9001, texts[7]) == 8


@pytest.mark.parametrize("change", [str.upper, lambda text: text])
def test_near_duplicates_are_those_of_datasketch(change: Callable[[str], str]) -> None:
    datasketch = pytest.importorskip("datasketch")
    index, near = datasketch.MinHashLSH(threshold=0.8, num_perm=128), NearDuplicates()
    rng = np.random.default_rng(0)
    base = [rng.integers(0, 999, 40).tolist() for _ in range(20)]
    n_found = 0
    for row in range(1, 300):
        words = list(base[row % 20])
        for place in rng.integers(0, 40, row % 4):
            words[place] = int(rng.integers(0, 999))
        text = change(" ".join(f"w{word}" for word in words))
        sketch = datasketch.MinHash(num_perm=128)
        casefolded = text.casefold().split()
        sketch.update_batch({" ".join(casefolded[i : i + 3]).encode() for i in range(38)})
        expected = min(index.query(sketch), default=None)
        index.insert(row, sketch)
        assert near.add(row, text) == expected
        n_found += expected is not None
    assert 100 < n_found < 290


# --- Splits


def test_a_split_takes_little_memory_and_is_that_of_the_groups() -> None:
    import tracemalloc

    n = 200_000
    groups = np.random.default_rng(0).integers(-(2**62), 2**62, n // 2)[np.arange(n) % (n // 2)]
    tracemalloc.start()
    try:
        training, held_out = hold_out(n, Holdout.parse("5%"), 7, groups)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * n
    assert len(held_out) == n // 20
    assert not set(groups[training].tolist()) & set(groups[held_out].tolist())
    chosen = np.random.default_rng(7).permutation(n // 2)[: n // 40]  # of the groups as they come first
    assert held_out.tolist() == sorted([*chosen.tolist(), *(chosen + n // 2).tolist()])
