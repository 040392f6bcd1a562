import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from book_server import BookServer, Handler
from click.testing import Result

from ggtune.errors import GgtuneError
from ggtune.ollama.registry.retry import RetryPolicy
from ggtune.text.catalog import Query
from ggtune.text.fetch import FetchResult, fetch_books
from ggtune.text.web import WebOptions

Ggtune = Callable[..., Result]

FAST = WebOptions(timeout_s=0.5, pause_s=0, retry=RetryPolicy(retries=2, first_wait_s=0.01))


@pytest.fixture
def server() -> Iterator[BookServer]:
    state = BookServer()
    state.start()
    for number in range(1, 9):
        state.add(number)
    yield state
    state.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "books"


def fetch(server: BookServer, folder: Path, count: int = 3, **query: str) -> FetchResult:
    return fetch_books(folder, server.url, Query(**query), count, options=FAST)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.txt"))


def test_books_of_several_pages(server: BookServer, folder: Path) -> None:
    result = fetch(server, folder, 7, topic="pumps", language="en,de")
    assert result.problem is None
    assert names(folder) == [f"{number}-book-{number}.txt" for number in range(1, 8)]
    assert [path.name for path in result.books] == names(folder)
    for number in range(1, 8):
        assert (folder / f"{number}-book-{number}.txt").read_bytes() == server.texts[number]
    lists = [request.query for request in server.requests if request.path == "/books/"]
    assert lists == [
        {"topic": "pumps", "languages": "en,de"},
        {"topic": "pumps", "languages": "en,de", "page": "2"},
        {"topic": "pumps", "languages": "en,de", "page": "3"},
    ]
    assert all(request.headers["user-agent"].startswith("ggtune/") for request in server.requests)
    state = json.loads((folder / "fetch.json").read_text())["books"]["3"]
    assert state["file"] == "3-book-3.txt"
    assert state["bytes"] == len(server.texts[3])
    assert state["sha256"] == hashlib.sha256(server.texts[3]).hexdigest()
    assert state["authors"] == ["Writer, A. 3"]


def test_no_book_twice(server: BookServer, folder: Path) -> None:
    fetch(server, folder, 3)
    server.books.insert(0, server.books[1])  # repeated on a page, and on the next one
    server.books.insert(4, server.books[2])
    result = fetch(server, folder, 5)
    assert (result.n_kept, result.n_fetched) == (3, 2)
    assert server.fetched() == [f"/text/{number}.txt" for number in range(1, 6)]


def test_a_file_that_is_gone_or_was_changed_is_fetched_again(server: BookServer, folder: Path) -> None:
    fetch(server, folder, 3)
    (folder / "1-book-1.txt").unlink()
    (folder / "2-book-2.txt").write_text("changed")
    assert fetch(server, folder, 3).n_fetched == 2
    assert (folder / "2-book-2.txt").read_bytes() == server.texts[2]


def test_fewer_than_wanted(server: BookServer, folder: Path) -> None:
    result = fetch(server, folder, 20, topic="pumps")
    assert len(result.books) == 8
    assert "no more for topic 'pumps' (8 in its list)" in (result.problem or "")


def test_nothing_found(server: BookServer, folder: Path) -> None:
    server.books.clear()
    assert "nothing for topic 'pumps'" in (fetch(server, folder, 2, topic="pumps").problem or "")


def test_pages_that_repeat_themselves_end(server: BookServer, folder: Path) -> None:
    first = {"count": 99, "next": f"{server.url}/books/?page=2", "results": server.books[:2]}
    server.pages = {"1": first, "2": {**first, "next": f"{server.url}/books/?page=3"}, "3": first}
    assert len(fetch(server, folder, 5).books) == 2
    assert len(server.requests) < 8


def test_a_next_page_that_names_another_host_stays_on_this_one(server: BookServer, folder: Path) -> None:
    server.pages = {"1": {"next": "http://gutendex.invalid/books/?page=2", "results": server.books[:1]}}
    assert len(fetch(server, folder, 3).books) == 3


@pytest.mark.parametrize("cut", [1, 1000, 4095])
def test_a_text_that_breaks_off_goes_on(server: BookServer, folder: Path, cut: int) -> None:
    server.fail("/text/1.txt", lambda handler: handler.text(server.texts[1], cut), times=2)
    assert fetch(server, folder, 1).problem is None
    assert (folder / "1-book-1.txt").read_bytes() == server.texts[1]
    ranges = [request.headers.get("range") for request in server.requests if request.path == "/text/1.txt"]
    assert ranges == [None, f"bytes={cut}-", f"bytes={2 * cut}-"]


