"""How fast example events get into Kafka, beside a bare producer: `python -m benchmarks.seeding [--purchases N] ...`

`shopflow seed-purchases --rate 0` and `shopflow seed-customers` are compared with a program that sends as many
ready-made events with aiokafka alone. They run in turn, on the same Kafka and the same topics. After each run the topic
must have as many records more as were sent. The bare producer measures the sending by its own clock. shopflow's time is
that of the whole command minus that of the same command with `--count 1`: Python's start, the connections, the check of
the topics and, for purchases, the reading of customers and products.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.bare_producer import BUYERS, Sent
from benchmarks.rig import Contender, FailedError, Rig, Timed, module, opened
from shopflow.kafka.offsets import spans
from shopflow.kafka.security import Bootstrap

SHOPFLOW = (sys.executable, "-m", "shopflow")
LONGEST_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Seeding(Timed):
    """One round of one program."""

    start_seconds: float
    """The subtracted time; for the bare producer, the time for making the events."""


class Bench:
    """One application and its topics, to which both programs send.

    Arguments:
        name: The application's name.
    """

    def __init__(self, rig: Rig, name: str) -> None:
        self._rig = rig
        self._name = name
        #: The reports of the bare producer.
        self.said: list[Sent] = []

    async def _run(self, *command: str) -> tuple[float, float, str]:
        """Run a command to its end. Returns seconds, seconds of CPU, and the end of its output."""
        began, cpu = time.monotonic(), _cpu_of_children()
        process = self._rig.start(Contender(command[-1], command), self._name, f"{self._name}.")
        await process.ended(LONGEST_SECONDS)
        return time.monotonic() - began, _cpu_of_children() - cpu, process.tail()

    async def prepare(self) -> None:
        """Create topics, products and customers."""
        await self._run(*SHOPFLOW, "seed-products", "--direct")
        await self._run(*SHOPFLOW, "seed-customers", "--direct", "--count", str(BUYERS))
        for what in ("customers", "purchases"):
            await self._run(*SHOPFLOW, *_seed(what, 1))

    async def shopflow(self, what: str, count: int) -> Seeding:
        """Run shopflow's command for one event, then for all."""
        start, start_cpu, _ = await self._run(*SHOPFLOW, *_seed(what, 1))
        async with _Grown(self._rig.kafka, f"{self._name}.{what}", count):
            seconds, cpu, _ = await self._run(*SHOPFLOW, *_seed(what, count))
        return Seeding(records=count, seconds=seconds - start, cpu_seconds=cpu - start_cpu, start_seconds=start)

    async def bare(self, what: str, count: int) -> Seeding:
        """Run the bare producer."""
        async with _Grown(self._rig.kafka, f"{self._name}.{what}", count):
            _, _, said = await self._run(*module("bare_producer"), what, str(count))
        sent = msgspec.json.decode(said.splitlines()[-1], type=Sent)
        self.said.append(sent)
        return Seeding(
            records=count,
            seconds=sent.sending_seconds,
            cpu_seconds=sent.sending_cpu_seconds,
            start_seconds=sent.making_seconds,
        )


class _Grown:
    """Check that a topic gets this many records more."""

    def __init__(self, bootstrap: str, topic: str, count: int) -> None:
        self._bootstrap = Bootstrap(bootstrap)
        self._topic = topic
        self._count = count
        self._before = 0

    async def __aenter__(self) -> None:
        self._before = await self._size()

    async def __aexit__(self, *failure: object) -> None:
        grown = await self._size() - self._before
        if failure[0] is None and grown != self._count:
            raise FailedError(f"{grown} records instead of {self._count} in {self._topic}")

    async def _size(self) -> int:
        found = await spans(self._bootstrap, "seeding", [self._topic])
        return sum(span.end - span.start for span in found[self._topic].values())


def _seed(what: str, count: int) -> Sequence[str]:
    rate = ("--rate", "0", "--with-prices") if what == "purchases" else ()
    return ("--quiet", f"seed-{what}", "--count", str(count), *rate)


def _cpu_of_children() -> float:
    """Seconds of CPU of all child processes that have ended. They run one after the other."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def show(what: str, rows: dict[str, list[Seeding]]) -> None:
    """Print a table. Rates are compared with the bare producer's."""
    print(f"\n### {what}\n")
    print("| | records | seconds | a second (slowest to fastest round) | ratio | CPU us each | start s |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    measure = _median(rows["bare producer"], lambda each: each.rate)
    for name, rounds in rows.items():
        rate = _median(rounds, lambda each: each.rate)
        rates = [each.rate for each in rounds]
        print(
            f"| {name} | {rounds[0].records:,} | {_median(rounds, lambda each: each.seconds):.1f} "
            f"| {rate:,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | {rate / measure:.2f} "
            f"| {_median(rounds, lambda each: each.cpu_us):.1f} "
            f"| {_median(rounds, lambda each: each.start_seconds):.1f} |"
        )


def _median(rounds: Sequence[Seeding], figure: Callable[[Seeding], float]) -> float:
    return median(figure(each) for each in rounds)


async def run(rig: Rig, arguments: argparse.Namespace) -> None:
    """Measure purchases, then customers."""
    bench = Bench(rig, rig.new_name("seeding"))
    await bench.prepare()
    for what, count in (("purchases", arguments.purchases), ("customers", arguments.customers)):
        rows: dict[str, list[Seeding]] = {"bare producer": [], f"shopflow seed-{what}": []}
        for _ in range(arguments.rounds):
            for each, program in zip(rows.values(), (bench.bare, bench.shopflow), strict=True):
                await rig.rest()
                each.append(await program(what, count))
        show(what, rows)
    customers = bench.said[-arguments.rounds :]
    drawn, made = (
        median(figures) for figures in zip(*((s.faker_seconds, s.making_seconds) for s in customers), strict=True)
    )
    print(
        f"\nFaker: {drawn:.2f} s at the start, for any number of customers (its import, and drawing names and streets)."
        f" Making and encoding {arguments.customers:,} customers of these: {made:.2f} s."
    )


def main() -> None:
    """Start the servers, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--purchases", type=int, default=300_000)
    parser.add_argument("--customers", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shopflow-bench-") as folder, opened(None, Path(folder)) as rig:
        asyncio.run(run(rig, arguments))


if __name__ == "__main__":
    main()
