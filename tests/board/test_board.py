"""The board as other programs see it: what it answers, to whom, and how much of it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from followed_runs import GGTUNE, WriteRun, append, line

pytest.importorskip("starlette", reason="starlette is not installed: pip install '.[board]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install '.[board]'")
pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[board]'")

from ggtune.board import collection as collection_module
from ggtune.board.collection import Collection, run_id
from ggtune.board.guard import Guard, is_loopback, names_of
from ggtune.board.opening import open_in_browser
from ggtune.board.server import Board
from ggtune.cli import cli

Serve = Callable[..., "Site"]


class Site:
    """A board that is served, and a client that asks it."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.client = httpx.Client(base_url=board.url, trust_env=False)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(path, headers=headers)

    def runs(self, since: int = 0, born: str = "") -> dict[str, Any]:
        answer: dict[str, Any] = self.get(f"/api/runs?since={since}&born={born}").json()
        return answer

    def wait_for_runs(self, n: int, seconds: float = 30) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while len((answer := self.runs())["rows"]) != n or not answer["is_read"]:
            assert time.monotonic() < deadline, answer
            time.sleep(0.02)
        return answer

    def stop(self, id_: str, **headers: str | None) -> httpx.Response:
        origin = self.board.url.rstrip("/")
        given = {"origin": origin, "x_ggtune_token": self.board.token, **headers}
        kept = {key.replace("_", "-"): value for key, value in given.items() if value is not None}
        return self.client.post(f"/api/run/{id_}/stop", headers=kept)


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serve the runs below the test's folder."""
    monkeypatch.setattr(collection_module, "_LOOK_S", 0.02)
    monkeypatch.setattr(collection_module, "_ENDED_LOOK_S", 0.05)
    monkeypatch.setattr(collection_module, "_SEARCH_S", 0.1)
    sites = []

    def begin(*folders: Path, host: str = "127.0.0.1", token: str | None = None) -> Site:
        site = Site(Board(folders or (tmp_path,), host, 0, token).__enter__())
        sites.append(site)
        return site

    yield begin
    for site in sites:
        site.client.close()
        site.board.__exit__(None, None, None)


def test_the_list_says_what_is_new_and_no_more(serve: Serve, write_run: WriteRun) -> None:
    going, ended = write_run("a/going"), write_run("b/ended", state="finished")
    site = serve()
    answer = site.wait_for_runs(2)
    rows = {row["folder"]: row for row in answer["rows"]}
    assert rows[str(going)]["state"] == "running"
    expected = {"step": "40/60", "share": 0.6667, "epoch": "2.00 of 3", "loss": "2.6364", "held_out": "2.7500"}
    expected |= {"eta": "0:00:40", "model": "base.gguf", "data": "train.csv"}
    assert expected.items() <= rows[str(going)].items()
    assert [len(curve) for curve in rows[str(ended)]["spark"]] == [40, 2]
    time.sleep(0.3)
    since, born = site.runs()["version"], answer["born"]
    append(ended / "metrics.jsonl", line(41))
    deadline = time.monotonic() + 30
    while not any(row["step"] == "41/60" for row in site.runs(since, born)["rows"]):
        assert time.monotonic() < deadline
    assert str(ended) in {row["folder"] for row in site.runs(since, born)["rows"]}
    since = site.runs()["version"]
    shutil.rmtree(ended)
    while not (answer := site.runs(since, born))["gone"]:
        assert time.monotonic() < deadline
    assert answer["gone"] == [run_id(ended)]
    # numbers of another board mean nothing: everything is told
    assert len(site.runs(10**9, "another")["rows"]) == 1


def test_an_ended_run_is_told_once(serve: Serve, write_run: WriteRun) -> None:
    write_run(state="finished")
    site = serve()
    answer = site.wait_for_runs(1)
    time.sleep(0.5)
    again = site.runs(answer["version"], answer["born"])
    assert (again["rows"], again["version"]) == ([], answer["version"])