def test_a_text_without_validator_starts_anew(server: BookServer, folder: Path) -> None:
    server.etag = False
    server.fail("/text/1.txt", lambda handler: handler.text(server.texts[1], 1000))
    fetch(server, folder, 1)
    assert (folder / "1-book-1.txt").read_bytes() == server.texts[1]
    assert all("range" not in request.headers for request in server.requests)


def test_a_text_that_changed_meanwhile_starts_anew(server: BookServer, folder: Path) -> None:
    old = server.texts[1]
    server.texts[1] = b"Another " + old
    server.fail("/text/1.txt", lambda handler: handler.text(old, 1000))
    fetch(server, folder, 1)
    assert (folder / "1-book-1.txt").read_bytes() == server.texts[1]


def test_a_part_that_ends_before_the_file_does_is_gone_on_with(server: BookServer, folder: Path) -> None:
    text = server.texts[1]

    def some(handler: Handler) -> None:
        content_range = f"bytes 1000-1999/{len(text)}"
        handler.answer(206, text[1000:2000], content_type="text/plain", Content_Range=content_range)

    server.fail("/text/1.txt", lambda handler: handler.text(text, 1000))
    server.fail("/text/1.txt", some)
    fetch(server, folder, 1)
    assert (folder / "1-book-1.txt").read_bytes() == text
    assert server.requests[-1].headers["range"] == "bytes=2000-"


def test_a_part_of_another_place_is_not_gone_on_with(server: BookServer, folder: Path) -> None:
    def elsewhere(handler: Handler) -> None:
        handler.answer(206, b"x" * 10, content_type="text/plain", Content_Range="bytes 7-16/17")

    server.fail("/text/1.txt", lambda handler: handler.text(server.texts[1], 1000))
    server.fail("/text/1.txt", elsewhere)
    fetch(server, folder, 1)
    assert (folder / "1-book-1.txt").read_bytes() == server.texts[1]


def test_what_was_begun_is_gone_on_with_by_the_next_call(server: BookServer, folder: Path) -> None:
    server.books = server.books[:1]
    server.fail("/text/1.txt", lambda handler: handler.text(server.texts[1], 1000), times=1)
    server.fail("/text/1.txt", lambda handler: handler.answer(503, b""), times=3)
    assert fetch(server, folder, 1).books == []
    assert names(folder) == []
    assert fetch(server, folder, 1).problem is None
    assert server.requests[-1].headers["range"] == "bytes=1000-"
    assert (folder / "1-book-1.txt").read_bytes() == server.texts[1]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("path", ["/books", "/text/1.txt"])
def test_what_fails_for_now_is_tried_again(server: BookServer, folder: Path, path: str, status: int) -> None:
    server.fail(path, lambda handler: handler.answer(status, b"busy"), times=2)
    assert fetch(server, folder, 1).problem is None
    assert names(folder) == ["1-book-1.txt"]


def test_retry_after_is_respected(server: BookServer, folder: Path) -> None:
    server.fail("/text/1.txt", lambda handler: handler.answer(429, b"", Retry_After="1"))
    began = time.monotonic()
    fetch(server, folder, 1)
    assert time.monotonic() - began >= 1


def test_a_server_that_asks_for_an_hour_is_left(server: BookServer, folder: Path) -> None:
    server.fail("/books", lambda handler: handler.answer(429, b"", Retry_After="3600"))
    with pytest.raises(GgtuneError, match="come back in 3600 s"):
        fetch(server, folder, 1)


def test_pauses_between_requests(server: BookServer, folder: Path) -> None:
    began = time.monotonic()
    options = WebOptions(timeout_s=5, pause_s=0.2)
    fetch_books(folder, f"{server.url}/books/", Query(), 2, options=options)
    assert time.monotonic() - began >= 0.4  # a page and two texts


@pytest.mark.parametrize("path", ["/books", "/text/1.txt"])
def test_a_stall_times_out(server: BookServer, folder: Path, path: str) -> None:
    server.fail(path, Handler.stall)
    assert fetch(server, folder, 1).problem is None


def test_a_stall_within_a_text_times_out(server: BookServer, folder: Path) -> None:
    def half(handler: Handler) -> None:
        handler.text(server.texts[1], 1000)
        handler.stall()

    server.fail("/text/1.txt", half)
    fetch(server, folder, 1)
    assert (folder / "1-book-1.txt").read_bytes() == server.texts[1]
    assert server.requests[-1].headers["range"] == "bytes=1000-"


