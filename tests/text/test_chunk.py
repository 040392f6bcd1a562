import json
import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from book_samples import PARAGRAPHS, clean_body
from click.testing import Result

from ggtune._core import Model
from ggtune.errors import DataError, GgtuneError
from ggtune.text import chunk as chunk_module
from ggtune.text.chunk import Chunker, read_pieces, token_chunker
from ggtune.text.guide import guided, unguided
from ggtune.text.sources import Source

Ggtune = Callable[..., Result]

MODEL = Path(__file__).parents[1] / "golden" / "llama.gguf"
SENTENCES = [sentence for text in PARAGRAPHS for sentence in re.findall(r"[^.]+\.", text)]


def long_text(n: int, seed: int = 0) -> str:
    """Chapters of paragraphs of our sentences."""
    rng = random.Random(seed)
    blocks = []
    for i in range(n):
        if i % 7 == 0:
            blocks.append(f"\nCHAPTER {i // 7 + 1}\n")
        blocks.append(" ".join(s.strip() for s in rng.choices(SENTENCES, k=rng.randint(1, 9))))
    return "\n\n".join(blocks).strip() + "\n"


def check(text: str, chunks: list[chunk_module.Chunk], most: int) -> None:
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    for chunk in chunks:
        assert text[chunk.offset : chunk.offset + len(chunk.text)] == chunk.text
        assert chunk.text == chunk.text.strip() != ""
        assert chunk.size <= most


def test_chunks_are_the_text_in_order() -> None:
    text = long_text(60)
    chunks = list(Chunker(2000).chunks(iter([text]), "a"))
    check(text, chunks, 2000)
    assert "".join("".join(chunk.text for chunk in chunks).split()) == "".join(text.split())
    assert all(chunk.size == len(chunk.text) for chunk in chunks)
    assert sum(chunk.size for chunk in chunks) > 0.6 * 2000 * len(chunks)


def test_sentences_and_headings_stay_whole() -> None:
    for most in (400, 900, 2000):
        chunks = list(Chunker(most).chunks(iter([long_text(200)]), "a"))
        assert all(chunk.text.endswith(".") for chunk in chunks), most
        assert all(re.match(r"CHAPTER \d+\n|[A-Z]", chunk.text) for chunk in chunks)
        assert not any(re.search(r"CHAPTER \d+$", chunk.text) for chunk in chunks)


def test_a_title_is_no_chunk_of_its_own() -> None:
    chunks = list(Chunker(300).chunks(iter([clean_body()]), "a"))
    assert chunks[0].text.startswith("CHAPTER I.\nThe Broken Pump\n\n\nThe old pump")
    assert any("CHAPTER II.\nThe Borrowed Wrench\n\n\nShe took" in chunk.text for chunk in chunks)


def test_what_ends_in_a_colon_stays_with_what_follows() -> None:
    text = "\n\n".join([PARAGRAPHS[0], "So she wrote it down:", PARAGRAPHS[1], PARAGRAPHS[2]])
    chunks = list(Chunker(len(PARAGRAPHS[0]) + 40).chunks(iter([text]), "a"))
    assert chunks[0].text == PARAGRAPHS[0]
    assert chunks[1].text.startswith("So she wrote it down:\n\nEvery morning")


def test_guiding_a_text_can_be_undone() -> None:
    text = long_text(30) + clean_body() + "So:\n\n\na\n\nDr. B.\n \nMr. C:\nd. \n"
    assert len(guided(text)) == len(text)
    assert unguided(guided(text)) == text
    assert guided(text) != text


@pytest.mark.parametrize("short", ["Dr. Brook", "Mrs. Brook", "A. N. Brook", "St. Brook", "Fig. 3", "e.g. Brook"])
def test_no_chunk_ends_in_an_abbreviation(short: str) -> None:
    text = " ".join(f"The letter {n} came for {short} of the mill." for n in range(200))
    for most in range(60, 110, 3):
        for chunk in Chunker(most).chunks(iter([text]), "a"):
            assert chunk.text.endswith("of the mill."), (most, chunk.text)


def test_a_sentence_longer_than_a_chunk_is_cut_between_words() -> None:
    chunks = list(Chunker(50).chunks(iter(["word and " * 100]), "a"))
    assert {word for chunk in chunks for word in chunk.text.split()} == {"word", "and"}


def test_overlap() -> None:
    text = long_text(60)
    chunks = list(Chunker(2000, 400).chunks(iter([text]), "a"))
    check(text, chunks, 2000)
    shared = [a.offset + len(a.text) - b.offset for a, b in pairwise(chunks)]
    assert max(shared) > 100
    assert all(n <= 400 for n in shared)
    assert all(re.match(r"CHAPTER|[A-Z]", chunk.text) for chunk in chunks)


def test_a_long_text_in_pieces_is_cut_as_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    text = long_text(300)
    whole = list(Chunker(1500).chunks(iter([text]), "a"))
    monkeypatch.setattr(chunk_module, "_READ_BYTES", 5000)
    pieces = [text[i : i + 777] for i in range(0, len(text), 777)]
    assert list(Chunker(1500).chunks(iter(pieces), "a")) == whole


