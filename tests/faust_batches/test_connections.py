"""What an aiokafka client asks of Kafka while a partition has no leader."""

from __future__ import annotations

import asyncio
from time import monotonic
from types import SimpleNamespace

from faust_batches.connections import pace_refreshes


def test_a_client_that_asks_for_metadata_again_and_again_pauses() -> None:
    """aiokafka asks at once, as long as records wait for a partition without a leader; a few requests don't wait."""

    async def requests_within(seconds: float) -> tuple[float, int]:
        asked = 0

        async def update(cluster: object, topics: object) -> bool:
            nonlocal asked
            asked += 1
            return True

        client = SimpleNamespace(_metadata_update=update)
        pace_refreshes(client)
        began = monotonic()
        for _ in range(10):
            assert await client._metadata_update(None, None)
        first = monotonic() - began
        while monotonic() - began < seconds:
            await client._metadata_update(None, None)
        return first, asked

    first, asked = asyncio.run(requests_within(1.0))
    assert first < 0.1
    assert 10 < asked <= 25
