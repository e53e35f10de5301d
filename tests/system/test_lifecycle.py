"""Workers that stop, start and share partitions: events wait for them, and each answers for all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import OpenShop
from tests.support.proxy import Proxy
from tests.support.shop import Shop, becomes, purchase, shared, until

pytestmark = pytest.mark.servers


@pytest.fixture
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop of the test's own."""
    with open_shop() as shop:
        yield shop


def test_events_wait_while_no_worker_runs_and_appear_afterwards(shop: Shop) -> None:
    """A worker that was stopped continues where it stopped, and stores and counts nothing twice."""
    worker = shop.start_worker().ready()
    shop.sell(*(purchase("anna") for _ in range(10)))
    shop.drain()
    assert worker.stop() == 0
    waiting = [purchase("anna") for _ in range(20)]
    shop.sell(*waiting)
    assert shop.run("verify").status == 1
    assert shop.stored(waiting[0]) is None
    again = shop.start_worker(port=worker.port).ready()
    becomes(lambda: again.count("anna")[1].get("purchases"), 30)
    shop.drain()
    assert shop.agrees()["mongodb"]["purchases"] == 30


def test_two_workers_share_the_partitions_and_answer_for_each_other(shop: Shop) -> None:
    """Either worker answers for every customer. The sums of both together are those of all customers."""
    first = shop.start_worker().ready()
    customers = [f"c{number}" for number in range(40)]
    shop.sell(*(purchase(name, quantity=3) for name in customers))
    shop.drain()
    second = shop.start_worker()
    until(lambda: shared([first, second]), "they share")
    shop.sell(*(purchase(name, quantity=3) for name in customers))
    shop.drain()
    for worker in (first, second):
        for name in customers:
            expected = {"customer_id": name, "purchases": 2, "items": 6, "spent": 6 * 399}
            assert worker.count(name) == (200, expected)
        assert worker.count("nobody")[0] == 404
    sums = [worker.counts() for worker in (first, second)]
    assert all(one["customers"] for one in sums)
    assert sum(one["customers"] for one in sums) == 40
    assert sum(one["purchases"] for one in sums) == 80
    shop.agrees()


@pytest.mark.slow
def test_a_worker_that_lost_its_tables_recovers_them_from_kafka(shop: Shop) -> None:
    """A worker with an empty data directory reads the changelog, and then the purchases that arrived meanwhile."""
    bought = [purchase(f"c{number}", quantity=2) for number in range(50)]
    worker = shop.start_worker().ready()
    shop.sell(*bought)
    shop.drain()
    assert worker.stop() == 0
    shop.sell(*({**event, "purchase_id": f"again-{event['customer_id']}"} for event in bought))
    other = shop.start_worker().ready()  # another port has another data directory
    assert other.counts()["customers"] == 50
    refused = shop.run("reset", web_port=other.port)
    assert refused.status == 2
    assert "has the tables in" in refused.stderr
    becomes(
        lambda: {name: other.counts().get(name) for name in ("purchases", "items")}, {"purchases": 100, "items": 200}
    )
    shop.drain()
    assert other.stop() == 0
    assert shop.run("reset", web_port=other.port).status == 0
    assert shop.start_worker(port=other.port).ready().counts()["purchases"] == 100


def test_a_worker_says_that_it_is_ready_when_it_is(shop: Shop) -> None:
    """With MongoDB frozen at the start it listens, and joins the group, but stores nothing."""
    assert shop.servers
    with Proxy(shop.servers.mongodb) as proxy:
        proxy.freeze()
        worker = shop.start_worker(mongodb_uri=proxy.uri)
        url = f"http://127.0.0.1:{worker.port}/"
        listens = f"Listens at {url}, but is not ready: MongoDB does not answer\n"
        until(lambda: listens in worker.output, "it listens", 60)
        assert "Ready: http" not in worker.output
        proxy.heal()
        until(lambda: f"Ready: {url}\n" in worker.output, "it is ready")
