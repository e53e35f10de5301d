"""OpenTelemetry: a span for each batch, with links to the spans of the records' producers.

It is off, and costs nothing, unless a variable of OpenTelemetry names where spans go and the extra `otel` is installed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any

from faust_batches import Batch, PartitionLost

log = logging.getLogger(__name__)

OnBatch = Callable[[Batch], AbstractContextManager[None]]

#: One of these says where spans go. OpenTelemetry's SDK reads them, and its other variables, itself.
SWITCHES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
#: Producers that a span is linked to: a backend does not keep more.
MOST_LINKS = 128


def traced(on_batch: OnBatch, app_id: str) -> OnBatch:
    """The hook `App.on_batch`, which also makes spans; the same hook if OpenTelemetry is off.

    Arguments:
        app_id: The service's name, unless OTEL_SERVICE_NAME has one.
    """
    if not any(map(os.environ.get, SWITCHES)) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return on_batch
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        log.warning("%s is set, but no spans are sent without the extra: pip install 'shopflow[otel]'", SWITCHES[0])
        return on_batch
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": app_id}
    provider = TracerProvider(resource=Resource.create(named))  # sends what is left when the process ends
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return spans(on_batch, provider)


def spans(on_batch: OnBatch, provider: Any) -> OnBatch:
    """The hook that also makes spans with this `TracerProvider`: one for each attempt to handle a batch."""
    from opentelemetry.trace import Link, SpanKind, Status, StatusCode, get_current_span  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    tracer, propagator = provider.get_tracer("shopflow"), TraceContextTextMapPropagator()

    def links(batch: Batch) -> Iterator[Any]:
        """The producers' spans, each once."""
        known = set()
        for record in batch.records:
            for name, value in record.headers:
                if name == "traceparent" and value not in known:
                    known.add(value)
                    told = {"traceparent": (value or b"").decode("ascii", "replace")}
                    context = get_current_span(propagator.extract(told)).get_span_context()
                    if context.is_valid:
                        yield Link(context)

    @contextmanager
    def each(batch: Batch) -> Iterator[None]:
        told = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.destination.name": batch.tp.topic,
            "messaging.destination.partition.id": str(batch.tp.partition),
            "messaging.kafka.offset": batch.start,
            "messaging.batch.message_count": len(batch.records),
        }
        span = tracer.start_span(
            f"process {batch.tp.topic}",
            kind=SpanKind.CONSUMER,
            attributes=told,
            links=list(islice(links(batch), MOST_LINKS)),
        )
        try:
            with on_batch(batch):
                yield
        except PartitionLost:
            span.set_attribute("shopflow.partition_lost", True)
            raise
        except Exception as error:
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, str(error)))
            raise
        finally:
            span.end()

    return each