def test_a_page_is_told_the_parts_that_changed(serve: Serve, write_run: WriteRun) -> None:
    folder = write_run(state="finished")
    append(folder / "samples.jsonl", {"step": 0, "question": "q?", "answer": "<script>alert(1)</script>"})
    (folder / "log.txt").write_text("step 1\nSamples: 95\n")
    site = serve()
    site.wait_for_runs(1)
    path = f"/api/run/{run_id(folder)}"
    first = site.get(path).json()
    assert dict(first["facts"])["Best held-out"] == "2.7500 at step 40"
    assert ["epochs", "3.0"] in first["settings"]
    assert [key for key, _ in first["figures"]] == ["loss", "rate", "gradient", "speed"]
    assert first["questions"][0]["answers"][0]["text"] == "<script>alert(1)</script>"
    assert first["log"] == ["Samples: 95"]
    query = "&".join(f"{part}={version}" for part, version in {**first["versions"], "born": first["born"]}.items())
    assert set(site.get(f"{path}?{query}").json()) == {"versions", "row", "born", "can_stop"}
    append(folder / "samples.jsonl", {"step": 40, "question": "q?", "answer": "better"})
    deadline = time.monotonic() + 30
    while "questions" not in (later := site.get(f"{path}?{query}").json()):
        assert time.monotonic() < deadline
    assert set(later) == {"versions", "row", "born", "can_stop", "questions"}
    assert [answer["text"] for answer in later["questions"][0]["answers"]][1:] == ["better"]


def test_what_came_out_is_shown(serve: Serve, write_run: WriteRun) -> None:
    folder = write_run(state="finished")
    site = serve()
    site.wait_for_runs(1)
    path = f"/api/run/{run_id(folder)}"
    first = site.get(path).json()
    assert (first["before_after"], first["scores"]) == ([], {})
    append(folder / "before_after.jsonl", {"question": "q?", "before": "b", "after": "a", "reference": None}, {})
    evaluation = {
        "format": 1, "label": "best", "subject": {}, "data": "d.csv", "template": None, "system": None, "n_samples": 20,
        "settings": {}, "scores": {"f1": {"value": 0.5, "low": 0.4, "high": 0.6}, "loss": {"value": 2.0, "low": 1.5,
        "high": 2.5}}, "seconds": 1.0, "version": "0",
    }  # fmt: skip
    for label, text in (("best", json.dumps(evaluation)), ("torn", '{"format": 1')):
        (folder / "evaluation" / label).mkdir(parents=True)
        (folder / "evaluation" / label / "evaluation.json").write_text(text)
    query = "&".join(f"{part}={version}" for part, version in {**first["versions"], "born": first["born"]}.items())
    later = site.get(f"{path}?{query}").json()
    assert later["before_after"][0] == {"question": "q?", "before": "b", "after": "a", "reference": ""}
    assert later["scores"]["heads"] == ["best (20 samples)"]
    assert [row[0] for row in later["scores"]["rows"]] == ["Loss (nats per token)", "F1 of words"]
    assert later["scores"]["rows"][1][1].startswith("0.500")


def test_curves_are_images_in_the_colours_of_the_screen(serve: Serve, write_run: WriteRun) -> None:
    folder = write_run()
    site = serve()
    site.wait_for_runs(1)
    answer = site.get(f"/figure/{run_id(folder)}/loss.svg?width=390")
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert answer.text.startswith("<svg")
    assert "prefers-color-scheme: dark" in answer.text
    assert "script-src" not in answer.headers["content-security-policy"]
    assert site.get(f"/figure/{run_id(folder)}/nothing.svg").status_code == 404
    assert site.get("/figure/none/loss.svg").status_code == 404


def test_a_curve_is_not_drawn_again_for_each_step(serve: Serve, write_run: WriteRun, monkeypatch: Any) -> None:
    from ggtune.board import figures

    monkeypatch.setattr(figures, "_SHARE", 1e9)
    folder = write_run()
    site = serve()
    site.wait_for_runs(1)
    first = site.get(f"/figure/{run_id(folder)}/loss.svg").text
    append(folder / "metrics.jsonl", line(41))
    time.sleep(0.3)
    assert site.get(f"/figure/{run_id(folder)}/loss.svg").text == first


# -- who may ask for what


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:1", "127.0.0.1:9999", "[::1]:80", "localhost."])
def test_hosts_that_are_the_board(serve: Serve, host: str) -> None:
    assert serve().get("/", host=host).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "evil"])
@pytest.mark.parametrize("path", ["/", "/api/runs", "/static/page.js", "/nothing"])
def test_names_that_lead_here_from_elsewhere_are_refused(serve: Serve, host: str, path: str) -> None:
    answer = serve().get(path, host=host)
    assert answer.status_code in ((421,) if host else (400, 421))
    assert "default-src 'none'" in answer.headers.get("content-security-policy", "default-src 'none'")


def test_two_hosts_or_none_are_refused(serve: Serve) -> None:
    site = serve()
    for lines in (b"", b"Host: localhost\r\nHost: evil\r\n"):
        with socket.create_connection(("127.0.0.1", site.board.port)) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n" + lines + b"\r\n")
            assert connection.recv(100).split()[1] in (b"400", b"421")


