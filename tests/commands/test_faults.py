"""The faults of a demo: who can press a button, what can be broken, and what is shown."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import ClientSession, DummyCookieJar
from aiohttp.test_utils import TestServer

from shopflow.app import app, discover
from shopflow.commands import faults as module
from shopflow.commands.faults import FAULTS, Faults, State, sentence
from shopflow.commands.faults_page import application
from shopflow.config.settings import Config
from shopflow.errors import Refused
from shopflow.operations.verify.report import Check, Report
from shopflow.servers.servers import Servers
from tests.docs.test_architecture import MODULES, imports
from tests.support.shop import free_port

TOKEN = "a-random-token"  # noqa: S105


class Process:
    """A worker that only remembers what was done to it."""

    url = "http://127.0.0.1:6066"

    def __init__(self) -> None:
        self.done: list[Any] = []

    def kill(self) -> None:
        self.done.append("kill")

    def start(self) -> None:
        self.done.append("start")

    def send(self, number: int) -> None:
        self.done.append(number)


class OwnServers:
    """Servers of which the demo started some."""

    def __init__(self, *own: str) -> None:
        self.own = own


def made(*own: str, said: Callable[[str], None] = lambda _: None) -> Faults:
    """Faults of a demo with two workers that started these servers."""
    workers: Any = [Process(), Process()]
    servers: Any = OwnServers(*own)
    trading: Any = None
    bootstrap: Any = None
    return Faults(bootstrap, workers, servers, trading, said)


# -- only in the demo


def test_only_the_demo_has_the_faults() -> None:
    """No worker serves a button, and no other module imports one: only `demo` does, when it is asked to."""
    importers = {one for one in MODULES for found, _ in imports(one) if found.startswith("shopflow.commands.faults")}
    assert importers == {"shopflow.commands.demo", "shopflow.commands.faults_page"}
    discover()
    assert not any("fault" in path or "kill" in path for path in app.web.views)  # type: ignore[attr-defined]


def ask(method: str, path: str, headers: dict[str, str]) -> tuple[int, list[str], str]:
    """The status of a request to a demo's page, the faults that were pressed, and the text."""
    pressed: list[str] = []
    faults = made("kafka", "mongodb")
    faults.press = lambda name: pressed.append(name) is None  # type: ignore[method-assign]
    port = free_port()

    async def go() -> tuple[int, str]:
        server = TestServer(application(faults, f"127.0.0.1:{port}", TOKEN), host="127.0.0.1", port=port)
        async with server, ClientSession(cookie_jar=DummyCookieJar()) as client:
            told = {name: value.format(port=port) for name, value in headers.items()}
            url = f"http://127.0.0.1:{port}{path}"
            async with client.request(method, url, headers=told, allow_redirects=False) as answer:
                return answer.status, await answer.text()

    status, text = asyncio.run(go())
    return status, pressed, text


OURS = {"Origin": "http://127.0.0.1:{port}"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", f"/{TOKEN}/", {}, 200),
        ("POST", f"/{TOKEN}/kill-worker", OURS, 303),
        ("GET", "/", {}, 404),
        ("GET", "/another-token/", {}, 404),
        ("POST", "/kill-worker", OURS, 404),
        ("POST", "/another-token/kill-worker", OURS, 404),
        ("POST", f"/{TOKEN}/format-the-disk", OURS, 404),
        ("GET", f"/{TOKEN}/kill-worker", {}, 405),
        ("POST", f"/{TOKEN}/kill-worker", {}, 403),
        ("POST", f"/{TOKEN}/kill-worker", {"Origin": "null"}, 403),
        ("POST", f"/{TOKEN}/kill-worker", {"Origin": "http://evil.example"}, 403),
        ("POST", f"/{TOKEN}/kill-worker", {"Origin": "http://127.0.0.1:1"}, 403),
        ("GET", f"/{TOKEN}/", {"Host": "evil.example:{port}"}, 421),
        ("POST", f"/{TOKEN}/kill-worker", {**OURS, "Host": "evil.example"}, 421),
    ],
)
def test_only_the_page_itself_presses_a_button(method: str, path: str, headers: dict[str, str], status: int) -> None:
    """A web site knows neither the token nor can it be the page; a GET does nothing."""
    found, pressed, _ = ask(method, path, headers)
    assert (found, pressed) == (status, ["kill-worker"] if status == 303 else [])


