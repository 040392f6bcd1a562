from pathlib import Path

import pytest

from ggtune.data.readers.decoding import read_text
from ggtune.data.records import Record, read_csv, write_csv
from ggtune.errors import DataError
from ggtune.files import WriteError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    return tmp_path / "train.csv"


def test_cells_are_text_as_they_stand(csv_file: Path) -> None:
    write(csv_file, '\ufeffQUESTION ,Answer\r\n"What is ""NA""?",NA\r\n"two\r\nlines", None \r\n007,1e3\r\n')
    table = read_csv(csv_file)
    assert table.records == (
        Record('What is "NA"?', "NA", None, 2),
        Record("two\nlines", "None", None, 3),
        Record("007", "1e3", None, 4),
    )
    assert table.empty_rows == ()


def test_blank_rows_are_ignored_and_empty_cells_are_listed(csv_file: Path) -> None:
    write(csv_file, "question,answer\n\na,b\nc,\n,d\n  ,  \ne\nf,g\n")
    table = read_csv(csv_file)
    assert [record.row for record in table.records] == [3, 8]
    assert table.empty_rows == (4, 5, 7)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters(csv_file: Path, delimiter: str) -> None:
    write(csv_file, delimiter.join(["prompt", "completion"]) + "\n" + delimiter.join(["a", '"b, c; d"']) + "\n")
    assert read_csv(csv_file).records == (Record("a", "b, c; d", None, 2),)


def test_columns_by_name_and_unused_ones(csv_file: Path) -> None:
    write(csv_file, "id,Output,note,Instruction,system\n1,yes,x,Is it?,Be brief.\n2,no,x,Is it not?,\n")
    table = read_csv(csv_file)
    assert table.records == (Record("Is it?", "yes", "Be brief.", 2), Record("Is it not?", "no", None, 3))
    assert table.unused_columns == ("id", "note")
    assert read_csv(csv_file, question_column="NOTE", answer_column="id").records[0] == Record("x", "1", "Be brief.", 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        ("question\nWhy?\n", "only one column ('question')"),
        ("question,answer\n", "only a header"),
        ("question,answer\na,\n,b\n", "empty in all 2"),
        ("first,second\na,b\n", "no question column found among 'first', 'second'"),
        ("question,second\na,b\n", "no answer column found"),
        ("question,answer,Answer\na,b,c\n", "two columns are called 'answer'"),
        ("question,answer\na,b\na,b,c\n", "row 3: has 3 cells, the header has 2"),
        ('question,answer\na,b\n"a,b\n', "row 3: a double quote is never closed"),
        ("question,answer\na,b\n\0\n", "line 3 holds a zero byte"),
        (
            'question,answer\n"he said "hi" to me",b\nc,d\n"x"y,z\n',
            "2 rows can't be used:\n  row 2: a double quote inside",
        ),
        (b"question,answer\ncaf\xe9,b\nna\xc3\xafve,c\n", "line 2 is not UTF-8, though 1 other lines are"),
        (b"question,answer\n\x01\x8d,b\n", "line 2 is not UTF-8 (byte 0x8d), nor is the file text in another"),
    ],
)
def test_bad_tables_name_file_and_place(csv_file: Path, content: str | bytes, message: str) -> None:
    write(csv_file, content)
    with pytest.raises(DataError) as caught:
        read_csv(csv_file)
    assert str(csv_file) in str(caught.value)
    assert message in str(caught.value)


def test_bad_column_options(csv_file: Path) -> None:
    write(csv_file, "question,answer\na,b\n")
    with pytest.raises(DataError, match=r"no column 'q' for the question; the columns are 'question', 'answer'"):
        read_csv(csv_file, question_column="q")
    with pytest.raises(DataError, match="can't be both"):
        read_csv(csv_file, question_column="answer")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        read_text(tmp_path / "none.csv")
    with pytest.raises(DataError, match="can't be read"):
        read_text(tmp_path)


@pytest.mark.parametrize("system", [None, "Answer, in a\nword."])
def test_write_and_read_back(csv_file: Path, system: str | None) -> None:
    records = (Record('a "b", c', "d\ne", system, 2), Record("NA", "ü", None, 3))
    write_csv(csv_file, records)
    assert read_csv(csv_file).records == records
    assert list(csv_file.parent.iterdir()) == [csv_file]


@pytest.mark.parametrize("name", ["file/x.csv", "folder"])
def test_unwritable_places(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match=f"can't write .*{name.split('/')[0]}"):
        write_csv(tmp_path / name, [Record("a", "b", None, 2)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    "content",
    [
        'Frage ist "€ äöü"'.join(['question;answer\n"', '";b\n']).replace('"€ äöü"', '""€ äöü""').encode("utf-16"),
        'sep=;\r\nquestion;answer\r\n"Frage ist ""€ äöü""";b\r\n'.encode("utf-8-sig"),
        'question, answer\n"Frage ist ""€ äöü""", b\n'.encode("cp1252"),
        '"question","answer"\r\n"Frage ist ""€ äöü""", "b"\r\n'.encode(),
        'question\tanswer\nFrage ist "€ äöü"\tb\n'.encode("utf-16-le"),
        'question;answer\r"Frage ist ""€ äöü""";b\r'.encode(),
    ],
)
def test_what_spreadsheets_export(csv_file: Path, content: bytes) -> None:
    """UTF-16 with and without a mark, Excel's separator line, Windows' code page, blanks behind commas."""
    csv_file.write_bytes(content)
    assert read_csv(csv_file).records == (Record('Frage ist "€ äöü"', "b", None, 2),)


def test_an_input_is_part_of_the_instruction(csv_file: Path) -> None:
    write(csv_file, "instruction,input,output\nTranslate to French:,Hello,Bonjour\nTell a joke.,,No.\n")
    questions = [record.question for record in read_csv(csv_file).records]
    assert questions == ["Translate to French:\n\nHello", "Tell a joke."]
    write(csv_file, "question,context,answer\nWhich is red?,Copper is red.,Copper\n")
    assert read_csv(csv_file).records[0].question == "Copper is red.\n\nWhich is red?"


def test_bad_rows_can_be_skipped(csv_file: Path) -> None:
    write(csv_file, 'question,answer\na,b\n"he said "hi" to me",c\nd,e,f\ng,h\n')
    assert [record.row for record in read_csv(csv_file, skip_bad=True).records] == [2, 5]
