"""A worker with embedded servers: the servers end with the worker, and their data stays."""

from __future__ import annotations

import os
import signal

import pytest

from tests.conftest import OpenShop
from tests.support.shop import until

pytestmark = pytest.mark.servers


@pytest.mark.slow
def test_a_worker_takes_its_servers_along_and_leaves_its_data(open_embedded_shop: OpenShop) -> None:
    """The servers stop when the worker is interrupted or killed. The next worker finds the stored products.

    A worker whose Kafka dies ends with status 1 and one line that names the signal and the log.
    """
    with open_embedded_shop() as shop:
        worker = shop.start_worker().ready()
        assert shop.run("seed-products").status == 0
        until(lambda: len(shop.run("list-products", "--json").json()) == 13, "the products are stored")
        for number in (signal.SIGINT, signal.SIGKILL):
            worker.send(number)
            worker.wait()
            until(lambda: shop.leftovers() == [], "nothing is left running")
            until(lambda: shop.locked() == [], "nothing is locked")  # a process loses its name before its files
            worker = shop.start_worker(port=worker.port).ready()
            assert len(shop.run("list-products", "--json").json()) == 13
        os.kill(shop.server_pid("kafka"), signal.SIGKILL)
        assert worker.wait(60) == 1
        assert "Error: Kafka has died, killed by SIGKILL; its log:" in worker.output
        assert shop.leftovers() == []
        assert shop.locked() == []
