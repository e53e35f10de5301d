"""The examples on real servers: they keep their promises when they are killed."""

from __future__ import annotations

import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conftest import OpenShop
from tests.support.shop import Process, Record, Shop, purchase, until

pytestmark = pytest.mark.servers

ALARM = (sys.executable, "-m", "faust", "-A", "examples.basket_alarm")
SAID = re.compile(r"\] (b-[\w-]+): (\d+) x mleko for (\S+)")
PURCHASES = 3_000
KILLS = 3


@pytest.fixture
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop whose topics are there, without a worker: the example needs none."""
    with open_shop() as shop:
        shop.run("seed-products")
        yield shop


def start(shop: Shop) -> Process:
    """Start the alarm of this shop, in its folder."""
    return shop.spawn("worker", "-l", "info", program=ALARM)


def said(process: Process) -> list[tuple[str, str]]:
    """Purchase and customer of each alarm that the process logged, in order."""
    return [(name, customer) for name, _, customer in SAID.findall(process.output)]


def test_the_basket_alarm_sees_every_purchase_though_it_is_killed(shop: Shop) -> None:
    """Each large purchase is logged at least once, and in order for each customer. Small and bad ones are not."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    sold = [
        purchase(f"c-{chosen.randrange(50)}", quantity=chosen.randint(1, 9), purchase_id=f"b-{number}")
        for number in range(PURCHASES)
    ]
    wanted = {one["purchase_id"] for one in sold if one["quantity"] >= 5}
    alarms: list[Process] = []

    def sell() -> None:
        for first in range(0, PURCHASES, 100):
            shop.sell(*sold[first : first + 100])
            shop.send("purchases", Record(b"c-0", b"no purchase"))
            time.sleep(0.05)  # some events come while the alarm runs, some while it is dead

    def seen() -> set[str]:
        assert alarms[-1].status is None, alarms[-1].output[-3000:]
        return {name for alarm in alarms for name, _ in said(alarm)}

    with ThreadPoolExecutor(1) as pool:
        selling = pool.submit(sell)
        for _ in range(KILLS):
            alarms.append(start(shop))
            enough = min(len(seen()) + chosen.randint(1, len(wanted) // 5), len(wanted))
            until(lambda enough=enough: len(seen()) >= enough, "some large purchases are logged", 60)
            alarms[-1].kill()
        alarms.append(start(shop))
        selling.result()
    until(lambda: seen() >= wanted, "every large purchase is logged", 60)
    assert seen() == wanted
    assert any("skipped: not JSON" in alarm.output for alarm in alarms)
    assert_in_order(alarms, sold)


def assert_in_order(alarms: list[Process], sold: list[dict[str, Any]]) -> None:
    """Each process logs a customer's purchases in the order of the topic; repeats don't count."""
    index = {one["purchase_id"]: number for number, one in enumerate(sold)}
    for alarm in alarms:
        of_customer: dict[str, list[int]] = defaultdict(list)
        for name, customer in dict.fromkeys(said(alarm)):
            of_customer[customer].append(index[name])
        assert all(indexes == sorted(indexes) for indexes in of_customer.values())
    again = Counter(name for alarm in alarms for name, _ in said(alarm))
    print(f"{sum(again.values())} alarms for {len(again)} purchases")