def test_a_long_text_in_pieces_with_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    text = long_text(300)
    monkeypatch.setattr(chunk_module, "_READ_BYTES", 5000)
    pieces = [text[i : i + 777] for i in range(0, len(text), 777)]
    chunks = list(Chunker(1500, 300).chunks(iter(pieces), "a"))
    check(text, chunks, 1500)
    for a, b in pairwise(chunks):
        assert not text[a.offset + len(a.text) : b.offset].strip()
        assert b.offset + len(b.text) > a.offset + len(a.text)


def test_tokens_of_a_model_leave_room_for_bos_and_eos() -> None:
    model = Model(str(MODEL), vocab_only=True)
    text = long_text(40) + "\n\nA cell that spells </s> and <s> is text."
    chunks = list(token_chunker(model, 100).chunks(iter([text]), "a"))
    room = 100 - 1 - model.add_bos
    check(text, chunks, room)
    assert [chunk.size for chunk in chunks] == [len(model.tokenize(c.text, parse_special=False)) for c in chunks]
    assert max(chunk.size for chunk in chunks) > room // 2
    with pytest.raises(GgtuneError, match="no room"):
        token_chunker(model, 1)


@pytest.mark.parametrize(("most", "overlap"), [(0, 0), (10, 10), (10, 11)])
def test_sizes_that_make_no_sense(most: int, overlap: int) -> None:
    with pytest.raises(GgtuneError):
        Chunker(most, overlap)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 1 << 20])
def test_reading_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffDie Müllerin\r\nging — weg.\rGut.\r".encode())
    monkeypatch.setattr(chunk_module, "_READ_BYTES", n)
    assert "".join(read_pieces(Source(path, "a.txt"))) == "Die Müllerin\nging — weg.\nGut.\n"


def test_a_file_that_is_no_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\ncaf\xe9\n")
    for n in (4, 1 << 20):
        monkeypatch.setattr(chunk_module, "_READ_BYTES", n)
        with pytest.raises(DataError, match=r"line 3 is not UTF-8. `ggtune text clean`"):
            list(read_pieces(Source(path, "a.txt")))


def test_parquet_and_jsonl_have_the_same_rows(ggtune: Ggtune, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(long_text(30, seed=ord(name)))
    sources = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for suffix in ("parquet", "jsonl"):
        result = ggtune(
            "text", "chunk", *sources, "-o", tmp_path / f"c.{suffix}", "--characters", 1000, "--overlap", 100
        )
        assert result.exit_code == 0, result.output
        assert re.search(r"Wrote \d+ chunks of 2 files", result.output)
        assert re.search(r"characters of a chunk: [\d,]+ to [\d,]+, median", result.output)
    table = pq.read_table(tmp_path / "c.parquet")
    assert table.column_names == ["chunk", "source", "index", "offset", "size"]
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert table.to_pylist() == rows
    assert {row["source"] for row in rows} == {"a.txt", "b.txt"}
    settings = json.loads(table.schema.metadata[b"ggtune.chunk"])
    assert settings == {"unit": "character", "most": 1000, "overlap": 100, "model": None}


def test_files_of_one_name_are_told_apart(ggtune: Ggtune, tmp_path: Path) -> None:
    for name in ("a/x.txt", "b/x.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("Some text.\n")
    assert ggtune("text", "chunk", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c.jsonl").exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == [f"{tmp_path}/a/x.txt", f"{tmp_path}/b/x.txt"]


def test_tokens_by_the_command(ggtune: Ggtune, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(long_text(10))
    result = ggtune("text", "chunk", tmp_path / "a.txt", "-o", tmp_path / "c.jsonl", "--tokens", 120, "-m", MODEL)
    assert result.exit_code == 0, result.output
    assert "tokens of a chunk" in result.output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["a.txt", "-o", "c.csv"], 1, ".parquet, .jsonl"),
        (["a.txt", "-o", "c.jsonl", "--tokens", "9"], 2, "belong together"),
        (["a.txt", "-o", "c.jsonl", "--model", str(MODEL)], 2, "belong together"),
        (["a.txt", "-o", "c.jsonl", "--tokens", "9", "-m", str(MODEL), "--characters", "9"], 2, "not both"),
        (["a.txt", "-o", "c.jsonl", "--characters", "9", "--overlap", "9"], 1, "overlap (9)"),
        (["empty.txt", "-o", "c.jsonl"], 1, "there is no text"),
        (["binary.txt", "-o", "c.parquet"], 1, "zero byte"),
        (["a.txt", "-o", "c.jsonl", "--tokens", "9", "-m", "no.gguf"], 1, "no.gguf"),
    ],
)
def test_wrong_use_leaves_no_file(
    ggtune: Ggtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("Some text.\n")
    Path("empty.txt").write_text("\n")
    Path("binary.txt").write_bytes(b"a\0b")
    result = ggtune("text", "chunk", *arguments)
    assert result.exit_code == status, result.output
    assert message in result.output
    assert not list(tmp_path.glob("*c.*"))