# -- what can be broken


def test_a_server_of_others_is_not_stopped() -> None:
    """The demo stops what it started, and nothing else; the button says so."""
    faults = made("mongodb")
    assert faults.refusal("stop-kafka") == "this demo did not start Kafka, so it does not stop it"
    assert [name for name in FAULTS if faults.refusal(name)] == ["stop-kafka"]
    assert not faults.press("stop-kafka")
    with pytest.raises(Refused, match="this process did not start kafka"):
        Servers(Config()).outage("kafka", 0, threading.Event())


def test_one_fault_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second button does nothing until the first fault has ended; a worker that was killed is started again."""
    monkeypatch.setattr(module, "_KILLED_SECONDS", 0.0)
    said: list[str] = []
    faults = made("kafka", "mongodb", said=said.append)

    async def quiet() -> None:
        return

    monkeypatch.setattr(faults, "_drained", quiet)
    monkeypatch.setattr(faults, "_judge", quiet)

    async def go() -> None:
        assert faults.press("kill-worker")
        assert not faults.press("freeze-worker")
        assert faults._pressed is not None
        await faults._pressed
        assert faults.doing == ""

    asyncio.run(go())
    worker: Any = faults.workers[0]
    assert worker.done == ["kill", "start"]
    assert [line[10:] for line in said] == ["Worker 1 is killed (kill -9).", "Worker 1 is started again."]


# -- what is shown


def test_what_changes_is_told_once() -> None:
    """Whose the partitions are, and that the events that waited are handled. What does not answer is no change."""
    said: list[str] = []
    faults = made(said=said.append)
    for partitions, waiting in (
        ([[0, 1], [2, 3]], 3),
        ([None, [2, 3]], 50),
        ([None, [0, 1, 2, 3]], 120),
        ([None, [0, 1, 2, 3]], None),
        ([[], [0, 1, 2, 3]], 5),
        ([[0], [1, 2, 3]], 5),
    ):
        before, faults.state = faults.state, State(partitions, waiting)
        faults._compare(before)
    assert [line[10:] for line in said] == [
        "Worker 1 has partitions 0, 1.",
        "Worker 2 has partitions 2, 3.",
        "Worker 2 has partitions 0, 1, 2, 3.",
        "The events that waited are handled; at most 120 did.",
        "Worker 1 has partition 0.",
        "Worker 2 has partitions 1, 2, 3.",
    ]


def test_the_page_says_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does not answer, and a Kafka that is away, are told so; texts are never HTML."""
    faults = made("mongodb")
    faults.doings[0] = "killed"
    faults.lines.append("<script>")
    monkeypatch.setattr("tests.commands.test_faults.made", lambda *own: faults)
    status, _, text = ask("GET", f"/{TOKEN}/", {})
    assert status == 200
    assert "killed, does not answer" in text
    assert "not known: Kafka does not answer" in text
    assert "<li>&lt;script&gt;</li>" in text
    assert text.count(" disabled") == 1
    assert 'href="http://127.0.0.1:6066/"' in text


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (0, "verify: all agree."),
        (1, "verify: they differ. lag: 5 wait"),
        (2, "verify could not tell. lag: 5 wait"),
    ],
)
def test_the_verdict_has_the_sum(status: int, verdict: str) -> None:
    """What was sent is counted, repeated or rejected; what was counted is stored."""
    report = Report(
        status, {"purchases": 1010}, {"purchases": 1000}, {"purchases": 1000, "duplicates": 7, "rejected": 3}
    )
    report.checks.append(Check("lag", status == 0, "5 wait"))
    sums = "1\xa0010 sent = 1\xa0000 counted + 7 repeated + 3 rejected; 1\xa0000 stored."
    assert sentence(report) == f"{sums} {verdict}"
