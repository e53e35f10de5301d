"""How long a purchase takes: `python -m benchmarks.latency [--rate N] [--seconds N] ...`

Purchases come at a steady rate. For some of them, each of another customer, the time is measured from Kafka's
acknowledgement until the document is in MongoDB, or until `/counts/` has the customer. Contenders are shopflow and the
loop, which has no such view. The frequent queries delay everything a little, for both alike.

In shopflow's event loop a task wakes up every 5 ms, and measures how late it is: for so long the loop was held. With
`--backlog N` the same is measured while the worker processes N waiting purchases at full speed.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import quantiles

import aiohttp
import msgspec
from aiokafka import AIOKafkaProducer
from pymongo import AsyncMongoClient

from benchmarks.rig import Contender, Load, Process, Rig, Sold, module, opened, sale, until
from benchmarks.throughput import CONTENDERS, WORKER
from benchmarks.watched_shopflow import SEEN
from benchmarks.watching import Held, held, read

LOOP = CONTENDERS[0]
SHOPFLOW = replace(CONTENDERS[1], command=(*module("watched_shopflow"), *WORKER))
LOAD = Load("latency", customers=1_000)
#: Of this many purchases, one is followed to MongoDB and another one to the view.
FOLLOWED = 50
#: Seconds of purchases before the first that is followed, so that everything is warm.
WARM_SECONDS = 5.0
POLL_SECONDS = 0.002
LONGEST_SECONDS = 30.0


@dataclass
class Followed:
    """Seconds from Kafka's acknowledgement to the document, and to the view."""

    documents: list[float] = field(default_factory=list)
    counts: list[float] = field(default_factory=list)


async def seen(is_there: Callable[[], Awaitable[bool]], found: list[float]) -> None:
    """Ask until the answer is yes, and add the seconds that it took to `found`."""
    began = time.monotonic()
    while not await is_there():
        assert time.monotonic() < began + LONGEST_SECONDS, "never came"
        await asyncio.sleep(POLL_SECONDS)
    found.append(time.monotonic() - began)


