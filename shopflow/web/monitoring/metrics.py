"""The metrics for Prometheus, each declared once with its meaning. Counted once a batch, never once a record."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from time import monotonic, time
from typing import Any

import faust
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from faust_batches import App, Batch, Outage
from shopflow.errors import PartitionLost, Unavailable
from shopflow.kafka.lag import Lags
from shopflow.kafka.offsets import Partition
from shopflow.shop.failure_limit import Limit

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each

#: Prometheus' text format.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_RECORDS = (1, 10, 100, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 100_000)
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LONG_SECONDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0)
_METHODS = {"GET", "HEAD", "POST"}


class Metrics:
    """All metrics of a worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        #: Batches begun and done in each partition, counted together.
        self.activity: Counts[Partition] = Counts()

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(name, meaning, labels, registry=registry)

        def histogram(name: str, meaning: str, *labels: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
            return Histogram(name, meaning, labels, buckets=buckets, registry=registry)

        self.batch_records = histogram(
            "shopflow_batch_records", "Records of a batch that was finished.", "topic", buckets=_RECORDS
        )
        self.batch_seconds = histogram(
            "shopflow_batch_duration_seconds",
            "Time from the start of a batch until it is finished: stored and counted.",
            "topic",
        )
        self.batch_failures = counter(
            "shopflow_batch_failures",
            "Attempts to handle a batch that failed by an error of the program; each is repeated.",
            "topic",
        )
        self.write_seconds = histogram(
            "shopflow_mongodb_write_duration_seconds", "A write to MongoDB, until it is in the journal.", "collection"
        )
        self.documents = counter(
            "shopflow_documents",
            "Documents of events, by outcome; a redelivered batch is counted again.",
            *("collection", "outcome"),
        )
        self.dead_letters = counter(
            "shopflow_dead_letters", "Rejected records, by topic and reason.", "topic", "reason"
        )
        self.rebalance_seconds = histogram(
            "shopflow_rebalance_duration_seconds",
            "Time from the revocation of partitions until the work goes on.",
            buckets=_LONG_SECONDS,
        )
        self.recovery_seconds = histogram(
            "shopflow_recovery_duration_seconds",
            "The part of a rebalance in which tables are recovered from their changelogs.",
            buckets=_LONG_SECONDS,
        )
        self.loop_delay_seconds = histogram(
            "shopflow_event_loop_delay_seconds", "How late the event loop runs what is due, measured every second."
        )
        self.http_seconds = histogram(
            "shopflow_http_request_duration_seconds", "HTTP requests, until the answer begins.", "view"
        )
        self.http_requests = counter(
            "shopflow_http_requests", "HTTP requests; status 499: the client has left.", "view", "method", "status"
        )
        self.is_ready = Gauge("shopflow_ready", "1 when /health/ready answers 200, else 0.", registry=registry)
        self.is_live = Gauge("shopflow_live", "1 when /health/live answers 200, else 0.", registry=registry)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

    def watch(self, app: App, lags: Lags, limit: Limit, mongodb: Outage) -> None:
        """Also report values that are read at each request of Prometheus. Call it once."""
        self.registry.register(_Reading(app, lags, limit, mongodb))

    def text(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return generate_latest(self.registry)

    @contextmanager
    def batch(self, batch: Batch) -> Iterator[None]:
        """Time and count a try of a batch (`App.on_batch`)."""
        topic = batch.tp.topic
        self.activity[batch.tp] += 1
        began = monotonic()
        try:
            yield
        except (PartitionLost, Unavailable):
            raise
        except Exception:
            self.batch_failures.labels(topic).inc()
            raise
        self.activity[batch.tp] += 1
        self.batch_seconds.labels(topic).observe(monotonic() - began)
        self.batch_records.labels(topic).observe(len(batch.records))

    def wrote(self, collection: str, seconds: float, outcomes: Mapping[str, int]) -> None:
        """Count a successful write to MongoDB, and its documents by outcome (`MongoStore.on_write`)."""
        self.write_seconds.labels(collection).observe(seconds)
        for outcome, count in outcomes.items():
            if count:
                self.documents.labels(collection, outcome).inc(count)

    def rejected(self, topic: str, reason: str, count: int) -> None:
        """Count rejected records of a topic."""
        self.dead_letters.labels(topic, reason).inc(count)

    def answered(self, view: str, method: str, status: int, seconds: float) -> None:
        """Count an HTTP request by its answer."""
        self.http_requests.labels(view, method if method in _METHODS else "other", str(status)).inc()
        self.http_seconds.labels(view).observe(seconds)


class Rebalances(faust.Sensor):
    """Measures the rebalances, and the recovery of tables in them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        super().__init__()

    def on_rebalance_start(self, app: Any) -> dict[str, float]:
        return {"start": monotonic()}

    def on_rebalance_return(self, app: Any, state: dict[str, float]) -> None:
        """The partitions are assigned; the recovery begins."""
        state["return"] = monotonic()

    def on_rebalance_end(self, app: Any, state: dict[str, float]) -> None:
        """The tables are recovered; the work goes on."""
        now = monotonic()
        self._metrics.rebalance_seconds.observe(now - state["start"])
        if "return" in state:
            self._metrics.recovery_seconds.observe(now - state["return"])


class _Reading(Collector):
    def __init__(self, app: App, lags: Lags, limit: Limit, mongodb: Outage) -> None:
        self._app, self._lags, self._limit, self._mongodb = app, lags, limit, mongodb

    def collect(self) -> Iterator[Metric]:
        yield from self._partitions()
        yield from self._servers()
        yield from self._state()
        yield from self._faust()

    def _partitions(self) -> Iterable[Metric]:
        lags = self._lags
        labels = ["topic", "partition"]
        waiting = GaugeMetricFamily(
            "shopflow_consumer_lag_records", "Records of an owned partition that are not committed yet.", labels=labels
        )
        committed = GaugeMetricFamily(
            "shopflow_committed_offset", "The group's committed offset in an owned partition.", labels=labels
        )
        end = GaugeMetricFamily(
            "shopflow_end_offset",
            "The last stable offset of an owned partition: readers of committed records stop there.",
            labels=labels,
        )
        high = GaugeMetricFamily(
            "shopflow_high_watermark_offset",
            "The high watermark of an owned partition; more than the end offset while a transaction is open.",
            labels=labels,
        )
        assigned = Counts(dict.fromkeys(self._app.batched_topics, 0))
        for tp in self._app.owned:
            assigned[tp.topic] += 1
            if span := lags.spans.get(tp):
                values = [tp.topic, str(tp.partition)]
                waiting.add_metric(values, lags.waiting(tp) + span.held)
                committed.add_metric(values, span.done)
                end.add_metric(values, span.end)
                high.add_metric(values, span.high)
        owned = GaugeMetricFamily("shopflow_assigned_partitions", "Partitions that this worker owns.", labels=["topic"])
        for topic, count in sorted(assigned.items()):
            owned.add_metric([topic], count)
        age = GaugeMetricFamily(
            "shopflow_offsets_age_seconds", "The age of the lag and the offsets, which are read every few seconds."
        )
        if lags.age is not None:
            age.add_metric([], lags.age)
        return waiting, committed, end, high, owned, age

    def _servers(self) -> Iterable[Metric]:
        away = GaugeMetricFamily("shopflow_server_away", "1 while a server is away, else 0.", labels=["server"])
        seconds = GaugeMetricFamily(
            "shopflow_server_away_seconds", "How long a server has been away; 0 when it is not.", labels=["server"]
        )
        refuses = GaugeMetricFamily(
            "shopflow_server_refuses",
            "1 while a server refuses requests until somebody changes its configuration, else 0.",
            labels=["server"],
        )
        retries = CounterMetricFamily(
            "shopflow_retries",
            "Requests that a server did not answer, or refused for now; each is made again.",
            labels=["server"],
        )
        for outage in (self._mongodb, self._app.kafka_outage):
            server, gone = [outage.service.lower()], outage.seconds
            away.add_metric(server, gone is not None)
            seconds.add_metric(server, gone or 0.0)
            refuses.add_metric(server, outage.refuses)
            retries.add_metric(server, outage.failures)
        return away, seconds, refuses, retries

    def _state(self) -> Iterable[Metric]:
        serving = GaugeMetricFamily(
            "shopflow_serving",
            "1 when this worker's tables are complete; 0 while partitions move or tables recover.",
            value=float(self._app.serving),
        )
        stopped = GaugeMetricFamily(
            "shopflow_topic_stopped",
            "1 when a topic is stopped because too many of its records were rejected.",
            labels=["topic"],
        )
        trouble = GaugeMetricFamily(
            "shopflow_trouble_seconds",
            "How long a trouble has lasted; absent without one.",
            labels=["kind", "subject", "stops"],
        )
        for found in self._app.troubles.present:
            trouble.add_metric([found.kind, found.subject, str(found.stops).lower()], max(time() - found.since, 0.0))
        held = self._limit.stopped
        for topic in sorted(self._app.batched_topics):
            stopped.add_metric([topic], topic in held)
        return serving, stopped, trouble

    def _faust(self) -> Iterable[Metric]:
        monitor = self._app.monitor
        received = CounterMetricFamily(
            "shopflow_faust_messages_received",
            "What Faust's consumer delivered: batches, and changelog records.",
            labels=["topic"],
        )
        for topic, count in sorted(monitor.messages_received_by_topic.items()):
            received.add_metric([topic], count)
        return (
            received,
            CounterMetricFamily("shopflow_faust_events", "Events that Faust's streams handled.", monitor.events_total),
            CounterMetricFamily("shopflow_faust_rebalances", "Rebalances that Faust began.", monitor.rebalances or 0),
            CounterMetricFamily(
                "shopflow_faust_assignments_failed", "Assignments that failed.", monitor.assignments_failed
            ),
            _mean("shopflow_faust_event_seconds", "The average time of Faust's last events.", monitor.events_runtime),
            _mean("shopflow_faust_commit_seconds", "The average time of Faust's last commits.", monitor.commit_latency),
        )


def _mean(name: str, meaning: str, values: Collection[float]) -> Metric:
    return GaugeMetricFamily(name, meaning, fmean(values) if values else 0.0)
