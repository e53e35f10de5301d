"""The watch of topics: each thing that is wrong is told by one sentence, also if a batch is refused for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from faust_batches import Troubles
from shopflow.errors import Refused
from shopflow.kafka.needs import Finding
from shopflow.kafka.offsets import Span
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


def test_a_broker_that_wakes_up_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a moment no copy is up to date. What is still so at the next look is told, until it is over."""
    short = Finding("topic-copies", "sold", "Topic sold has 0 copies up to date", stops=True)
    looks: list[list[Finding]] = [[short], [], [short], [short], [short], []]

    async def topics(*_: Any) -> list[Finding]:
        return looks.pop(0)

    monkeypatch.setattr(watch, "topics", topics)
    troubles = Troubles()
    ground = watch.Ground(troubles, lambda: None, [], dict)  # type: ignore[arg-type, return-value]
    told = []
    while looks:
        asyncio.run(ground.round())
        told.append(len(troubles.present))
    assert told == [0, 0, 0, 1, 1, 0]


COUNTED, UNREAD, ROWS, DELETED, NEVER = Span(0, 5, 9), Span(0, 0, 9), Span(3, 3, 7), Span(7, 7, 7), Span(0, 0, 0)


@pytest.mark.parametrize(
    ("sold", "changelog", "refused"),
    [
        ([COUNTED, UNREAD], [ROWS, NEVER], None),
        ([COUNTED, COUNTED], [ROWS, DELETED], "has no record in partition 1, though 5 purchases were counted"),
        ([COUNTED, COUNTED], [DELETED, DELETED], "is empty, though 10 purchases were counted"),
        ([COUNTED, UNREAD], [], "is empty, though 5 purchases were counted"),
    ],
)
def test_a_worker_does_not_start_where_counts_were_deleted(
    monkeypatch: pytest.MonkeyPatch, sold: list[Span], changelog: list[Span], refused: str | None
) -> None:
    """It would begin with zero, and `replay` would no longer know how many purchases were counted."""
    looks = [{"sold": dict(enumerate(sold)), "changelog": dict(enumerate(changelog))}] * 2

    async def spans(*_: Any) -> Any:
        return looks.pop()

    monkeypatch.setattr(watch.offsets, "spans", spans)
    check = watch.check_changelog(None, "shop", "sold", "changelog")  # type: ignore[arg-type]
    if refused:
        with pytest.raises(Refused, match=f"topic changelog: {refused}"):
            asyncio.run(check)
    else:
        asyncio.run(check)


def test_a_worker_that_starts_beside_a_first_batch_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The offsets of one look are asked one after the other: the batch may be finished in between."""
    looks = [{"sold": {0: COUNTED}, "changelog": {0: rows}} for rows in (ROWS, NEVER)]

    async def spans(*_: Any) -> Any:
        return looks.pop()

    monkeypatch.setattr(watch.offsets, "spans", spans)
    asyncio.run(watch.check_changelog(None, "shop", "sold", "changelog"))  # type: ignore[arg-type]