def test_names_of_a_board_that_is_open_to_others() -> None:
    guard = Guard(lambda *_: None, names_of("0.0.0.0"))  # type: ignore[arg-type,return-value]
    assert guard.allows("192.168.1.7:8765")
    assert guard.allows(f"{socket.gethostname()}:8765")
    assert not guard.allows("evil.example")
    assert not Guard(lambda *_: None, names_of("127.0.0.1")).allows(socket.gethostname() + "x")  # type: ignore[arg-type,return-value]
    loopback = {"127.0.0.1": True, "127.9.9.9": True, "::1": True, "localhost": True, "0.0.0.0": False, "::": False,
                "192.168.1.7": False, "example.org": False}  # fmt: skip
    assert {host: is_loopback(host) for host in loopback} == loopback


@pytest.mark.parametrize(
    "path", ["/", "/run/x", "/api/runs", "/api/run/x", "/static/board.css", "/nothing", "/static/x"]
)
def test_every_answer_carries_the_policy(serve: Serve, path: str) -> None:
    headers = serve().get(path).headers
    policy = headers["content-security-policy"]
    for rule in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"):
        assert rule in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers


def test_pages_name_nothing_elsewhere() -> None:
    for path in (Path(collection_module.__file__).parent / "static").iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("// ", ""), path
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "onclick=", "style="):
            assert word not in text, path


