"""`replay` as a command: servers and a worker if none run, progress, and what became of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shopflow import topics
from shopflow.app import config, connect, kafka_at, store
from shopflow.kafka import connection as kafka
from shopflow.operations import replay as rebuild
from shopflow.servers.servers import Addresses, Servers
from shopflow.servers.worker import child_worker

from .progress import progress_bar

__all__ = ["replay"]

Say = Callable[[str], None]


def replay(say: Say, *, keep_tables: bool, quiet: bool) -> int:
    """Run it. Returns the exit status: 0 when all was read again, 130 on Ctrl-C."""
    begun = False
    try:
        with Servers(config, say) as servers:
            addresses = servers.start()
            connect(addresses)
            running = bool(asyncio.run(kafka.group_of(kafka_at(addresses), config.app_id)).members)
            work = asyncio.run(_begin(addresses, keep_tables=keep_tables))
            begun = True
            say(f"{'MongoDB' if keep_tables else 'MongoDB and the tables'}: {work.total} events are read again.")
            with _somebody(say, running=running) as check:
                bar = progress_bar("replay", work.total, quiet=quiet)
                asyncio.run(rebuild.finished(kafka_at(addresses), topics.LAYOUT, work, check, bar))
    except KeyboardInterrupt:
        if begun:
            say("Stopped. What is left of the replay is done by the workers that run, or by the next one.")
        else:
            say("Stopped before the workers were sent back to the start. Run it again.")
        return 128 + signal.SIGINT
    say("Done. `faust -A shopflow verify` compares Kafka, MongoDB and the tables.")
    return 0


async def _begin(addresses: Addresses, *, keep_tables: bool) -> rebuild.Work:
    try:
        await kafka.ensure_topics(kafka_at(addresses), topics.SPECS)
        return await rebuild.begin(
            kafka_at(addresses),
            store,
            topics.LAYOUT,
            max_event_bytes=config.batching.max_event_bytes,
            keep_tables=keep_tables,
        )
    finally:
        await store.close()


@contextmanager
def _somebody(say: Say, *, running: bool) -> Iterator[Callable[[], None]]:
    """Workers that run, or one of ours; gives what tells that ours has died."""
    if running:
        say("The workers that run do it.")
        yield lambda: None
        return
    with child_worker(config, "replay", say) as worker:
        say(f"No worker runs; one is started for it (its log: {worker.log}).")
        yield worker.check
