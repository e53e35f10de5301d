"""shopflow and a textbook Faust application under the same faults: `python -m benchmarks.faults [--seed N] ...`

Both have two workers, the same plain purchases (each sent once, with a price) and the same random schedule: workers are
killed, stopped and frozen, and MongoDB is killed. Afterwards every purchase should be stored once and counted once.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

from aiokafka.errors import KafkaError

from shopflow.config.settings import Config, MongoDB
from shopflow.servers.servers import Addresses, Servers
from tests.faults.crew import Server
from tests.faults.oracle import PARTITIONS, Sale, send
from tests.support.shop import FAUST, Shop, Worker, free_port, until

#: Purchases sent at a time, and the seconds between two such sends.
CHUNK, CHUNK_SECONDS = 250, 0.5
FIRST_FAULT_SECONDS, REST_SECONDS = 8.0, 6.0
#: After this time without progress nothing more is expected.
STILL_SECONDS = 30.0
#: Not used: each application has a MongoDB of its own.
_UNUSED = MongoDB(uri="mongodb://127.0.0.1:1")
ACTIONS = ("kill", "kill", "stop", "freeze", "mongodb")


@dataclass(frozen=True)
class Fault:
    """One step of the schedule: a pause of `wait` seconds, then the fault `what`, which lasts `seconds`."""

    wait: float
    what: str
    victim: int
    seconds: float


@dataclass
class Result:
    """The differences between what was sent and what an application has."""

    application: str
    sent: int
    lost: int
    twice: int
    counted: int
    wrong_customers: int
    off: int
    seconds: float


def schedule(rng: random.Random, steps: int) -> list[Fault]:
    """Random faults. Every kind comes once before any comes again."""
    kinds: list[str] = []
    while len(kinds) < steps:
        kinds += rng.sample(ACTIONS, len(ACTIONS))
    return [Fault(rng.uniform(1, REST_SECONDS), kind, rng.randrange(2), rng.uniform(1, 9)) for kind in kinds[:steps]]


class Workers:
    """Two workers of one application. One that ends is started again, as by a service manager."""

    def __init__(self, shop: Shop, program: Callable[[int], Sequence[str]]) -> None:
        self._shop = shop
        self._program = program
        self._ports = [free_port(), free_port()]
        self.running = [self._start(port) for port in self._ports]

    def _start(self, port: int) -> Worker:
        return self._shop.start_worker(port=port, program=self._program(port))

    def kill(self, number: int) -> None:
        """Kill a worker with SIGKILL, and start it again with the same tables."""
        self.running[number].kill()
        self.running[number] = self._start(self._ports[number])

    def stop(self, number: int) -> None:
        """Stop a worker with SIGTERM, after a minute with SIGKILL, and start it again with the same tables."""
        try:
            self.running[number].stop(seconds=60)
        finally:
            self.kill(number)

    def mend(self) -> None:
        """Start the workers again that have ended."""
        for number, worker in enumerate(self.running):
            if worker.status is not None:
                self.kill(number)


def commit(fault: Fault, workers: Workers, mongodb: Server) -> None:
    """Wait, cause the fault, and end it."""
    time.sleep(fault.wait)
    if fault.what == "kill":
        workers.kill(fault.victim)
    elif fault.what == "stop":
        workers.stop(fault.victim)
    elif fault.what == "freeze":
        workers.running[fault.victim].send(SIGSTOP)
        time.sleep(fault.seconds)
        workers.running[fault.victim].send(SIGCONT)
    else:
        mongodb.kill()
        time.sleep(fault.seconds)
        mongodb.restart()
    workers.mend()


def run(application: str, kafka: str, arguments: argparse.Namespace) -> Result:
    """Run one application, from an empty shop to the end of the schedule."""
    rng = random.Random(arguments.seed)
    sale = Sale(rng, arguments.purchases, plain=True)
    faults = schedule(rng, arguments.faults)
    with opened_shop(kafka) as (shop, mongodb):
        began = time.monotonic()
        workers = Workers(shop, PROGRAMS[application](shop))
        with ThreadPoolExecutor(1) as pool:
            flow = pool.submit(flowing, shop, sale)
            time.sleep(FIRST_FAULT_SECONDS)
            for fault in faults:
                print(f"  {time.monotonic() - began:5.1f} s  {fault.what} {fault.seconds:.1f}", flush=True)
                commit(fault, workers, mongodb)
            flow.result()
        settle(shop, workers)
        seconds = time.monotonic() - began
        return judge(application, shop, workers, sale, seconds)


def flowing(shop: Shop, sale: Sale) -> None:
    """Send all purchases at a steady rate."""
    for start in range(0, len(sale.records), CHUNK):
        began = time.monotonic()
        send(shop, "purchases", sale.records[start : start + CHUNK])
        time.sleep(max(0.0, began + CHUNK_SECONDS - time.monotonic()))


def settle(shop: Shop, workers: Workers) -> None:
    """Wait until everything is committed, or nothing moves any more."""
    least, since = sys.maxsize, time.monotonic()
    while time.monotonic() - since < STILL_SECONDS:
        workers.mend()
        try:
            lag = shop.lag()
        except KafkaError:
            lag = sys.maxsize
        if lag == 0:
            time.sleep(2)
            return
        if lag < least:
            least, since = lag, time.monotonic()
        time.sleep(0.5)
    print(f"  {least} purchases still wait; nothing moves any more", flush=True)


def judge(application: str, shop: Shop, workers: Workers, sale: Sale, seconds: float) -> Result:
    """Compare MongoDB and the counts with what was sent."""
    stored = [document["_id"] for document in shop.db.purchases.find({}, {"_id": 1})]
    wanted = {name: purchases for name, (purchases, _, _) in sale.counts().items()}
    counted = {name: counts_of(workers, name) for name in wanted}
    wrong = [name for name in wanted if counted[name] != wanted[name]]
    return Result(
        application,
        sent=len(sale.events),
        lost=len(set(sale.events) - set(stored)),
        twice=len(stored) - len(set(stored)),
        counted=sum(counted.values()),
        wrong_customers=len(wrong),
        off=sum(abs(counted[name] - wanted[name]) for name in wanted),
        seconds=seconds,
    )


def counts_of(workers: Workers, customer_id: str) -> int:
    """The number of a customer's purchases that the application has counted. Asks until it answers."""

    def ask() -> list[int]:
        connection = http.client.HTTPConnection("127.0.0.1", workers.running[0].port, timeout=10)
        try:
            connection.request("GET", f"/counts/{customer_id}/")
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            return []
        finally:
            connection.close()
        if response.status not in {200, 404}:
            return []
        return [json.loads(text).get("purchases", 0)]

    return until(ask, f"the counts of {customer_id}", 60)[0]


