"""The member of the consumer group: what it assigns as the leader."""

from __future__ import annotations

import uuid
from pathlib import Path
from time import monotonic

import pytest
from aiokafka.cluster import ClusterMetadata

from .running import Kafka, Loop
from .test_contract import PARTITIONS, Application, Real

#: For how long no broker seems to know a new topic. Half of the time that the leader waits.
LATE_SECONDS = 1.5


@pytest.mark.servers
def test_a_table_has_its_changelog_though_kafka_shows_new_topics_late(
    kafka: Kafka, loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader waits until Kafka shows the changelog that its table has just created. The worker counts, and goes on.

    Without the wait Faust assigns nothing of that changelog, and the table ends the worker.
    """
    topic = f"late-{uuid.uuid4().hex[:12]}"
    known = ClusterMetadata.partitions_for_topic
    asked: list[float] = []

    def late(self: ClusterMetadata, name: str) -> object:
        if name.endswith("-changelog"):
            asked.append(monotonic())
            if asked[-1] - asked[0] < LATE_SECONDS:
                return None
        return known(self, name)

    monkeypatch.setattr(ClusterMetadata, "partitions_for_topic", late)

    async def story() -> None:
        application = Application(kafka.url, topic, str(tmp_path))
        application.app.finalize()
        await application.app.start()
        try:
            batch = await Real(application).batch((b"a", b"1"))
            async with batch.turn():
                assert batch.tp.partition in application.table.owned_partitions()
        finally:
            await application.app.stop()

    kafka.create(topic, PARTITIONS)
    try:
        loop.run(story())
    finally:
        kafka.delete(topic)
    assert asked[-1] - asked[0] >= LATE_SECONDS
