"""The application: what it publishes, which settings can change late, and which defaults differ from Faust's."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from faust.exceptions import SameNode
from faust.web.exceptions import ServiceUnavailable

from faust_batches import App
from faust_batches.app import PINNED, SETTINGS, Settings
from faust_batches.testing import FakeBatch, FakeRecord


class Builder:
    """A fake of aiokafka's BatchBuilder with room for two records of at most 100 bytes."""

    def __init__(self) -> None:
        self.rows: list[tuple[bytes, bytes]] = []

    def append(self, *, key: bytes, value: bytes, timestamp: None) -> object | None:
        if len(self.rows) == 2 or len(value) > 100:
            return None
        self.rows.append((key, value))
        return object()

    def record_count(self) -> int:
        return len(self.rows)


class Producer:
    """A fake producer whose records are all acknowledged."""

    def __init__(self) -> None:
        self.sent: list[list[tuple[bytes, bytes]]] = []

    def create_batch(self) -> Builder:
        return Builder()

    async def send_batch(self, batch: Builder, topic: str, *, partition: int) -> Awaitable[Any]:
        offset = 100 + sum(map(len, self.sent))
        self.sent.append(batch.rows)

        async def acknowledged() -> Any:
            return SimpleNamespace(offset=offset)

        return acknowledged()


@pytest.fixture
def app(tmp_path: Path) -> App:
    """A Faust application that is never started."""
    return App("test", broker="kafka://127.0.0.1:1", datadir=str(tmp_path))


def test_publish_fills_batches_and_returns_the_last_offset(app: App) -> None:
    """Many rows take few requests."""
    producer = Producer()
    app.producer = SimpleNamespace(_producer=producer)  # type: ignore[assignment]
    rows = [(b"k%d" % number, b"v") for number in range(5)]
    assert asyncio.run(app.publish("topic", 0, rows)) == 104
    assert producer.sent == [rows[:2], rows[2:4], rows[4:]]


@pytest.mark.parametrize("lost", [0, 1])
def test_the_last_row_is_in_the_log_only_if_all_others_are(app: App, lost: int) -> None:
    """It has the sums over a table's rows: if a worker dies after a publish that failed in part, no sum is ahead."""

    class Losing(Producer):
        """A fake producer that loses one batch."""

        async def send_batch(self, batch: Builder, topic: str, *, partition: int) -> Awaitable[Any]:
            delivery = await super().send_batch(batch, topic, partition=partition)
            if len(self.sent) != lost + 1:
                return delivery
            await delivery
            failed = asyncio.get_running_loop().create_future()
            failed.set_exception(KafkaConnectionError("away"))
            return failed

    producer = Losing()
    app.producer = SimpleNamespace(_producer=producer)  # type: ignore[assignment]
    rows = [(b"k%d" % number, b"v") for number in range(5)]
    with pytest.raises(KafkaConnectionError):
        asyncio.run(app.publish("topic", 0, rows))
    assert producer.sent == [rows[:2], rows[2:4]]


def test_publish_refuses_a_record_larger_than_a_batch(app: App) -> None:
    """A record that fits into no batch would make it send empty batches for ever."""
    app.producer = SimpleNamespace(_producer=Producer())  # type: ignore[assignment]
    with pytest.raises(ValueError, match="larger than a Kafka batch"):
        asyncio.run(app.publish("topic", 0, [(b"k", b"v" * 101)]))


def test_the_servers_addresses_can_be_set_after_import(app: App) -> None:
    """The embedded Kafka gets its port at its start. Faust must neither warn nor keep the old address."""
    before = app.transport
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app.reconfigure(broker="kafka://127.0.0.1:2", broker_consumer="kafka://127.0.0.1:2")
    assert app.transport is not before
    assert [url.port for url in app.conf.broker] == [2]


class FailingProducer(Producer):
    """A fake producer whose batches all fail on their way."""

    async def send_batch(self, batch: Builder, topic: str, *, partition: int) -> Awaitable[Any]:
        delivery = asyncio.get_running_loop().create_future()
        delivery.set_exception(KafkaConnectionError("away"))
        self.sent.append(batch.rows)
        return delivery