@contextmanager
def opened_shop(kafka: str) -> Any:
    """A shop with topics and a MongoDB of its own."""
    port = free_port()
    uri = f"mongodb://127.0.0.1:{port}/?directConnection=true"
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"embedded_mongodb_port": port, "topics_partitions": PARTITIONS}
        shop = Shop(Addresses(kafka, ""), Path(folder), mongodb=uri, **settings)
        try:
            mongodb = Server(shop, "mongodb")
            assert shop.run("seed-products").status == 0  # creates the topics
            yield shop, mongodb
        finally:
            shop.close()


def _textbook(shop: Shop) -> Callable[[int], Sequence[str]]:
    faust = (sys.executable, "-m", "faust", "-A", "benchmarks.textbook")
    return lambda port: (*faust, "--datadir", str(shop.folder / f"textbook-{port}"))


#: By application: shop -> web port -> the program that starts a worker.
PROGRAMS: dict[str, Callable[[Shop], Callable[[int], Sequence[str]]]] = {
    "shopflow": lambda _shop: lambda _port: FAUST,
    "textbook": _textbook,
}


def main() -> None:
    """Run the applications, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--purchases", type=int, default=20_000)
    parser.add_argument("--faults", type=int, default=8)
    parser.add_argument("applications", nargs="*", default=list(PROGRAMS), help=", ".join(PROGRAMS))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    results = []
    with tempfile.TemporaryDirectory() as folder, Servers(Config(data_dir=folder, mongodb=_UNUSED)) as servers:
        kafka = servers.start().kafka
        for application in arguments.applications:
            print(application, flush=True)
            results.append(run(application, kafka, arguments))
    print("\n| | sent | lost | stored twice | counted | customers with a wrong count | off by, in all | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for each in results:
        print(
            f"| {each.application} | {each.sent} | {each.lost} | {each.twice} | {each.counted} "
            f"| {each.wrong_customers} | {each.off} | {each.seconds:.0f} |"
        )


if __name__ == "__main__":
    main()
