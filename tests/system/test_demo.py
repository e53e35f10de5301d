"""`demo`: what it shows and verifies, and that no process or lock is left."""

from __future__ import annotations

import re
import signal
from urllib.request import urlopen

import pytest

from tests.conftest import OpenShop
from tests.support.shop import Process, Shop, until

pytestmark = pytest.mark.servers

DEMO = ("demo", "--customers", "20", "--purchases", "500", "--rate", "0", "--exit")


@pytest.mark.slow
def test_the_demo_verifies_what_it_did_and_goes_on_the_next_time(open_embedded_shop: OpenShop) -> None:
    """Two demos in one folder make 500, then 1,000 purchases. No process or lock is left.

    Without `--exit` the demo stays open, prints its address, and ends with status 0 on Ctrl-C. A kill leaves nothing.
    """
    with open_embedded_shop() as shop:
        for total in (500, 1000):
            done = shop.run(*DEMO, seconds=120)
            assert done.status == 0, done
            assert f"Purchases: {total} in Kafka, {total} in MongoDB, {total} in the tables" in done.stdout
            assert "agree." in done.stdout
            assert "The newest voucher: " in done.stdout
            assert shop.leftovers() == []
            assert shop.locked() == []
        demo = opened(shop)
        assert "/counts/" in demo.output
        address = next(line for line in demo.output.splitlines() if "http://127.0.0.1:" in line)
        assert address.startswith("The shop: http://127.0.0.1:")
        with urlopen(address.removeprefix("The shop: ")) as page:  # noqa: S310 - of this machine
            assert b"<title>shopflow: " in page.read()
        demo.kill()
        until(lambda: shop.leftovers() == [], "nothing is left running")
        until(lambda: shop.locked() == [], "nothing is locked")  # a process loses its name before its files
        demo = opened(shop)
        assert demo.stop(signal.SIGINT) == 0, demo.output
        assert shop.leftovers() == []
        assert shop.locked() == []


@pytest.mark.slow
def test_the_demo_takes_servers_that_run_already(open_shop: OpenShop) -> None:
    """The demo uses the configured servers, which run on after it."""
    with open_shop() as shop:
        done = shop.run(*DEMO, seconds=120)
        assert done.status == 0, done
        assert "Purchases: 500 in Kafka, 500 in MongoDB, 500 in the tables" in done.stdout
        assert shop.leftovers() == []
        shop.agrees()


@pytest.mark.slow
def test_a_demo_survives_all_its_faults(open_embedded_shop: OpenShop) -> None:
    """`--faults --exit` does each fault once; after each, Kafka, MongoDB and the tables agree. Nothing is left."""
    with open_embedded_shop() as shop:
        done = shop.run(*DEMO, "--faults", seconds=400)
        assert done.status == 0, done
        told = [
            *("Worker 1 is killed", "Worker 1 is started again", "Worker 1 is frozen", "Worker 1 wakes up"),
            *("MongoDB is being stopped", "MongoDB is back", "Kafka is being stopped", "Kafka is back"),
            *("A bad purchase was sent", "A purchase was sent twice"),
        ]
        places = [done.stdout.find(text) for text in told]
        assert -1 not in places, done
        assert places == sorted(places)
        frozen, woken = places[2:4]
        assert "Worker 2 has partitions 0, 1, 2, 3." in done.stdout[frozen:woken]
        assert done.stdout.count("verify: all agree.") == 6
        verdicts = [line for line in done.stdout.splitlines() if "verify: all agree." in line]
        assert re.search(r" \+ [1-9]\S* repeated \+ [1-9]\S* rejected;", verdicts[-1]), verdicts
        assert shop.leftovers() == []
        assert shop.locked() == []


def test_an_interrupted_demo_that_was_to_verify_does_not_claim_success(open_shop: OpenShop) -> None:
    """A script takes status 0 of `--exit` for "everything agrees", so an interrupted demo ends with 130."""
    with open_shop() as shop:
        demo = shop.spawn("demo", "--customers", "20", "--purchases", "5000", "--rate", "20", "--exit")
        until(lambda: "have registered" in demo.output, "purchases begin", 120)
        assert demo.stop(signal.SIGINT) == 128 + signal.SIGINT, demo.output
        assert "Traceback" not in demo.output
        assert shop.leftovers() == []


def opened(shop: Shop) -> Process:
    """A demo without `--exit` that has sold its purchases."""
    demo = shop.spawn("demo", "--purchases", "200", "--rate", "0")
    until(lambda: "Ctrl-C closes it." in demo.output, "the shop is open", 120)
    return demo