class Buying:
    """Sends purchases at a steady rate, and follows some of them."""

    def __init__(self, rig: Rig, name: str, url: str | None) -> None:
        self.followed = Followed()
        client: AsyncMongoClient[dict[str, object]] = AsyncMongoClient(rig.mongodb)
        self._documents = client[name].purchases
        self._url = url
        self._kafka = rig.kafka
        self._topic = f"{name}.purchases"

    async def buy(self, rate: float, seconds: float) -> tuple[float, float]:
        """Send for `seconds` after the warm-up. Returns when (`time.monotonic`) the followed ones began and ended."""
        producer = AIOKafkaProducer(bootstrap_servers=self._kafka, acks="all")
        tasks: list[asyncio.Task[None]] = []
        async with producer, aiohttp.ClientSession() as web:
            began = time.monotonic()
            for number, sold in enumerate(sale(LOAD, int(rate * (WARM_SECONDS + seconds)))):
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                if number < rate * WARM_SECONDS or number % (FOLLOWED // 2):
                    await producer.send(self._topic, sold.value, sold.key)
                elif number % FOLLOWED or not self._url:
                    tasks.append(asyncio.create_task(self._to_mongodb(producer, sold)))
                else:
                    tasks.append(asyncio.create_task(self._to_view(producer, web, sold, number)))
            await asyncio.gather(*tasks)
        return began + WARM_SECONDS, time.monotonic()

    async def _to_mongodb(self, producer: AIOKafkaProducer, sold: Sold) -> None:
        await producer.send_and_wait(self._topic, sold.value, sold.key)

        async def is_there() -> bool:
            return await self._documents.find_one({"_id": sold.purchase_id}, {"_id": 1}) is not None

        await seen(is_there, self.followed.documents)

    async def _to_view(self, producer: AIOKafkaProducer, web: aiohttp.ClientSession, sold: Sold, number: int) -> None:
        customer = f"new-customer-{number}"
        value = msgspec.json.encode({**msgspec.json.decode(sold.value), "customer_id": customer})
        await producer.send_and_wait(self._topic, value, customer.encode())

        async def is_there() -> bool:
            async with web.get(f"{self._url}/counts/{customer}/") as answer:
                return answer.status == 200

        await seen(is_there, self.followed.counts)


async def measure(rig: Rig, contender: Contender, rate: float, seconds: float) -> Held | None:
    """Measure a contender and print its latencies. Returns how long shopflow's loop was held."""
    name = rig.new_name(contender.name)
    await rig.create_topic(f"{name}.purchases")
    process = await started(rig, contender, name, f"{name}.")
    buying = Buying(rig, name, f"http://127.0.0.1:{rig.port}" if contender is SHOPFLOW else None)
    since, until_then = await buying.buy(rate, seconds)
    process.stop()
    loop = held(read(rig.folder / name / SEEN), since, until_then) if contender is SHOPFLOW else None
    await rig.forget(name)
    for what, found in (("in MongoDB", buying.followed.documents), ("in /counts/", buying.followed.counts)):
        if found:
            cuts = quantiles(found, n=100, method="inclusive")
            figures = " | ".join(f"{value * 1000:.0f}" for value in (cuts[49], cuts[98], max(found)))
            print(f"| {contender.name}, {what} | {len(found):,} | {figures} |", flush=True)
    return loop


async def started(rig: Rig, contender: Contender, name: str, prefix: str) -> Process:
    """Start a contender, and wait until it consumes."""
    rig.create_indexes(name)
    process = rig.start(contender, name, prefix)
    await until(lambda: process.said(contender.started), process, 60, 0.02)
    return process


async def at_full_speed(rig: Rig, purchases: int) -> Held:
    """How long shopflow's loop is held while it processes this many waiting purchases."""
    backlog = await rig.backlog(LOAD, purchases)
    name = rig.new_name(SHOPFLOW.name)
    process = await started(rig, SHOPFLOW, name, backlog.prefix)
    since = time.monotonic()
    await rig.committed(name, backlog, process)
    until_then = time.monotonic()
    process.stop()
    loop = held(read(rig.folder / name / SEEN), since, until_then)
    await rig.forget(name)
    return loop


def show_loops(loops: Mapping[str, Sequence[Held]]) -> None:
    """Print how long the loop was held, as Markdown, a line for each round."""
    print(
        "\n| shopflow's event loop | woke up | late: p50 ms | p99 ms | longest ms | its CPU | its collections ", end=""
    )
    print("| collections | longest ms |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for what, rounds in loops.items():
        for each in rounds:
            print(
                f"| {what} | {each.wakes:,} | {each.p50:.1f} | {each.p99:.1f} | {each.longest:.1f} "
                f"| {each.longest_cpu:.1f} | {each.longest_collecting:.1f} "
                f"| {each.collections:,} | {each.longest_collection:.1f} |"
            )


async def run(rig: Rig, arguments: argparse.Namespace) -> None:
    """Measure both contenders in turn, then the backlog."""
    print("| | followed | p50 ms | p99 ms | longest ms |")
    print("|---|---:|---:|---:|---:|")
    steady, busy = f"{arguments.rate:,.0f} a second", f"{arguments.backlog:,} at full speed"
    loops: dict[str, list[Held]] = {steady: [], busy: []}
    for _ in range(arguments.rounds):
        for contender in (LOOP, SHOPFLOW):
            if loop := await measure(rig, contender, arguments.rate, arguments.seconds):
                loops[steady].append(loop)
    for _ in range(arguments.rounds if arguments.backlog else 0):
        await rig.rest()
        loops[busy].append(await at_full_speed(rig, arguments.backlog))
    show_loops(loops)


def main() -> None:
    """Start the servers, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1_000.0, help="purchases a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--backlog", type=int, default=0, help="also measure how long this backlog blocks the loop")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--mongodb", metavar="URI", help="this one instead of the fast one, or the embedded one")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="shopflow-bench-") as folder,
        opened(arguments.mongodb, Path(folder)) as rig,
    ):
        asyncio.run(run(rig, arguments))


if __name__ == "__main__":
    main()
