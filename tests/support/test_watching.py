"""The benchmarks' watch over an event loop reports every pause."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path

import pytest

from benchmarks.watching import Collection, Seen, Wake, Watch, held, read


def test_a_loop_that_is_held_is_noticed(tmp_path: Path) -> None:
    """A blocking sleep of 80 ms and a garbage collection are found, also after the report went through a file."""

    async def watched() -> Watch:
        watch = Watch()
        task = asyncio.create_task(watch.run())
        await asyncio.sleep(0.05)
        time.sleep(0.08)  # noqa: ASYNC251 - the point
        gc.collect()
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        return watch

    callbacks = list(gc.callbacks)
    began = time.monotonic()
    watch = asyncio.run(watched())
    watch.write(tmp_path / "seen")
    found = held(read(tmp_path / "seen"), began, time.monotonic())
    assert found.longest >= 70
    assert found.longest_cpu < found.longest - 50, "it slept, and used no processor"
    assert found.collections >= 1
    assert 0 < found.longest_collection < found.longest
    assert gc.callbacks == callbacks


def test_only_what_was_seen_in_the_time_asked_for_counts() -> None:
    """The start of a worker takes long, and must not count as a pause under load."""
    wakes = [Wake(at=0.5, late=9.0, cpu=9.0), *(Wake(at=1 + n / 100, late=n / 1000, cpu=0.001) for n in range(101))]
    collections = [Collection(at=0.5, seconds=3.0, generation=2), Collection(at=1.5, seconds=0.004, generation=0)]
    found = held(Seen(wakes, collections), 1.0, 3.0)
    assert (found.wakes, found.collections) == (101, 1)
    assert [round(value, 6) for value in (found.p50, found.p99, found.longest, found.longest_cpu)] == [50, 99, 100, 1]
    assert found.longest_collection == pytest.approx(4)
    assert found.longest_collecting == 0


def test_garbage_collections_in_the_longest_pause_are_reported() -> None:
    """A pause by a garbage collection needs another remedy than one by the program."""
    wakes = [Wake(at=1.0, late=0.001, cpu=0.0), Wake(at=2.0, late=0.1, cpu=0.03)]
    collections = [Collection(at, seconds=0.02, generation=0) for at in (1.5, 1.92, 1.97, 2.5)]
    assert held(Seen(wakes, collections), 0.0, 3.0).longest_collecting == pytest.approx(40)


def test_a_loop_that_nobody_watched_is_not_called_free() -> None:
    """Without measurements the report raises instead of showing no pause."""
    with pytest.raises(ValueError, match="in 0 moments"):
        held(Seen(), 0.0, 1.0)
