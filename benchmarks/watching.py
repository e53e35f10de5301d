"""How long an event loop is held, seen from a task in it."""

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

#: Between two looks. Who holds the loop is noticed by what goes beyond: up to so much less than it was.
SLEEP_SECONDS = 0.005


class Wake(msgspec.Struct, gc=False, array_like=True):
    """The task woke up."""

    at: float
    """When (`time.monotonic`, the same in all processes)."""

    late: float
    """So many seconds after it wanted to."""

    cpu: float
    """Seconds of CPU that the loop's thread used since it fell asleep. Much less than `late`: it had no processor."""


class Collection(msgspec.Struct, gc=False, array_like=True):
    """Python's garbage collector ran, in whatever thread; no other runs Python meanwhile."""

    at: float
    """When it ended."""

    seconds: float
    generation: int


class Seen(msgspec.Struct):
    """Everything that was seen."""

    wakes: list[Wake] = []
    collections: list[Collection] = []


class Watch:
    """Watches the loop that it runs in, and the process's garbage collector."""

    def __init__(self) -> None:
        self.seen = Seen()
        self._collecting_since = 0.0

    async def run(self) -> None:
        """Until it is cancelled."""
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
        """What was seen, as JSON."""
        path.write_bytes(msgspec.json.encode(self.seen))


def read(path: Path) -> Seen:
    """What `Watch.write` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Seen)


@dataclass(frozen=True)
class Held:
    """How late the task woke up in some time. In ms."""

    wakes: int
    p50: float
    p99: float
    longest: float
    longest_cpu: float
    """What the loop's thread used of a processor in the longest."""

    longest_collecting: float
    """How long the garbage collector ran in the longest."""

    collections: int
    longest_collection: float


def held(seen: Seen, since: float, until: float) -> Held:
    """What was seen between these times (`time.monotonic`).

    Raises:
        ValueError: Next to nothing.
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
