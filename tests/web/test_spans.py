"""OpenTelemetry: off without its variables; else a span for each batch, linked to the producers."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from faust_batches import PartitionLost
from faust_batches.testing import FakeBatch, FakeRecord
from shopflow.web.monitoring import spans
from shopflow.web.monitoring.spans import MOST_LINKS, SWITCHES, traced

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01".encode()


@contextmanager
def plain(batch: Any) -> Iterator[None]:
    """A hook that does nothing."""
    yield


def record(offset: int, *headers: tuple[str, bytes]) -> FakeRecord:
    return FakeRecord(b"k", b"v", offset, 2, "shop.purchases", headers=headers)


@pytest.fixture
def provider() -> Any:
    """A provider whose spans stay in memory, as `finished`."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    simple = pytest.importorskip("opentelemetry.sdk.trace.export")
    made, exporter = sdk.TracerProvider(), export.InMemorySpanExporter()
    made.add_span_processor(simple.SimpleSpanProcessor(exporter))
    made.finished = exporter.get_finished_spans
    return made


@pytest.mark.parametrize("variables", [{}, {SWITCHES[0]: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}])
def test_it_is_off_unless_a_variable_says_where_spans_go(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """Off, a batch runs in the same hook as before, and nothing of OpenTelemetry is imported."""
    for name in (*SWITCHES, "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)  # type: ignore[arg-type]
    assert traced(plain, "shop") is plain


def test_without_the_extra_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A variable that has no effect is told, once, at the start."""
    monkeypatch.setenv(SWITCHES[0], "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        assert traced(plain, "shop") is plain
    assert "pip install 'shopflow[otel]'" in caplog.text


def test_a_batch_is_one_span_with_links_to_its_producers(provider: Any) -> None:
    """Each producer is linked once; a header that is no traceparent is passed over."""
    records = [
        record(5, ("traceparent", PARENT)),
        record(6, ("traceparent", PARENT), ("ce_id", b"1")),
        record(7, ("traceparent", b"\xff")),
        record(8, ("traceparent", PARENT.replace(b"b7", b"b8", 1))),
        record(9),
    ]
    with spans.spans(plain, provider)(FakeBatch(records)):  # type: ignore[arg-type]
        pass
    (span,) = provider.finished()
    assert span.name == "process shop.purchases"
    assert {f"{link.context.trace_id:032x}" for link in span.links} == {TRACE}
    assert [f"{link.context.span_id:016x}" for link in span.links] == [SPAN, "b8" + SPAN[2:]]
    assert (span.attributes["messaging.kafka.offset"], span.attributes["messaging.batch.message_count"]) == (5, 5)
    assert span.status.is_ok


def test_the_links_are_bounded(provider: Any) -> None:
    """A batch has thousands of records."""
    records = [record(number, ("traceparent", f"00-{TRACE}-{number + 1:016x}-01".encode())) for number in range(300)]
    with spans.spans(plain, provider)(FakeBatch(records)):  # type: ignore[arg-type]
        pass
    (span,) = provider.finished()
    assert len(span.links) == MOST_LINKS


@pytest.mark.parametrize(("error", "good"), [(ValueError("a bug"), False), (PartitionLost("revoked"), True)])
def test_a_failed_attempt_is_told(provider: Any, error: Exception, good: bool) -> None:
    """An error is in the span; a partition that was lost is none. Both reach the agent, and the hook before."""
    seen: list[Exception] = []

    @contextmanager
    def watching(batch: Any) -> Iterator[None]:
        try:
            yield
        except Exception as found:
            seen.append(found)
            raise

    with pytest.raises(type(error)), spans.spans(watching, provider)(FakeBatch([record(1)])):  # type: ignore[arg-type]
        raise error
    (span,) = provider.finished()
    assert (seen, span.status.status_code.name == "ERROR", bool(span.events)) == ([error], not good, not good)
    assert span.attributes.get("shopflow.partition_lost", False) is good


def test_spans_reach_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of OpenTelemetry decide where spans go, and under which name."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    trace = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    got: list[bytes] = []
    arrived = threading.Event()

    class Collector(BaseHTTPRequestHandler):
        """Takes one request."""

        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            arrived.set()

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv(SWITCHES[0], f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "my-shop")
        with traced(plain, "shop")(FakeBatch([record(1, ("traceparent", PARENT))])):  # type: ignore[arg-type]
            pass
        assert arrived.wait(10)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    (sent,) = trace.ExportTraceServiceRequest.FromString(got[0]).resource_spans
    assert {one.key: one.value.string_value for one in sent.resource.attributes}["service.name"] == "my-shop"
    assert sent.scope_spans[0].spans[0].links[0].span_id.hex() == SPAN
