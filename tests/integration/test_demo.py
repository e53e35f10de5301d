"""The first minute: the demo, and that nothing of it stays behind."""

from __future__ import annotations

import fcntl
import os
import signal

import pytest

from .conftest import OpenShop
from .shop import Shop, until

pytestmark = pytest.mark.servers

DEMO = ("demo", "--customers", "20", "--purchases", "500", "--rate", "0", "--exit")


def test_the_demo_verifies_what_it_did_and_goes_on_the_next_time(open_embedded_shop: OpenShop) -> None:
    """500 purchases in Kafka, MongoDB and the tables; 1,000 after the second time. Nothing is left running or locked.

    Without `--exit` it stays open, says where to look, and ends with status 0 on Ctrl-C.
    """
    with open_embedded_shop() as shop:
        for total in (500, 1000):
            done = shop.run(*DEMO, seconds=120)
            assert done.status == 0, done
            assert f"Purchases: {total} in Kafka, {total} in MongoDB, {total} in the tables" in done.stdout
            assert "agree." in done.stdout
            assert shop.leftovers() == []
            assert locked(shop) == []
        demo = shop.spawn("demo", "--purchases", "200", "--rate", "100")
        until(lambda: "Ctrl-C closes it." in demo.output, "the shop is open", 120)
        assert "/counts/" in demo.output
        assert demo.stop(signal.SIGINT) == 0, demo.output
        assert shop.leftovers() == []
        assert locked(shop) == []


def test_a_worker_takes_its_servers_along_and_leaves_its_data(open_embedded_shop: OpenShop) -> None:
    """However it ends; the next one has what was stored. A server that dies ends its worker, with one line."""
    with open_embedded_shop() as shop:
        worker = shop.start_worker().ready()
        assert shop.run("seed-products").status == 0
        until(lambda: len(shop.run("list-products", "--json").json()) == 13, "the products are stored")
        for number in (signal.SIGINT, signal.SIGKILL):
            worker.send(number)
            worker.wait()
            until(lambda: shop.leftovers() == [], "nothing is left running")
            assert locked(shop) == []
            worker = shop.start_worker(port=worker.port).ready()
            assert len(shop.run("list-products", "--json").json()) == 13
        os.kill(shop.server_pid("kafka"), signal.SIGKILL)
        assert worker.wait(60) == 1
        assert "Error: Kafka has died, killed by SIGKILL; its log:" in worker.output
        assert shop.leftovers() == []
        assert locked(shop) == []


def locked(shop: Shop) -> list[str]:
    """Names of the locks in the data directory that somebody holds."""
    held = []
    for path in shop.data.glob("*.lock"):
        with path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(path.name)
    return held
