"""Measures how long an event loop is held, by a task in it that is late then."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import msgspec

__all__ = ["Collection", "Held", "Seen", "Wake", "Watch", "held", "read"]

#: Seconds between two wakes. Of the time that the loop is held, up to this much goes unnoticed.
SLEEP_SECONDS = 0.005


class Wake(msgspec.Struct, gc=False, array_like=True):
    """One time that the task woke up."""

    at: float
    """The time (`time.monotonic`, the same in all processes)."""

    late: float
    """How much too late it was, in seconds."""

    cpu: float
    """Seconds of CPU of the loop's thread since the task fell asleep. Much less than `late`: it got no processor."""


class Collection(msgspec.Struct, gc=False, array_like=True):
    """One run of Python's garbage collector, in any thread. No other thread runs Python meanwhile."""

    at: float
    """The time of its end."""

    seconds: float
    generation: int


class Seen(msgspec.Struct):
    """All measurements."""

    wakes: list[Wake] = []
    collections: list[Collection] = []


class Watch:
    """Measures the event loop that it runs in, and the process's garbage collector."""

    def __init__(self) -> None:
        self.seen = Seen()
        self._collecting_since = 0.0

    async def run(self) -> None:
        """Measure until the task is cancelled."""
        loop = asyncio.get_running_loop()
        gc.callbacks.append(self._collecting)
        try:
            while True:
                wanted, cpu = loop.time() + SLEEP_SECONDS, time.thread_time()
                await asyncio.sleep(SLEEP_SECONDS)
                now = loop.time()
                self.seen.wakes.append(Wake(now, now - wanted, time.thread_time() - cpu))
        finally:
            gc.callbacks.remove(self._collecting)

    def _collecting(self, phase: str, info: dict[str, int]) -> None:
        now = time.monotonic()
        if phase == "start":
            self._collecting_since = now
        else:
            self.seen.collections.append(Collection(now, now - self._collecting_since, info["generation"]))

    def write(self, path: Path) -> None:
        """Write the measurements to a JSON file."""
        path.write_bytes(msgspec.json.encode(self.seen))


def read(path: Path) -> Seen:
    """Read a file that `Watch.write` has written."""
    return msgspec.json.decode(path.read_bytes(), type=Seen)


@dataclass(frozen=True)
class Held:
    """How late the task woke up within some time, in ms."""

    wakes: int
    p50: float
    p99: float
    longest: float
    longest_cpu: float
    """The CPU time of the loop's thread in the longest delay."""

    longest_collecting: float
    """How long the garbage collector ran in the longest delay."""

    collections: int
    longest_collection: float


def held(seen: Seen, since: float, until: float) -> Held:
    """The delays between these times (`time.monotonic`).

    Raises:
        ValueError: There are fewer than two measurements.
    """
    wakes = [wake for wake in seen.wakes if since <= wake.at < until]
    if len(wakes) < 2:
        raise ValueError(f"the loop was watched in {len(wakes)} moments only")
    pauses: Sequence[Collection] = [each for each in seen.collections if since <= each.at < until]
    cuts = quantiles((wake.late for wake in wakes), n=100, method="inclusive")
    longest = max(wakes, key=lambda wake: wake.late)
    return Held(
        wakes=len(wakes),
        p50=cuts[49] * 1e3,
        p99=cuts[98] * 1e3,
        longest=longest.late * 1e3,
        longest_cpu=longest.cpu * 1e3,
        longest_collecting=sum(each.seconds for each in pauses if 0 <= longest.at - each.at < longest.late) * 1e3,
        collections=len(pauses),
        longest_collection=max((each.seconds for each in pauses), default=0.0) * 1e3,
    )
