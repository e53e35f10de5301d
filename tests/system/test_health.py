"""Probes and metrics of a worker whose servers are frozen and killed: what they say, how soon, and the end of it."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import OpenShop
from tests.faults.crew import Server
from tests.support.shop import Record, Shop, Worker, becomes, own_servers, purchase, until

pytestmark = pytest.mark.servers

#: A probe is answered within this time, whichever server is away.
_ANSWER_SECONDS = 4.0
_BACK_SECONDS = 90.0


class Own:
    """A shop with a Kafka and a MongoDB of its own, and one worker."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.servers = {kind: Server(shop, kind) for kind in ("kafka", "mongodb")}
        self.worker: Worker = shop.start_worker().ready()


@pytest.fixture(scope="module")
def own(open_shop: OpenShop) -> Iterator[Own]:
    """One shop for the tests of this module, in their order. Each leaves it in order, except the one that stops it."""
    with open_shop(**own_servers("kafka", "mongodb")) as shop:
        yield Own(shop)


def probe(worker: Worker, name: str) -> tuple[int, list[str]]:
    """Status and reasons of a probe. An answer that takes long is a failure."""
    began = time.monotonic()
    status, answer = worker.get(f"/health/{name}")
    assert time.monotonic() - began < _ANSWER_SECONDS
    if status == 0:  # the worker is still starting
        return status, [answer]
    if status == 200:
        assert answer == {"status": name}
        return status, []
    assert answer["status"] == f"not {name}"
    return status, answer["reasons"]


def scraped(worker: Worker) -> dict[str, Any]:
    """The worker's metrics: name -> labels -> value."""
    status, text = worker.get("/metrics")
    assert status == 200
    found: dict[str, Any] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def lag(worker: Worker) -> float:
    """The sum over all partitions that the worker owns."""
    return sum(scraped(worker).get("shopflow_consumer_lag_records", {}).values())


def committed(worker: Worker, topic: str) -> dict[int, float]:
    """The committed offset of each partition of the topic, without those at 0."""
    found = scraped(worker)["shopflow_committed_offset"].items()
    return {int(dict(labels)["partition"]): at for labels, at in found if dict(labels)["topic"] == topic and at}


def is_well(own: Own) -> None:
    """The worker is ready, and its metrics show no lag."""
    becomes(lambda: probe(own.worker, "ready"), (200, []), _BACK_SECONDS)
    own.shop.drain(_BACK_SECONDS)
    becomes(lambda: lag(own.worker), 0)


@contextmanager
def always_live(worker: Worker) -> Iterator[None]:
    """The worker is live before and after the block."""
    assert probe(worker, "live") == (200, [])
    yield
    assert probe(worker, "live") == (200, [])


def not_ready(worker: Worker, *reasons: str) -> None:
    """The worker becomes not ready for one of these reasons, and is live meanwhile."""

    def said() -> bool:
        assert probe(worker, "live") == (200, [])
        return bool({*reasons} & {*probe(worker, "ready")[1]})

    until(said, f"not ready: {' or '.join(reasons)}", 60)


def test_a_well_worker_is_live_and_ready(own: Own) -> None:
    """Probes and metrics answer GET and HEAD, with and without a slash at the end."""
    is_well(own)
    for path in ("/health/live", "/health/live/", "/health/ready", "/health/ready/", "/metrics", "/metrics/"):
        assert own.worker.get(path)[0] == 200
        connection = http.client.HTTPConnection("127.0.0.1", own.worker.port, timeout=10)
        connection.request("HEAD", path)
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"")
        connection.close()


def test_what_was_done_is_counted(own: Own) -> None:
    """The metrics count documents by collection and outcome, dead letters by reason, and requests by status."""
    is_well(own)
    event = purchase()
    own.shop.sell(event, event, purchase())
    own.shop.send("purchases", Record(b"c", b"no JSON"))
    is_well(own)
    found, topic = scraped(own.worker), ("topic", own.shop.topic("purchases"))

    def documents(outcome: str) -> float:
        value: float = found["shopflow_documents_total"][("collection", "purchases"), ("outcome", outcome)]
        return value

    assert (documents("inserted"), documents("duplicate")) == (2, 1)
    assert found["shopflow_dead_letters_total"] == {(("reason", "not JSON"), topic): 1}
    assert found["shopflow_batch_records_sum"][(topic,)] == 4
    assert found["shopflow_batch_duration_seconds_count"][(topic,)] >= 1
    assert found["shopflow_mongodb_write_duration_seconds_count"][(("collection", "purchases"),)] >= 1
    assert found["shopflow_assigned_partitions"][(topic,)] == 4
    kafkas = {number: at for number, at in own.shop.committed("purchases").items() if at}
    becomes(lambda: committed(own.worker, own.shop.topic("purchases")), kafkas)
    assert (found["shopflow_ready"], found["shopflow_live"]) == ({(): 1}, {(): 1})
    assert found["shopflow_http_requests_total"][("method", "GET"), ("status", "200"), ("view", "/health/ready")] >= 1
    assert found["shopflow_faust_rebalances_total"][()] >= 1
    assert found["process_resident_memory_bytes"][()] > 10_000_000