def test_a_drip_is_as_good_as_dead(server: BookServer, folder: Path) -> None:
    def drip(handler: Handler) -> None:
        handler.text(server.texts[1], 1)
        for _ in range(100):
            if server.stopped.wait(0.1):
                return
            handler.wfile.write(b"x")
            handler.wfile.flush()

    server.etag = False
    server.fail("/text/1.txt", drip)
    began = time.monotonic()
    fetch(server, folder, 1)
    assert time.monotonic() - began < 5
    assert (folder / "1-book-1.txt").read_bytes() == server.texts[1]


HTML = b"<!DOCTYPE html><html><body>Please log in to this network.</body></html>"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda handler: handler.answer(404, b""), "answered 404"),
        (lambda handler: handler.answer(403, b""), "refuses this program"),
        (lambda handler: handler.answer(200, HTML), "gave text/html"),
        (lambda handler: handler.answer(200, HTML, content_type="text/plain"), "gave a web page"),
        (lambda handler: handler.answer(200, b"", content_type="text/plain"), "empty file"),
        (lambda handler: handler.answer(302, b"", location="/text/1.txt"), "circle"),
        (lambda handler: handler.answer(302, b"", location="gopher://x/"), "can't be used"),
        (lambda handler: handler.answer(500, b""), "answered 500"),
    ],
)
def test_a_book_that_cannot_be_had_is_skipped_and_named(
    server: BookServer, folder: Path, act: Callable[[Handler], None], message: str
) -> None:
    server.fail("/text/1.txt", act, times=99)
    result = fetch(server, folder, 2)
    assert names(folder) == ["2-book-2.txt", "3-book-3.txt"]
    assert len(result.skipped) == 1
    assert result.skipped[0].startswith("1 (Book 1): ")
    assert message in result.skipped[0]


def test_a_server_without_texts_is_given_up(server: BookServer, folder: Path) -> None:
    server.fail("/text/", lambda handler: handler.answer(403, b""), times=99)
    result = fetch(server, folder, 5)
    assert "3 books in a row" in (result.problem or "")
    assert len(server.fetched()) == 3


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda handler: handler.answer(200, HTML), "a web page where a list of books belongs. Is http"),
        (lambda handler: handler.answer(200, b'{"results": [', content_type="application/json"), "no JSON"),
        (lambda handler: handler.answer(200, b""), "nothing where a list"),
        (lambda handler: handler.answer(200, b"[1, 2]"), "no list of books"),
        (lambda handler: handler.answer(200, b'{"detail": "Bad topic."}'), r"no list of books \(Bad topic.\)"),
        (lambda handler: handler.answer(404, b""), "answered 404.*name another by --server"),
        (lambda handler: handler.answer(500, b""), "answered 500. Given up after 3 tries"),
        (lambda handler: handler.answer(302, b"", location="/books"), "circle"),
        (Handler.stall, "silent for 0.5 s. Given up"),
    ],
)
def test_a_server_that_gives_no_list(
    server: BookServer, folder: Path, act: Callable[[Handler], None], message: str
) -> None:
    server.fail("/books", act, times=99)
    with pytest.raises(GgtuneError, match=message):
        fetch(server, folder, 1)
    assert names(folder) == []


def test_entries_that_make_no_sense_are_passed_over(server: BookServer, folder: Path) -> None:
    good = server.books[0]
    odd = [
        None,
        7,
        {},
        {"id": "../../x"},
        {"id": -4},
        {**good, "id": True, "formats": 3, "authors": 5, "languages": None},
    ]
    server.pages = {"1": {"next": 17, "results": [*odd, {**good, "title": "../../Up \x1b[31m/ there"}]}}
    result = fetch(server, folder, 1)
    assert [path.name for path in result.books] == ["1-up-31m-there.txt"]


def test_books_without_plain_text_and_in_copyright_are_passed_over(server: BookServer, folder: Path) -> None:
    server.books[0]["formats"] = {"audio/mpeg": f"{server.url}/1.mp3", "text/plain": f"{server.url}/1.zip"}
    server.books[1]["copyright"] = True
    result = fetch(server, folder, 2)
    assert names(folder) == ["3-book-3.txt", "4-book-4.txt"]
    assert result.skipped == ["1 (Book 1): there is no plain text of it."]
    assert fetch_books(folder, server.url, Query(copyrighted=True), 3, options=FAST).n_fetched == 1


def test_utf8_is_taken_where_there_are_several_texts(server: BookServer, folder: Path) -> None:
    server.books[0]["formats"] = {
        "text/plain; charset=us-ascii": f"{server.url}/text/2.txt",
        "text/plain; charset=utf-8": "/text/3.txt",
    }
    fetch(server, folder, 1)
    assert (folder / "1-book-1.txt").read_bytes() == server.texts[3]
    # and the other one where that is not there
    del server.texts[3]
    (folder / "1-book-1.txt").unlink()
    fetch(server, folder, 1)
    assert (folder / "1-book-1.txt").read_bytes() == server.texts[2]


