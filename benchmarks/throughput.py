"""How fast purchases get from Kafka to MongoDB, and at what cost: `python -m benchmarks.throughput [--rounds N] ...`

The purchases wait in a topic of 4 partitions. Each contender is a process of its own. They run in turn on the same
servers, every second round in reverse order. The first run on new servers does not count, because it is faster than the
others. The time is from the start of consumption until the last purchase is stored and its offset is committed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import benthos
from benchmarks.report import plot, print_table, write
from benchmarks.rig import Contender, FailedError, Load, Measured, Rig, module, opened
from shopflow.config.promotions import EXAMPLES

#: Faust's workers print this when the tables are recovered and they begin to consume.
FAUST_STARTED = r"Worker ready"
CONNECT_STARTED = r"finished initialization and start"
BENTHOS_STARTED = r"kafka_franz is now active"
QUIX_STARTED = r"application started and is now processing"
WORKER = ("worker", "-l", "info", "--web-port", "{port}")

FAUST = (sys.executable, "-m", "faust", "--datadir", "tables")

CONTENDERS = (
    Contender("loop", module("loop")),
    Contender("shopflow", (sys.executable, "-m", "shopflow", *WORKER), started=FAUST_STARTED),
    Contender("quix", module("quix"), started=QUIX_STARTED, share=0.2),
    Contender(
        "connector", (*module("connector"), "{port}"), started=CONNECT_STARTED, share=0.3, group="connect-{name}"
    ),
    Contender("benthos", module("benthos"), started=BENTHOS_STARTED, share=0.2),
    Contender("plain-faust", (*FAUST, "-A", "benchmarks.plain_faust", *WORKER), started=FAUST_STARTED, share=0.04),
    Contender("textbook", (*FAUST, "-A", "benchmarks.textbook", *WORKER), started=FAUST_STARTED, share=0.02),
)
#: The model has 1,000 customers, and adds a repeated purchase twice.
MODEL = Contender("model", module("model"), share=0.005, collection=None)
COUNTERS = (
    Contender("shopflow", (*module("counts_shopflow"), *WORKER), started=FAUST_STARTED, collection=None),
    Contender("quix", module("counts_quix"), started=QUIX_STARTED, share=0.5, collection=None),
)

#: For the cost of sales and customer activity: a complete worker, and one without these steps.
FOLLOWED = (
    Contender("bare", (*module("bare_shopflow"), *WORKER), started=FAUST_STARTED),
    Contender("shopflow", (sys.executable, "-m", "shopflow", *WORKER), started=FAUST_STARTED),
)


def _rules() -> Iterator[dict[str, Any]]:
    """One rule of each kind. The one about a share names products, because the benchmark's products have no types."""
    for rule in EXAMPLES:
        if "product_types" in rule:
            other = {name: value for name, value in rule.items() if name != "product_types"}
            yield {**other, "product_ids": ["product-0", "product-1"]}
        else:
            yield rule


#: For the cost of promotions: a worker without rules, and one with some.
PROMOTED = (
    FOLLOWED[1],
    replace(FOLLOWED[1], name="promotions", environment={"SHOPFLOW_PROMOTIONS": json.dumps(list(_rules()))}),
)

LOADS: dict[str, tuple[Load, Sequence[Contender]]] = {
    "1000": (Load("1000-customers", 1_000), (*CONTENDERS, MODEL)),
    "1000000": (Load("1000000-customers", 1_000_000), CONTENDERS),
    "repeated": (Load("5-percent-repeated", 1_000, repeated=0.05), CONTENDERS),
    "counts-1000": (Load("counts-1000-customers", 1_000), COUNTERS),
    "counts-1000000": (Load("counts-1000000-customers", 1_000_000), COUNTERS),
    "followed-1000": (Load("followed-1000-customers", 1_000), FOLLOWED),
    "followed-1000000": (Load("followed-1000000-customers", 1_000_000), FOLLOWED),
    "promoted-1000": (Load("promoted-1000-customers", 1_000), PROMOTED),
    "promoted-1000000": (Load("promoted-1000000-customers", 1_000_000), PROMOTED),
    "scattered-1000": (Load("scattered-1000-customers", 1_000, scattered=True), FOLLOWED),
}


async def run(rig: Rig, arguments: argparse.Namespace) -> list[Measured]:
    """Measure all rounds."""
    found: list[Measured] = []
    for name in arguments.loads:
        load = LOADS[name][0]
        contenders = chosen(name, arguments)
        if not found and contenders:
            await measure(rig, contenders[0], load, arguments.purchases // 2, "not counted")
        for number in range(arguments.rounds):
            for contender in contenders[:: -1 if number % 2 else 1]:
                if measured := await measure(rig, contender, load, arguments.purchases, f"round {number + 1}"):
                    found.append(measured)
                    write(found, arguments.out)
    return found


def chosen(load: str, arguments: argparse.Namespace) -> list[Contender]:
    """The contenders of a load that are wanted."""
    return [each for each in LOADS[load][1] if not arguments.only or each.name in arguments.only]


async def measure(rig: Rig, contender: Contender, load: Load, purchases: int, what: str) -> Measured | None:
    """Measure one run, and print the result. None if it failed."""
    print(f"{load.name}, {what}: {contender.name} ", end="", flush=True)
    try:
        measured = await rig.measure(contender, load, purchases)
    except FailedError as error:
        print(f"FAILED: {error}", flush=True)
        return None
    print(
        f"{measured.rate:,.0f}/s, {measured.cpu_us:.1f} us, {measured.peak_mb:.0f} MB, "
        f"{measured.seconds:.1f} s ({measured.stored_seconds:.1f})",
        flush=True,
    )
    return measured


def main() -> None:
    """Start the servers, measure, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--purchases", type=int, default=1_000_000, help="records of the backlog; slow ones get fewer")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"of {', '.join(each.name for each in (*CONTENDERS, MODEL))}"
    )
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--mongodb", metavar="URI", help="this one instead of the fast one, or the embedded one")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark.json"), help="the figures; beside it the plot, as .svg"
    )
    arguments = parser.parse_args()
    if any(each.name == "benthos" for load in arguments.loads for each in chosen(load, arguments)):
        benthos.build()
    with (
        tempfile.TemporaryDirectory(prefix="shopflow-bench-") as folder,
        opened(arguments.mongodb, Path(folder)) as rig,
    ):
        found = asyncio.run(run(rig, arguments))
    print_table(found)
    if found:
        plot(found, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