@pytest.mark.slow
def test_a_frozen_mongodb(own: Own) -> None:
    """The worker is live and not ready, and the lag grows in its metrics. Afterwards it goes on."""
    is_well(own)
    with always_live(own.worker), own.servers["mongodb"].frozen():
        own.shop.sell(*(purchase() for _ in range(50)))
        not_ready(own.worker, "MongoDB does not answer")
        becomes(lambda: lag(own.worker), 50)
        own.shop.sell(*(purchase() for _ in range(50)))
        becomes(lambda: lag(own.worker), 100)
        assert scraped(own.worker)["shopflow_ready"] == {(): 0}
    is_well(own)


@pytest.mark.slow
def test_a_killed_mongodb(own: Own) -> None:
    """The worker is live and not ready, and the outage and its retries are in the metrics. Afterwards it goes on."""
    is_well(own)
    with always_live(own.worker):
        own.servers["mongodb"].kill()
        own.shop.sell(*(purchase() for _ in range(50)))
        not_ready(own.worker, "MongoDB does not answer")

        def away() -> bool:
            found = scraped(own.worker)
            server = (("server", "mongodb"),)
            return bool(found["shopflow_server_away"][server] and found["shopflow_retries_total"][server])

        until(away, "the outage is in the metrics")
        own.servers["mongodb"].restart()
    is_well(own)
    assert scraped(own.worker)["shopflow_server_away"] == {(("server", name),): 0 for name in ("kafka", "mongodb")}


_KAFKA = (
    "Kafka is away",
    "Kafka does not answer",
    "Kafka has not answered for so long that the partitions may be another worker's by now",
)


@pytest.mark.slow
def test_a_frozen_kafka(own: Own) -> None:
    """The worker is live and not ready, and the age of the lag grows in its metrics. Afterwards it goes on."""
    is_well(own)
    with always_live(own.worker), own.servers["kafka"].frozen():
        not_ready(own.worker, *_KAFKA)
        until(lambda: scraped(own.worker)["shopflow_offsets_age_seconds"][()] > 10, "the offsets get old")
    is_well(own)


def test_a_killed_kafka(own: Own) -> None:
    """The worker is live and not ready. Afterwards it goes on."""
    is_well(own)
    with always_live(own.worker):
        own.servers["kafka"].kill()
        not_ready(own.worker, *_KAFKA)
        own.servers["kafka"].restart()
    is_well(own)
    own.shop.sell(purchase())
    is_well(own)


def test_a_probed_worker_stops_in_an_outage(own: Own) -> None:
    """A ping without an answer does not hold up the stop, and leaves no task open. This is the shop's last test."""
    is_well(own)
    with own.servers["mongodb"].frozen():
        not_ready(own.worker, "MongoDB does not answer")
        assert own.worker.stop() == 0
    for complaint in ("Task was destroyed", "Unclosed", "Traceback"):
        assert complaint not in own.worker.output.rpartition("Stopping...")[2]


@pytest.mark.slow
def test_a_worker_without_a_partition_is_ready(open_shop: OpenShop) -> None:
    """A worker beyond the number of partitions waits as a spare."""
    with open_shop(topics_partitions=1) as shop:
        workers = [shop.start_worker().ready(1)]
        workers.append(shop.start_worker())
        for worker in workers:
            becomes(lambda worker=worker: probe(worker, "ready"), (200, []), _BACK_SECONDS)  # type: ignore[misc]
        owned = (("topic", shop.topic("purchases")),)
        found = [scraped(worker)["shopflow_assigned_partitions"][owned] for worker in workers]
        assert sorted(found) == [0, 1]


def test_a_transactions_end_is_no_lag(open_shop: OpenShop) -> None:
    """The marker at a transaction's end takes an offset that nobody commits. The worker's lag is 0 all the same."""
    with open_shop() as shop:
        worker = shop.start_worker().ready()
        shop.sell_in_transaction(purchase(), purchase(), commit=True)
        until(lambda: shop.db.purchases.count_documents({}) == 2, "they are stored")
        until(lambda: shop.lag() > 0, "Kafka's tools see a lag")
        becomes(lambda: lag(worker), 0)
