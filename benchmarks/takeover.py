"""How long partitions stand still when workers go and come: `python -m benchmarks.takeover [--rounds N] ...`

Purchases come at a steady rate. From outside, the committed offset of each partition is watched: a partition stands
still from one advance of its committed offset to the next. At the end `verify` must find no difference, and every
purchase that was sent must be stored once.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from benchmarks.rig import PARTITIONS, Load, sale
from shopflow.config.settings import Batching, Config
from shopflow.kafka.connection import quiet
from shopflow.servers.servers import Addresses, Servers
from tests.support.shop import Shop, Worker, free_port, shared, until

CUSTOMERS = 1_000
#: The most purchases of a run.
MOST = 1_000_000
_LOOK_SECONDS = 0.05
#: After a fault all partitions must have moved on for so long, with all workers at work.
_CALM_SECONDS = 3.0
_LIMIT_SECONDS = 180.0
_TICK_SECONDS = 0.1


class Watched:
    """A shop with a steady flow of purchases, whose committed offsets are watched in a thread."""

    def __init__(self, shop: Shop, kafka: str, rate: int) -> None:
        self.sent = 0
        self._kafka = kafka
        self._shop, self._rate = shop, rate
        self._advances: dict[int, list[float]] = {number: [] for number in range(PARTITIONS)}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=asyncio.run, args=(work(),)) for work in (self._sell, self._look)]

    def __enter__(self) -> Watched:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    async def _sell(self) -> None:
        """Send `rate` purchases a second until the end."""
        async with AIOKafkaProducer(bootstrap_servers=self._kafka) as producer:
            began, rows = time.monotonic(), sale(Load("takeover", CUSTOMERS), MOST)
            while not self._over.is_set():
                due = int((time.monotonic() - began) * self._rate) - self.sent
                deliveries = [
                    await producer.send(self._shop.topic("purchases"), each.value, each.key)
                    for each in itertools.islice(rows, due)
                ]
                await asyncio.gather(*deliveries)
                self.sent += due
                await asyncio.sleep(_TICK_SECONDS / 2)

    async def _look(self) -> None:
        """Note each advance of a committed offset."""
        last: dict[int, int] = {}
        admin = AIOKafkaAdminClient(bootstrap_servers=self._kafka)
        await admin.start()
        try:
            while not self._over.is_set():
                try:
                    committed = await admin.list_consumer_group_offsets(self._shop.name)
                except KafkaError:  # the group has not committed anything yet
                    committed = {}
                now = time.monotonic()
                for tp, found in committed.items():
                    if tp.topic == self._shop.topic("purchases") and found.offset > last.get(tp.partition, 0):
                        last[tp.partition] = found.offset
                        self._advances[tp.partition].append(now)
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            await admin.close()

    def stood_still(self, since: float, until: float) -> float:
        """The longest time that any partition stood still between two times, in seconds."""

        def gaps(advances: Sequence[float]) -> Iterator[float]:
            before = max((each for each in advances if each < since), default=since)
            inside = [before, *(each for each in advances if since <= each <= until), until]
            yield from (later - earlier for earlier, later in itertools.pairwise(inside))

        return max(gap for advances in self._advances.values() for gap in gaps(list(advances)))


class Crew:
    """The workers, each with its port and its tables."""

    def __init__(self, shop: Shop, watched: Watched, count: int, rng: random.Random) -> None:
        self._shop, self.watched, self.rng = shop, watched, rng
        self.workers = [self._start(free_port()) for _ in range(count)]
        self.calm()

    def _start(self, port: int) -> Worker:
        return self._shop.start_worker(port=port)

    def calm(self) -> float:
        """Wait until the workers share the partitions, and each moves on. Returns the time at which that began."""
        until(lambda: shared(self.workers, PARTITIONS), "the workers share the partitions", _LIMIT_SECONDS)
        began = time.monotonic()
        while time.monotonic() < began + _CALM_SECONDS:
            now = time.monotonic()
            if now > began + 1.0 and self.watched.stood_still(now - 1.0, now) > 1.5:
                began = now  # a partition does not move yet
            time.sleep(_TICK_SECONDS)
        return began

    def _measured(self, fault: Callable[[], None]) -> float:
        since = time.monotonic()
        fault()
        self.calm()
        return self.watched.stood_still(since, time.monotonic())

    def killed_and_back(self) -> float:
        """Kill a worker (SIGKILL), and start it again at once."""

        def fault() -> None:
            number = self.rng.randrange(len(self.workers))
            self.workers[number].kill()
            self.workers[number] = self._start(self.workers[number].port)

        return self._measured(fault)

    def killed_for_good(self) -> float:
        """Kill a worker (SIGKILL). After it was measured, a worker takes its place."""
        gone = self.workers.pop(self.rng.randrange(len(self.workers)))
        seconds = self._measured(gone.kill)
        self.workers.append(self._start(gone.port))
        self.calm()
        return seconds

    def rolling_restart(self) -> float:
        """Stop each worker (SIGTERM) and start it again, one after the other."""

        def fault() -> None:
            for number, worker in enumerate(self.workers):
                worker.stop(seconds=60)
                self.workers[number] = self._start(worker.port)
                self.calm()

        return self._measured(fault)

    def one_more_joins(self) -> float:
        """One more worker joins. After it was measured, it is stopped."""
        seconds = self._measured(lambda: self.workers.append(self._start(free_port())))
        self.workers.pop().stop(seconds=60)
        self.calm()
        return seconds


def run(shop: Shop, kafka: str, count: int, arguments: argparse.Namespace) -> None:
    """Measure all faults with this many workers, and print a line of the table for each.

    Raises:
        AssertionError: A purchase was lost or is there twice.
    """
    rng = random.Random(f"{arguments.seed} {count}")
    faults = {
        "killed (-9) and started again at once": Crew.killed_and_back,
        "killed for good": Crew.killed_for_good,
        "rolling restart": Crew.rolling_restart,
        "one more joins": Crew.one_more_joins,
    }
    with Watched(shop, kafka, arguments.rate) as watched:
        crew = Crew(shop, watched, count, rng)
        for name, fault in faults.items():
            found = [fault(crew) for _ in range(arguments.rounds)]
            print(
                f"| {count} workers, {name} | {statistics.median(found):.1f} | {min(found):.1f} to {max(found):.1f} |",
                flush=True,
            )
    until(lambda: shop.lag() == 0, "every purchase is committed", _LIMIT_SECONDS)
    shop.agrees()
    stored = shop.db.purchases.count_documents({})
    assert stored == watched.sent, f"{watched.sent} purchases were sent, {stored} are stored"
    print(f"| {count} workers: {stored:,} purchases, none lost or twice; `verify` agrees | | |", flush=True)


@contextmanager
def opened_shop(addresses: Addresses, session: float) -> Iterator[Shop]:
    """A shop with its topics and without a worker."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"batching_session_timeout_seconds": session, "topics_partitions": PARTITIONS}
        settings["batching_commit_interval_seconds"] = Batching().commit_interval_seconds
        shop = Shop(addresses, Path(folder), **settings)
        try:
            assert shop.run("seed-products").status == 0  # creates the topics
            yield shop
        finally:
            shop.close()


def main() -> None:
    """Run all faults, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--rate", type=int, default=200, help="purchases a second")
    parser.add_argument("--session", type=float, default=Batching().session_timeout_seconds, help="session timeout, s")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    quiet()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all servers are stopped
    print(f"{PARTITIONS} partitions, {arguments.rate} purchases a second, session timeout {arguments.session:g} s\n")
    print("| | the longest that a partition stood still: median, s | range |")
    print("|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder, Servers(Config(data_dir=folder)) as servers:
        addresses = servers.start()
        for count in arguments.workers:
            with opened_shop(addresses, arguments.session) as shop:
                run(shop, addresses.kafka, count, arguments)


if __name__ == "__main__":
    main()
