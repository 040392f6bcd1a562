"""The board in a real browser, on a real run: no error in its console, it follows, and its button stops the run."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from followed_runs import WriteRun, append

pytest.importorskip("starlette", reason="starlette is not installed: pip install '.[board]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install '.[board]'")
pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[board]'")

from browser import Browser
from ggtune.board.guard import new_token
from ggtune.board.server import Board
from ggtune.run.checkpoint import load_checkpoint
from ggtune.run.outputs import Outputs
from ggtune.run.status import read_status


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Board]]:
    boards = []

    def begin(*, token: str | None = None) -> Board:
        boards.append(Board([tmp_path], "127.0.0.1", 0, token).__enter__())
        return boards[-1]

    yield begin
    for board in boards:
        board.__exit__(None, None, None)


def wait_for(browser: Browser, script: str, seconds: float = 30) -> object:
    """Wait until the expression is true in the page; its value."""
    deadline = time.monotonic() + seconds
    while not (value := browser.run(f"return {script};")):
        assert time.monotonic() < deadline, (script, browser.run("return document.body.innerText;"))
        time.sleep(0.05)
    return value


def text_of(id_: str) -> str:
    return f"document.getElementById('{id_}').textContent"


def shown(id_: str) -> str:
    return f"(document.getElementById('{id_}').offsetParent !== null)"


def test_it_follows_a_real_run_and_stops_it(
    browser: Browser, serve: Callable[..., Board], going_run: Path, write_run: WriteRun
) -> None:
    write_run("ended", state="finished")
    board = serve(token=new_token())
    browser.open(board.stop_url)
    wait_for(browser, "document.querySelectorAll('.run').length === 2")
    # the token leaves the address, and with it the history
    assert browser.run("return location.href;") == board.url
    rows = "document.querySelector('.run')"
    assert "running" in str(browser.run(f"return {rows}.innerText;"))  # what goes on comes first
    before = browser.run(f"return {rows}.querySelector('.how').innerText;")
    wait_for(browser, f"{rows}.querySelector('.how').innerText !== {before!r}")
    assert browser.run("return document.querySelectorAll('.spark polyline').length;") >= 2
    assert browser.console() == []

    browser.run("document.querySelector('.run a').click();")
    wait_for(browser, f"{text_of('state')} === 'running' && {shown('stop')}")
    step = browser.run("return document.getElementById('facts').innerText;")
    wait_for(browser, f"document.getElementById('facts').innerText !== {step!r}")
    loss = "document.querySelector('#curves img')"
    wait_for(browser, f"{loss} && {loss}.complete && {loss}.naturalWidth > 100")
    first = browser.run(f"return {loss}.src;")
    append(going_run / "samples.jsonl", {"step": 1, "question": "What is neon?", "answer": "A noble gas."})
    wait_for(browser, f"{text_of('answers')}.includes('A noble gas.')")
    wait_for(browser, f"{loss}.src !== {first!r} && {loss}.complete")
    assert "Samples:" in str(browser.run(f"return {text_of('log')};"))
    assert browser.width_beyond() == 0
    assert browser.console() == []

    browser.run("document.getElementById('stop').click();")
    wait_for(browser, shown("confirm"))
    browser.run("document.getElementById('stop-no').click();")
    wait_for(browser, shown("stop"))
    assert read_status(going_run).state == "running"
    browser.run("document.getElementById('stop').click(); document.getElementById('stop-yes').click();")
    wait_for(browser, f"{text_of('state')} === 'interrupted'")
    assert "by SIGTERM" in str(browser.run(f"return {text_of('reason')};"))
    assert not browser.run(f"return {shown('stop')};")
    done = read_status(going_run).step
    assert load_checkpoint(Outputs.at_step(Outputs.folder(going_run).checkpoint, done)).state.step == done
    assert browser.console() == []


@pytest.mark.parametrize("allowed", [False, True])
def test_without_the_token_there_is_no_button(
    browser: Browser, serve: Callable[..., Board], write_run: WriteRun, allowed: bool
) -> None:
    write_run()
    board = serve(token=new_token() if allowed else None)
    browser.open(board.url)
    browser.run("sessionStorage.clear();")
    wait_for(browser, "document.querySelector('.run a')")
    browser.run("document.querySelector('.run a').click();")
    wait_for(browser, f"{text_of('state')} === 'running'")
    assert not browser.run(f"return {shown('stop')};")
    assert browser.run(f"return {shown('stopping')};") == allowed
    assert browser.console() == []


def test_hostile_texts_are_texts(browser: Browser, serve: Callable[..., Board], write_run: WriteRun) -> None:
    evil = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 1'>\u202e<b>"
    folder = write_run("<img src=x onerror=evil()>", data=f"{evil}.csv", template=evil)
    append(folder / "samples.jsonl", {"step": 0, "question": evil, "answer": evil, "reference": evil})
    (folder / "log.txt").write_text(f"{evil}\nwarning: {evil}\n")
    browser.open(serve().url)
    wait_for(browser, "document.querySelector('.run a')")
    assert browser.run("return document.querySelector('.run a').textContent;").endswith("<img src=x onerror=evil()>")
    browser.run("document.querySelector('.run a').click();")
    wait_for(browser, f"{text_of('answers')}.includes('</script>')")
    wait_for(browser, f"{text_of('warnings')}.includes('</script>')")
    assert browser.run("return [window.evil, document.querySelectorAll('main script, main b').length];") == [None, 0]
    assert browser.console() == []


def test_a_phone_and_the_dark(browser: Browser, serve: Callable[..., Board], write_run: WriteRun) -> None:
    write_run("a/" + "very-long-name-without-any-space-" * 4)
    browser.open(serve().url)
    browser.look(390, 844, dark=True)
    wait_for(browser, "document.querySelector('.run a')")
    assert browser.width_beyond() == 0
    assert browser.run("return getComputedStyle(document.body).backgroundColor;") == "rgb(20, 24, 29)"
    browser.run("document.querySelector('.run a').click();")
    image = "document.querySelector('#curves img')"
    wait_for(browser, f"{image} && {image}.complete && {image}.naturalWidth > 100")
    assert browser.width_beyond() == 0
    assert browser.console() == []


def test_a_board_that_has_ended_is_said(browser: Browser, serve: Callable[..., Board], write_run: WriteRun) -> None:
    write_run()
    board = serve()
    browser.open(board.url)
    wait_for(browser, "document.querySelector('.run a')")
    board.__exit__(None, None, None)
    wait_for(browser, f"{text_of('trouble')}.includes('does not answer')")
