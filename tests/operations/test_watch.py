"""The watch of topics: each thing that is wrong is told by one sentence, also if a batch is refused for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from faust_batches import Troubles
from shopflow.kafka.needs import Finding
from shopflow.operations import watch

SMALL = Finding("topic-config", "sold max.message.bytes", "Topic sold has max.message.bytes=100")
GONE = Finding("topic-missing", "bought", "Topic bought does not exist", stops=True)
COMPACTED = Finding("topic-config", "sold cleanup.policy", "Topic sold has cleanup.policy=compact")


def test_what_a_refusal_tells_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The refusal has the same command, and says that work waits. Nobody is told that the finding is over."""
    found: list[Finding] = [SMALL, GONE, COMPACTED]

    async def topics(*_: Any) -> list[Finding]:
        return found

    monkeypatch.setattr(watch, "topics", topics)
    troubles = Troubles()
    ground = watch.Ground(troubles, lambda: None, [], dict)  # type: ignore[arg-type, return-value]

    def told() -> set[str]:
        asyncio.run(ground.round())
        return {trouble.text for trouble in troubles.present}

    assert told() == {SMALL.text, GONE.text, COMPACTED.text}
    for topic in ("sold", "bought"):
        troubles.begin("refused", topic, f"Kafka refuses {topic}", stops=True)
    assert told() == {"Kafka refuses sold", "Kafka refuses bought", COMPACTED.text}
    assert not any("over" in line for line in caplog.messages)
    troubles.end("refused", "sold")
    found.remove(GONE)
    assert told() == {SMALL.text, "Kafka refuses bought", COMPACTED.text}
