"""A client waits as long as Kafka's quotas say, and that is told once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.client import ConnectionGroup

from faust_batches import quotas
from faust_batches.quotas import THROTTLED, Quotas
from faust_batches.troubles import Troubles


class Clock:
    """A time that only sleeping moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(quotas, "monotonic", lambda: self.now)
        monkeypatch.setattr(quotas, "asyncio", SimpleNamespace(sleep=self.sleep))

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Client:
    """Answers each request with a pause in milliseconds, and notes when it was sent."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sent: list[tuple[Any, float]] = []

    async def send(self, node_id: Any, pause: int | None, *, group: Any) -> Any:
        self.sent.append(((node_id, group), self.clock.now))
        return SimpleNamespace() if pause is None else SimpleNamespace(throttle_time_ms=pause)


def test_nothing_is_sent_over_a_connection_until_its_pause_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka reads nothing from it. Connections to other brokers, and the group's own, go on."""
    clock = Clock(monkeypatch)
    client = Client(clock)
    Quotas(Troubles()).heed(client)

    async def requests() -> None:
        await client.send(1, 50_000)  # type: ignore[call-arg]
        await client.send(2, 0)  # type: ignore[call-arg]
        await client.send(1, 0, group=ConnectionGroup.COORDINATION)
        await client.send(1, None)  # type: ignore[call-arg]
        await client.send(1, None)  # type: ignore[call-arg]

    asyncio.run(requests())
    usual, group = ConnectionGroup.DEFAULT, ConnectionGroup.COORDINATION
    assert client.sent == [
        *(((1, usual), 1_000.0), ((2, usual), 1_000.0), ((1, group), 1_000.0)),
        *(((1, usual), 1_050.0), ((1, usual), 1_050.0)),
    ]


def test_long_pauses_are_told_until_there_was_none_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause below a second is not worth a word. One client's good answers don't end what another's said."""
    clock, troubles = Clock(monkeypatch), Troubles()
    client = Client(clock)
    Quotas(troubles).heed(client)

    def present() -> list[str]:
        return [trouble.text.partition("; ")[0] for trouble in troubles.present if trouble.kind == THROTTLED]

    def answer(pause: int) -> list[str]:
        asyncio.run(client.send(1, pause))  # type: ignore[call-arg]
        return present()

    told = "Kafka slows this worker down: a quota is used up, and Kafka asked for a pause of"
    assert answer(900) == []
    assert answer(2_000) == [f"{told} 2 s"]
    assert answer(0) == [f"{told} 2 s"]
    assert answer(7_000) == [f"{told} 7 s"]
    assert answer(10) == [f"{told} 7 s"]
    clock.now += 29
    assert answer(0) == [f"{told} 7 s"]
    clock.now += 2
    assert answer(0) == []
    assert not any(trouble.stops for trouble in troubles.present)