@pytest.mark.parametrize(
    "path", ["/static/../server.py", "/static/%2e%2e%2fserver.py", "/run/../../etc/passwd", "/figure/a/b"]
)
def test_no_other_files_are_read(serve: Serve, path: str) -> None:
    site = serve()
    with socket.create_connection(("127.0.0.1", site.board.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        assert connection.recv(100).split()[1] == b"404"


class Told:
    """Stands where processes are told to end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pids: list[int] = []
        monkeypatch.setattr("psutil.Process.terminate", lambda process: self.pids.append(process.pid))


def test_a_board_only_shows_by_default(serve: Serve, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)
    id_ = run_id(write_run())
    site = serve()
    site.wait_for_runs(1)
    assert site.stop(id_).status_code == 403
    assert site.stop(id_, x_ggtune_token="").status_code == 403
    assert site.stop(id_, x_ggtune_token="None").status_code == 403
    assert not site.get(f"/api/run/{id_}").json()["can_stop"]
    assert "#" not in site.board.stop_url
    assert told.pids == []


@pytest.mark.parametrize(
    "headers",
    [
        {"x_ggtune_token": None}, {"x_ggtune_token": ""}, {"x_ggtune_token": "secret-tokem"},
        {"x_ggtune_token": "secret"},
        {"x_ggtune_token": "secret-token\u00e9"}, {"origin": None}, {"origin": "null"}, {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1"}, {"origin": "http://127.0.0.1.evil.example"}, {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"}, {"host": "evil.example", "origin": "http://evil.example"},
    ],
)  # fmt: skip
def test_stopping_needs_the_token_and_the_boards_own_page(
    serve: Serve, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str | None]
) -> None:
    told = Told(monkeypatch)
    id_ = run_id(write_run())
    site = serve(token="secret-token")
    site.wait_for_runs(1)
    coded: Any = {key: value.encode("latin-1") if value else value for key, value in headers.items()}
    assert site.stop(id_, **coded).status_code in (403, 421)
    assert site.client.get(f"/api/run/{id_}/stop", headers={"x-ggtune-token": "secret-token"}).status_code == 405
    assert told.pids == []


def test_with_both_the_runs_process_is_told(serve: Serve, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)
    id_, ended = run_id(write_run()), run_id(write_run("ended", state="finished"))
    site = serve(token="secret-token")
    site.wait_for_runs(2)
    answer = site.stop(id_, sec_fetch_site="same-origin")
    assert answer.status_code == 202
    assert told.pids == [os.getpid()]
    assert "has been told to stop" in answer.json()["told"]
    refused = site.stop(ended)
    assert refused.status_code == 409
    assert "no run is going on" in refused.json()["error"]
    assert site.stop("0" * 12).status_code == 404
    assert told.pids == [os.getpid()]


# -- what can go wrong, and how much there may be


def test_hostile_runs_are_shown_and_end_nothing(serve: Serve, write_run: WriteRun, tmp_path: Path) -> None:
    hostile = write_run("<img src=x onerror=alert(1)>\u202e\nx")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff\xfe"))
    shutil.copytree(hostile, odd)
    torn = write_run("torn")
    garbage = b'\xff{"step": 1e999}\n[[[\n{"step": 2, "loss": NaN, "epoch": {}}\n{"st'
    for name in ("metrics.jsonl", "samples.jsonl", "config.json", "status.json", "diagnosis.json", "log.txt"):
        (torn / name).write_bytes(garbage)
    (tmp_path / "loop").symlink_to(tmp_path)
    site = serve()
    site.wait_for_runs(3)
    for folder in (hostile, odd, torn):
        for path in (f"/api/run/{run_id(folder)}", f"/run/{run_id(folder)}"):
            assert site.get(path).status_code == 200
    assert site.get(f"/figure/{run_id(hostile)}/loss.svg").status_code == 200


def test_two_hundred_runs(serve: Serve, write_run: WriteRun, tmp_path: Path) -> None:
    first = write_run("runs/0", steps=200, state="finished")
    for i in range(1, 200):
        shutil.copytree(first, tmp_path / "runs" / str(i))
    began = time.process_time()
    site = serve()
    answer = site.wait_for_runs(200, 60)
    assert time.process_time() - began < 15
    assert len(json.dumps(answer)) < 1_000_000
    began = time.process_time()
    time.sleep(1.0)
    assert site.runs(answer["version"], answer["born"])["rows"] == []
    assert time.process_time() - began < 1.0  # looked at 20 times as often as it is


def test_a_run_of_many_steps(serve: Serve, write_run: WriteRun) -> None:
    folder = write_run(state="finished")
    append(folder / "metrics.jsonl", *(line(i) for i in range(41, 30_001)))
    site = serve()
    answer = site.wait_for_runs(1)
    assert answer["rows"][0]["step"] == "30000/60"
    assert len(answer["rows"][0]["spark"][0]) <= 60
    began = time.process_time()
    assert len(site.get(f"/figure/{run_id(folder)}/loss.svg").content) < 400_000
    assert time.process_time() - began < 10


def test_nobody_looking_costs_nothing(write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection_module, "_ASLEEP_S", 0.1)
    folder = write_run()
    looks = []
    collection = Collection([tmp_path])
    monkeypatch.setattr(Collection, "look", lambda self: looks.append(1) or False)
    collection.start()
    time.sleep(0.8)
    n = len(looks)
    time.sleep(0.6)
    assert len(looks) == n
    collection.asked()
    time.sleep(0.5)
    assert len(looks) > n
    collection.end()
    assert collection.entry(run_id(folder)) is not None


# -- the command


def board_command(*arguments: object) -> list[str]:
    return [*GGTUNE, "board", *map(str, arguments)]


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 0), ("SIGTERM", 143)])
def test_signals_end_it(write_run: WriteRun, tmp_path: Path, name: str, status: int) -> None:
    write_run()
    pipe = subprocess.PIPE
    command = board_command(tmp_path, "--port", 0, "--allow-stop")
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("The board is at http://127.0.0.1:")
        url, _, token = first.split()[-1].partition("#token=")
        assert len(token) >= 40
        with httpx.Client(trust_env=False) as client:
            assert client.get(url).status_code == 200
            process.send_signal(getattr(signal, name))
            assert process.wait(timeout=20) == status
        rest, errors = process.communicate()
    assert "Traceback" not in errors
    assert ("The board has ended; runs go on." in rest) == (status == 0)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["board", *map(str, arguments)])


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = invoke(tmp_path, "--port", port)
    assert result.exit_code == 1
    assert f"can't take port {port} of 127.0.0.1: something listens there already" in result.stderr
    assert "--port 0" in result.stderr


def test_wrong_arguments(tmp_path: Path) -> None:
    missing = invoke(tmp_path / "none")
    assert missing.exit_code == 1
    assert "there is no such folder" in missing.stderr
    nowhere = invoke(tmp_path, "--host", "203.0.113.7", "--port", 0)
    assert nowhere.exit_code == 1
    assert "this machine has no such address" in nowhere.stderr
    assert invoke("--port", 70000).exit_code == 2


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "starlette", None)
    result = invoke(tmp_path)
    assert result.exit_code == 1
    assert "ggtune[board]" in result.stderr
    assert "starlette" in result.stderr


def test_others_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Board, "wait", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    result = invoke(tmp_path, "--host", "0.0.0.0", "--port", 0)
    assert result.exit_code == 0
    assert "everybody who reaches this machine can read your runs" in result.stderr
    assert "warning" not in invoke(tmp_path, "--port", 0).stderr


def test_the_token_is_on_no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    assert open_in_browser("http://127.0.0.1:1/", secret=False)
    assert open_in_browser("http://127.0.0.1:1/#token=secret", secret=True)
    assert opened[0] == "http://127.0.0.1:1/"
    page = Path(opened[1].removeprefix("file://"))
    assert "secret" not in opened[1]
    assert "#token=secret" in page.read_text()
    assert page.stat().st_mode & 0o077 == 0
    page.unlink()