def test_author(server: BookServer, folder: Path) -> None:
    server.books[2]["authors"] = [{"name": "Müller, Änne"}]
    assert [path.name for path in fetch(server, folder, 1, author="anne MULLER").books] == ["3-book-3.txt"]
    assert server.requests[0].query == {"search": "anne MULLER"}


def test_redirects_are_followed(server: BookServer, folder: Path) -> None:
    server.fail("/text/1.txt", lambda handler: handler.answer(302, b"", location="/text/2.txt"))
    fetch(server, folder, 1)
    assert (folder / "1-book-1.txt").read_bytes() == server.texts[2]


def test_compression_that_nobody_asked_for(server: BookServer, folder: Path) -> None:
    packed = gzip.compress(server.texts[1])
    server.fail(
        "/text/1.txt", lambda handler: handler.answer(200, packed, content_type="text/plain", Content_Encoding="gzip")
    )
    fetch(server, folder, 1)
    assert (folder / "1-book-1.txt").read_bytes() == server.texts[1]


@pytest.mark.parametrize("text", ["{", "[]", '{"books": []}', '{"books": {"x": 1}}', '{"books": {"1": 5}}'])
def test_a_damaged_state_is_named(server: BookServer, folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "fetch.json").write_text(text)
    with pytest.raises(GgtuneError, match=r"fetch.json: is no list"):
        fetch(server, folder, 1)


def test_a_state_that_names_a_file_elsewhere_is_not_followed(server: BookServer, folder: Path) -> None:
    folder.mkdir()
    (folder.parent / "x.txt").write_text("x")
    (folder / "fetch.json").write_text('{"books": {"1": {"file": "../x.txt", "bytes": 1}}}')
    assert fetch(server, folder, 1).n_fetched == 1


@pytest.mark.parametrize("address", ["", "ftp://x", "http://", "http://[::1"])
def test_an_address_that_is_none(folder: Path, address: str) -> None:
    with pytest.raises(GgtuneError, match="--server"):
        fetch_books(folder, address, Query(), 1, options=FAST)


def test_a_full_disk(server: BookServer, make_disk: Callable[[str], Path]) -> None:
    server.texts[1] = b"x" * (2 << 20)
    disk = make_disk("1m")
    with pytest.raises(GgtuneError, match="No space left"):
        fetch(server, disk, 1)
    assert names(disk) == []


def test_the_command(ggtune: Ggtune, server: BookServer, folder: Path) -> None:
    arguments = ("text", "fetch", "-o", folder, "--topic", "pumps", "--server", server.url, "--pause", 0)
    result = ggtune(*arguments, "--count", 2)
    assert result.exit_code == 0, result.output
    assert f"[2/2] {folder / '2-book-2.txt'}" in result.output
    assert f"2 books in {folder}: 2 fetched" in result.output
    again = ggtune(*arguments, "--count", 9)
    assert again.exit_code == 1
    assert "8 of 9 books. The server has no more for topic 'pumps'" in again.output
    assert "6 fetched" in again.output
    assert "2 there already" in again.output


def run_command(server: BookServer, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ggtune", "text", "fetch", "-o", str(folder), "--count", "3", "--pause", "0"]
    return subprocess.Popen(
        [*command, "--server", server.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_is_whole(server: BookServer, folder: Path, number: signal.Signals) -> None:
    def half(handler: Handler) -> None:
        handler.text(server.texts[2], 1000)
        handler.stall()

    server.fail("/text/2.txt", half)
    with run_command(server, folder) as process:
        deadline = time.monotonic() + 30
        while not (folder / ".fetch" / "2.part").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
        other = fetch_in_use(server, folder)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert "Another process is fetching" in other
    assert process.returncode == 128 + number
    assert "The same command goes on from here" in errors
    assert names(folder) == ["1-book-1.txt"]
    result = fetch(server, folder, 3)
    assert (result.n_kept, result.n_fetched) == (1, 2)
    assert names(folder) == ["1-book-1.txt", "2-book-2.txt", "3-book-3.txt"]
    assert (folder / "2-book-2.txt").read_bytes() == server.texts[2]


def fetch_in_use(server: BookServer, folder: Path) -> str:
    with pytest.raises(GgtuneError) as error:
        fetch(server, folder, 3)
    return str(error.value)
