"""The effect of more workers, and of more partitions: `python -m benchmarks.scaling [--purchases N] ...`

One, two and three workers on a topic of 4 partitions, and one worker on topics of 4, 16 and 64. The purchases are in an
open transaction while the workers start, so that no worker sees them. When the group is complete, the transaction is
committed, and the clock starts.

The first run on new servers does not count: it was a fourth faster than the others, with any number of workers. Every
second round is in reverse order.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.report import summaries
from benchmarks.rig import (
    PARTITIONS,
    START_SECONDS,
    FailedError,
    Load,
    Measured,
    Rig,
    Run,
    Together,
    opened,
    until,
)
from benchmarks.throughput import CONTENDERS
from shopflow.kafka.group import group_of
from shopflow.kafka.security import Bootstrap

SHOPFLOW = next(each for each in CONTENDERS if each.name == "shopflow")
CUSTOMERS = 1_000
#: Kafka aborts a transaction that is open for longer.
TRANSACTION_SECONDS = 600


def named(count: int, what: str) -> str:
    """A number and a noun, as in the tables."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


async def measure(rig: Rig, workers: int, partitions: int, purchases: int) -> Measured:
    """Let this many workers empty a topic.

    Raises:
        FailedError: They did not.
    """
    contender = replace(SHOPFLOW, name=named(workers, "worker"))
    load = Load(named(partitions, "partition"), CUSTOMERS, partitions=partitions)
    name = rig.new_name(f"scaling-{workers}-{partitions}")
    rig.create_indexes(name)
    async with rig.producer(transactional_id=name, transaction_timeout_ms=TRANSACTION_SECONDS * 1_000) as producer:
        await producer.begin_transaction()
        backlog = await rig.fill(producer, load, purchases, f"{name}.")
        await producer.flush()
        started = [rig.start(contender, name, backlog.prefix, partitions) for _ in range(workers)]
        together = Together(started)
        try:
            await complete(rig, name, together, workers)
            await rig.rest()
            await producer.commit_transaction()
            return await rig.observe(Run(contender, load, backlog, together, name))
        finally:
            together.stop()
            await rig.forget(name)


async def complete(rig: Rig, group: str, together: Together, workers: int) -> None:
    """Wait until all workers are ready and members of the group.

    Raises:
        FailedError: A worker has ended, or it took too long.
    """

    async def is_complete() -> bool:
        if not together.said(SHOPFLOW.started):
            return False
        found = await group_of(Bootstrap(rig.kafka), group)
        return found.state == "Stable" and len(found.members) == workers

    await until(is_complete, together, START_SECONDS)


def show(found: Sequence[Measured]) -> None:
    """Print a table in Markdown. Rates are compared with the first row's."""
    print(
        "\n| | purchases | a second (slowest to fastest round) | ratio | CPU us each | servers' | "
        "processors busy | servers' |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    first = None
    for each in summaries(found):
        first = first or each
        print(
            f"| {each.contender}, {each.load} | {each.records:,} "
            f"| {each.rate:,.0f} ({each.slowest:,.0f} to {each.fastest:,.0f}) | {each.rate / first.rate:.2f} "
            f"| {each.cpu_us:.1f} | {each.server_cpu_us:.1f} "
            f"| {each.rate * each.cpu_us / 1e6:.2f} | {each.rate * each.server_cpu_us / 1e6:.2f} |"
        )


async def run(rig: Rig, arguments: argparse.Namespace) -> list[Measured]:
    """Measure all rounds."""
    found: list[Measured] = []
    wanted = [(workers, PARTITIONS) for workers in arguments.workers]
    wanted += [(1, partitions) for partitions in arguments.partitions if (1, partitions) not in wanted]
    print("Warming up ...", flush=True)
    await measure(rig, 1, PARTITIONS, arguments.purchases)
    for number in range(arguments.rounds):
        for workers, partitions in wanted[:: -1 if number % 2 else 1]:
            print(f"{named(workers, 'worker')}, {named(partitions, 'partition')} ", end="", flush=True)
            try:
                found.append(await measure(rig, workers, partitions, arguments.purchases))
            except FailedError as error:
                print(f"FAILED: {error}", flush=True)
                continue
            print(f"{found[-1].rate:,.0f}/s, {found[-1].seconds:.1f} s", flush=True)
    return found


def main() -> None:
    """Start the servers, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--purchases", type=int, default=300_000)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 3], help=f"with {PARTITIONS} partitions")
    parser.add_argument("--partitions", type=int, nargs="*", default=[4, 16, 64], help="with one worker")
    parser.add_argument("--mongodb", metavar="URI", help="this one instead of the fast one, or the embedded one")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="shopflow-bench-") as folder,
        opened(arguments.mongodb, Path(folder)) as rig,
    ):
        found = asyncio.run(run(rig, arguments))
    print(f"\nThis machine has {os.cpu_count()} processors.")
    show(found)


if __name__ == "__main__":
    main()
