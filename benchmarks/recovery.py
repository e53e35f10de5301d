"""How fast a worker recovers its tables: `python -m benchmarks.recovery [--customers N] [--faust-customers N] ...`

The changelog has a count for each customer. The time is from the start of a worker until it is ready: first with an
empty data directory, then with the directory that it kept. Contenders are shopflow and plain Faust.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.rig import Contender, Load, Process, Rig, module, opened, until
from benchmarks.throughput import COUNTERS, FAUST, FAUST_STARTED, WORKER

# The directory of the tables is fixed: by default it depends on the port, which changes.
SHOPFLOW = replace(COUNTERS[0], command=(*module("counts_shopflow"), "--datadir", "tables", *WORKER))
PLAIN_FAUST = Contender("plain-faust", (*FAUST, "-A", "benchmarks.plain_faust", *WORKER), started=FAUST_STARTED)
#: Each purchase has another customer.
LOAD = Load("each-another", customers=0)


async def ready(rig: Rig, contender: Contender, name: str, prefix: str) -> tuple[Process, float]:
    """Start a worker, and wait until its tables are recovered. Returns it, and the seconds that this took."""
    began = time.monotonic()
    process = rig.start(contender, name, prefix)
    await until(lambda: process.said(contender.started), process, 900, 0.05)
    return process, time.monotonic() - began


def recovered(port: int) -> int:
    """The number of customers in the tables of the worker at this port."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/counts/") as answer:
        return int(json.load(answer)["customers"])


async def twice(rig: Rig, contender: Contender, name: str, prefix: str, customers: int) -> None:
    """Measure with an empty directory, then with the one that the worker kept."""
    for what in ("an empty directory", "the directory it kept"):
        process, seconds = await ready(rig, contender, name, prefix)
        peak = process.peak_mb()
        if contender is SHOPFLOW:
            assert await asyncio.to_thread(recovered, rig.port) == customers
        process.stop()
        rate = f"{customers / seconds:,.0f}" if what == "an empty directory" else ""
        print(f"| {contender.name}, {what} | {customers:,} | {seconds:.1f} | {rate} | {peak:.0f} |", flush=True)


async def shopflow(rig: Rig, customers: int) -> None:
    """Measure shopflow, on a changelog that it writes itself."""
    backlog = await rig.backlog(LOAD, customers)
    name = rig.new_name("shopflow")
    process = rig.start(SHOPFLOW, name, backlog.prefix)
    await rig.committed(name, backlog, process)
    process.stop()
    shutil.rmtree(rig.folder / name / "tables")
    await twice(rig, SHOPFLOW, name, backlog.prefix, customers)


async def plain_faust(rig: Rig, customers: int) -> None:
    """Measure plain Faust. Its changelog is produced here, because Faust would take hours to write it."""
    name = rig.new_name("plain-faust")
    await rig.create_topic(f"{name}.purchases")
    changelog = f"{name}-purchase_counts-changelog"
    await rig.create_topic(changelog, cleanup_policy="compact")

    def rows() -> Iterator[tuple[bytes, bytes]]:
        count = {"purchases": 1, "items": 2, "spent": 798, "__faust": {"ns": "benchmarks.plain_faust.Count"}}
        value = json.dumps(count).encode()
        for number in range(customers):
            yield f'"customer-{number}"'.encode(), value

    await rig.produce(changelog, rows())
    await twice(rig, PLAIN_FAUST, name, f"{name}.", customers)


async def run(rig: Rig, arguments: argparse.Namespace) -> None:
    """Measure both, and print a table."""
    print("| | customers | seconds until ready | customers a second | peak MB |")
    print("|---|---:|---:|---:|---:|")
    await shopflow(rig, arguments.customers)
    await plain_faust(rig, arguments.faust_customers)


def main() -> None:
    """Start the servers, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--customers", type=int, default=1_000_000)
    parser.add_argument("--faust-customers", type=int, default=200_000, help="fewer: the rates are compared")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shopflow-bench-") as folder, opened(None, Path(folder)) as rig:
        asyncio.run(run(rig, arguments))


if __name__ == "__main__":
    main()
