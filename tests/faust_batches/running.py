"""Topics and an event loop for tests that run a real application in their process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

T = TypeVar("T")

#: The shortest session timeout that Kafka allows, so that a killed worker's partitions soon go to others.
SESSION = {"broker_session_timeout": 6.0, "broker_heartbeat_interval": 0.6}
SECONDS = 60.0


class Loop:
    """An event loop that runs in a thread."""

    def __enter__(self) -> Loop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T], seconds: float = SECONDS) -> T:
        """Run a coroutine to its end. All run on the same loop."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, seconds), self._loop).result()


class Kafka:
    """Topics and records of a Kafka, as any client would see them."""

    def __init__(self, address: str) -> None:
        self.address = address

    @property
    def url(self) -> str:
        """The address as Faust writes it."""
        return ";".join(f"kafka://{server}" for server in self.address.split(";"))

    def create(self, topic: str, partitions: int) -> None:
        """Create a topic."""

        async def create() -> None:
            async with self._admin() as admin:
                await admin.create_topics([NewTopic(topic, partitions, 1)])

        asyncio.run(create())

    def delete(self, prefix: str) -> None:
        """Delete the topics whose names begin with this prefix."""

        async def delete() -> None:
            async with self._admin() as admin:
                await admin.delete_topics([name for name in await admin.list_topics() if name.startswith(prefix)])

        asyncio.run(delete())

    @asynccontextmanager
    async def _admin(self) -> Any:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()