def test_a_publish_that_fails_is_one_error(app: App, caplog: pytest.LogCaptureFixture) -> None:
    """asyncio logs a traceback for each failure that is not retrieved."""
    app.producer = SimpleNamespace(_producer=FailingProducer())  # type: ignore[assignment]
    with pytest.raises(KafkaConnectionError):
        asyncio.run(app.publish("topic", 0, [(b"k%d" % number, b"v") for number in range(5)]))
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


def test_one_record_is_sent_with_its_headers(app: App) -> None:
    """A record with neither key nor value is sent too: a dead letter has the bytes of its record."""
    sent: list[Any] = []

    class One:
        def append(self, **fields: Any) -> object:
            sent.append(fields)
            return object()

    class OneProducer:
        def create_batch(self) -> One:
            return One()

        async def send_batch(self, batch: One, topic: str, *, partition: int) -> Awaitable[Any]:
            sent.append((topic, partition))
            return asyncio.sleep(0, "acknowledged")

    app.producer = SimpleNamespace(_producer=OneProducer())  # type: ignore[assignment]

    async def send() -> Any:
        return await (await app.send_record("dead", 2, None, None, [("why", b"x")]))

    assert asyncio.run(send()) == "acknowledged"
    assert sent == [{"key": None, "value": None, "timestamp": None, "headers": [("why", b"x")]}, ("dead", 2)]


def test_the_settings_that_batches_need_are_the_defaults(tmp_path: Path) -> None:
    """An application's own settings override these defaults."""
    app = App("test", broker="kafka://127.0.0.1:1", datadir=str(tmp_path), broker_max_poll_records=7)
    wanted = {**SETTINGS, "broker_max_poll_records": 7}
    assert {name: getattr(app.conf, name) for name in wanted} == wanted


#: A value for each type of a setting that is none of the values that matter here.
ODD = {"PROCESSING_GUARANTEE": "exactly_once", "APP_STORE": "memory://", "APP_ID_FORMAT": "odd", "APP_VERSION": "7"}


@pytest.mark.parametrize("name", sorted(PINNED))
def test_a_variable_that_would_break_the_promise_has_no_effect(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In Faust, a variable overrides what the program sets: PRODUCER_ACKS=0 would lose acknowledged counts."""
    (setting,) = [key for key, param in Settings.SETTINGS.items() if param.env_name == name]
    before = getattr(App("plain", store="memory://").conf, setting)
    monkeypatch.setenv(name, ODD.get(name, "1"))
    conf: Any = App("plain", store="memory://").conf
    assert getattr(conf, setting) == before
    assert conf.ignored == [name]


def test_other_variables_of_faust_keep_their_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_PROCESSING_TIMEOUT", "11")
    conf: Any = App("plain", store="memory://").conf
    assert conf.stream_processing_timeout == 11
    assert conf.ignored == []


@pytest.mark.parametrize("serving", [True, False])
def test_a_view_of_a_table_answers_only_while_the_table_is_complete(
    app: App, monkeypatch: pytest.MonkeyPatch, serving: bool
) -> None:
    """A worker that starts, or whose partitions change hands, answers 503, and not what a part of the table has."""
    monkeypatch.setattr(App, "serving", serving)

    async def route(*args: Any) -> None:
        raise SameNode

    monkeypatch.setattr(app.router, "route_req", route)
    table = app.exactly_once_table("totals", value=None, source="rides")

    @app.table_route(table=table, match_info="bike")
    async def bikes(view: Any, request: Any, bike: str) -> str:
        return f"total of {bike}"

    request = SimpleNamespace(match_info={"bike": "red"})
    if serving:
        assert asyncio.run(bikes(SimpleNamespace(web=None), request, bike="red")) == "total of red"
    else:
        with pytest.raises(ServiceUnavailable):
            asyncio.run(bikes(SimpleNamespace(web=None), request, bike="red"))


def test_a_test_can_handle_a_batch_as_a_worker_does(app: App) -> None:
    """The agent's `handle` runs the handler in the batch's turn, and finishes the batch."""
    handled: list[int] = []

    @app.batch_agent("rides")
    async def rides(batch: Any) -> None:
        handled.append(batch.start)
        assert batch.events == ["turn"]

    batch = FakeBatch([FakeRecord(b"k", b"v", 7)])
    asyncio.run(rides.handle(batch))
    assert (handled, batch.finished) == ([7], True)
