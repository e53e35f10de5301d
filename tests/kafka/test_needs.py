"""What topics need, and what is said about one that lacks it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.admin.new_partitions import NewPartitions
from aiokafka.client import AIOKafkaClient

from shopflow import topics
from shopflow.errors import Refused
from shopflow.kafka import connection, needs
from shopflow.kafka import topics as kafka_topics
from shopflow.kafka.needs import Finding, Found, Role, TopicSpec, judge, judge_partitions, judge_rights
from shopflow.kafka.security import Bootstrap
from shopflow.servers.servers import Addresses

PURCHASES = TopicSpec("shop.purchases", 4, 1)
PRODUCTS = TopicSpec("shop.products", 4, 1, compacted=True)
LETTERS = TopicSpec("shop.dead-letters", 4, 1, max_message_bytes=17 << 20, role=Role.RECORDS)
COUNTS = TopicSpec("shop-counts-changelog", 4, 1, compacted=True, role=Role.CHANGELOG)
SPECS = (PURCHASES, PRODUCTS, LETTERS, COUNTS)
#: Kafka's own defaults.
DEFAULTS = {
    "cleanup.policy": "delete",
    "retention.ms": "604800000",
    "retention.bytes": "-1",
    "max.message.bytes": "1048588",
    "min.insync.replicas": "1",
}


def as_needed(spec: TopicSpec, **changed: Any) -> Found:
    return replace(
        Found("id", spec.partitions, spec.replication, spec.replication, None, DEFAULTS | spec.configs), **changed
    )


def with_configs(spec: TopicSpec, copies: int = 1, **changed: str) -> Found:
    configs = {name.replace("_", "."): value for name, value in changed.items()}
    return as_needed(spec, configs=DEFAULTS | spec.configs | configs, copies=copies, in_sync=copies)


def findings(**changed: Found) -> list[Finding]:
    """Of topics that are as needed, but for those changed: by the last word of their names."""
    found = {spec.name: changed.get(spec.name.split(".")[-1].split("-")[-1], as_needed(spec)) for spec in SPECS}
    return judge(SPECS, found, "kafka:1")


def test_topics_as_shopflow_creates_them_lack_nothing() -> None:
    assert findings() == []
    assert judge(topics.SPECS, {spec.name: as_needed(spec) for spec in topics.SPECS}) == []


def test_the_last_of_three_copies_is_never_the_only_one() -> None:
    """With two copies, `min.insync.replicas` of 2 would stop all writes when one broker is down."""
    least = [TopicSpec("t", 1, copies).configs.get("min.insync.replicas") for copies in (1, 2, 3, 5)]
    assert least == [None, None, "2", "2"]


@pytest.mark.parametrize(
    ("topic", "spec", "changed", "says"),
    [
        ("purchases", PURCHASES, {"cleanup_policy": "compact"}, "can't be counted again"),
        ("purchases", PURCHASES, {"cleanup_policy": "compact,delete"}, "can't be counted again"),
        ("products", PRODUCTS, {"cleanup_policy": "delete"}, "deletes old records that are still needed"),
        ("changelog", COUNTS, {"cleanup_policy": "compact, delete"}, "deletes old records that are still needed"),
        ("purchases", PURCHASES, {"retention_ms": "5400000"}, "after 1.5 hours, also unread ones"),
        ("purchases", PURCHASES, {"retention_bytes": "1000000000"}, "of a larger partition, also unread ones"),
        ("letters", LETTERS, {"max_message_bytes": "16777216"}, "it refuses larger records"),
        ("changelog", COUNTS, {"max_message_bytes": "1000"}, "it refuses larger records"),
    ],
)
def test_a_harmful_configuration_is_told_with_the_command_that_mends_it(
    topic: str, spec: TopicSpec, changed: Mapping[str, str], says: str
) -> None:
    (one,) = findings(**{topic: with_configs(spec, **changed)})
    ((name, value),) = ((key.replace("_", "."), value) for key, value in changed.items())
    assert (one.kind, one.subject, one.stops) == ("topic-config", f"{spec.name} {name}", False)
    assert one.text.startswith(f"Topic {spec.name} has {name}={value}, needed is ")
    assert says in one.text
    assert one.text.endswith(
        "; to mend it, run `kafka-configs.sh --bootstrap-server kafka:1 --alter --entity-type topics "
        f"--entity-name {spec.name} --add-config {name}={spec.configs[name]}`"
    )


def test_a_compacted_topic_needs_no_retention_and_events_no_size() -> None:
    """Kafka takes no larger event than the topic does; the dead letters must hold each that it takes."""
    small = {"products": with_configs(PRODUCTS, retention_ms="1", max_message_bytes="2000000")}
    assert findings(**small, purchases=with_configs(PURCHASES, max_message_bytes="1048588")) == []
    letters = with_configs(LETTERS, max_message_bytes="1048588")
    (one,) = findings(**small, purchases=with_configs(PURCHASES, max_message_bytes="1048588"), letters=letters)
    assert "max.message.bytes=1048588, needed is 3048576" in one.text


def test_a_longer_retention_than_configured_does_no_harm() -> None:
    spec = replace(PURCHASES, retention_ms=3_600_000)
    assert judge([spec], {spec.name: with_configs(spec, retention_ms="-1")}) == []
    assert judge([spec], {spec.name: with_configs(spec, retention_ms="3600001")}) == []
    (one,) = judge([spec], {spec.name: with_configs(spec, retention_ms="3599999")})
    assert "needed is 3600000" in one.text


@pytest.mark.parametrize(
    ("copies", "in_sync", "least", "says", "stops"),
    [
        (1, 1, 1, None, False),
        (2, 2, 1, None, False),
        (3, 2, 2, None, False),
        (1, 1, 2, "has min.insync.replicas=2, but 1 copy of each partition: an older Kafka accepts no record", False),
        (3, 3, 4, "but 3 copies of each partition", False),
        (3, 1, 2, "has a partition with 1 copy up to date", True),
        (3, 3, 1, "a record is acknowledged when one broker has it", False),
    ],
)
def test_copies_are_compared_with_those_that_must_acknowledge(
    copies: int, in_sync: int, least: int, says: str | None, stops: bool
) -> None:
    spec = replace(PURCHASES, replication=copies)
    topic = replace(with_configs(spec, min_insync_replicas=str(least)), copies=copies, in_sync=in_sync)
    found = [(one.kind, one.stops, says is not None and says in one.text) for one in judge([spec], {spec.name: topic})]
    assert found == ([] if says is None else [("topic-copies", stops, True)])


def test_fewer_copies_than_configured_are_told() -> None:
    spec = replace(PURCHASES, replication=3)
    (one,) = judge([spec], {spec.name: replace(with_configs(spec, min_insync_replicas="1"))})
    assert "has 1 copy of each partition, topics.replication is 3" in one.text
    assert not one.stops


def test_what_kafka_does_not_show_is_not_judged() -> None:
    """`doctor` says that it is unknown."""
    assert findings(purchases=as_needed(PURCHASES, configs=None), letters=as_needed(LETTERS, configs=None)) == []


def test_a_missing_topic_stops_the_work() -> None:
    found = {spec.name: as_needed(spec) for spec in SPECS[1:]}
    (one,) = judge(SPECS, found)
    assert (one.kind, one.subject, one.stops) == ("topic-missing", "shop.purchases", True)


def test_all_topics_with_another_number_of_partitions_mean_a_wrong_setting() -> None:
    (one,) = judge_partitions(SPECS, {spec.name: 6 for spec in SPECS})
    assert one.text == (
        "topics.partitions: topic shop.purchases has 6 partitions, configured are 4; all topics have 6: "
        "set topics.partitions to 6"
    )
    assert judge_partitions([replace(spec, partitions=6) for spec in SPECS], {spec.name: 6 for spec in SPECS}) == []


@pytest.mark.parametrize(
    ("spec", "number", "says"),
    [
        (
            PURCHASES,
            6,
            "no worker reads the others, and Kafka can't take partitions away: stop the producers, begin anew",
        ),
        (PURCHASES, 1, "if no event was sent to it yet, run `kafka-topics.sh --bootstrap-server kafka:1 --alter"),
        (
            LETTERS,
            1,
            "run `kafka-topics.sh --bootstrap-server kafka:1 --alter --topic shop.dead-letters --partitions 4`",
        ),
        (
            COUNTS,
            6,
            "run `kafka-topics.sh --bootstrap-server kafka:1 --delete --topic shop-counts-changelog`, and then",
        ),
    ],
)
def test_another_number_of_partitions_is_told_with_what_can_be_done(spec: TopicSpec, number: int, says: str) -> None:
    (one,) = findings(**{spec.name.split(".")[-1].split("-")[-1]: as_needed(spec, partitions=number)})
    assert (one.kind, one.subject, one.stops) == ("topic-partitions", spec.name, True)
    assert f"topic {spec.name} has {number} partitions, configured are 4: " in one.text
    assert says in one.text


def test_further_partitions_that_workers_never_write_to_do_no_harm() -> None:
    assert findings(letters=as_needed(LETTERS, partitions=6)) == []


def test_a_topic_with_another_id_is_another_topic() -> None:
    """Workers know their place in events and changelogs by offset. Of what they only write, the records are lost."""
    first = {spec.name: as_needed(spec) for spec in SPECS}
    ids = {name: [topic.id] for name, topic in first.items()}
    assert needs.judge_ids(SPECS, first, {}) == needs.judge_ids(SPECS, first, ids) == []
    anew = {name: replace(topic, id="another") for name, topic in first.items()}
    found = {(one.kind, one.subject, one.stops) for one in needs.judge_ids(SPECS, anew, ids)}
    assert found == {("topic-replaced", spec.name, spec is not LETTERS) for spec in SPECS}
    partly = {PURCHASES.name: [first[PURCHASES.name].id, "another"]}  # a partition was never counted before
    assert [one.subject for one in needs.judge_ids(SPECS, anew, partly)] == [PURCHASES.name]


class Client:
    """A client of aiokafka that gives this answer to each request.

    Arguments:
        last: The last version of Metadata that its Kafka knows.
    """

    def __init__(self, *topics: tuple[Any, ...], last: int = 12) -> None:
        self._topics, self._last = list(topics), last

    def get_random_node(self) -> int:
        return 1

    async def send(self, node: int, request: Any) -> Any:
        request.prepare({3: (0, self._last)})
        return SimpleNamespace(topics=self._topics)


def test_a_kafka_that_is_too_old_is_refused() -> None:
    with pytest.raises(Refused, match=r"Kafka 2\.8 is the oldest"):
        asyncio.run(needs.look(Client(last=9), ["t"]))


def test_a_topic_that_may_not_be_seen_is_refused() -> None:
    strict = Client((29, "shop.purchases", uuid.UUID(int=0), False, [], 0, {}))
    with pytest.raises(Refused, match=r"topic shop.purchases: this user of Kafka has no right to see it"):
        asyncio.run(needs.look(strict, ["shop.purchases"]))


def test_a_topic_that_comes_between_two_requests_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted and made again: the first answer had the old one, the second none."""
    monkeypatch.setattr(needs, "_AGAIN_SECONDS", 0)
    answers: list[dict[str, Found]] = [{}, {"t": Found("new", 4)}]

    async def look(client: Any, names: Any) -> dict[str, Found]:
        return answers.pop(0)

    monkeypatch.setattr(needs, "_look", look)
    assert asyncio.run(needs.look(None, ["t"])) == {"t": Found("new", 4)}


@pytest.mark.servers
def test_kafka_tells_what_a_topic_has_and_when_it_is_another_one(servers: Addresses) -> None:
    """The request is our own: aiokafka has none with topic ids."""
    name, bootstrap = f"t{uuid.uuid4().hex}", Bootstrap(servers.kafka)
    spec = TopicSpec(name, 2, 1)

    async def look(client: AIOKafkaClient) -> Found:
        return (await needs.look(client, [name, f"{name}-none"]))[name]

    async def whole() -> tuple[Found, Found, Found]:
        await kafka_topics.ensure_topics(bootstrap, [spec])
        async with connection.admin(bootstrap) as admin, connection.client(bootstrap) as client:
            first = await look(client)
            await admin.create_partitions({name: NewPartitions(3)})
            await admin.alter_configs(
                [ConfigResource(ConfigResourceType.TOPIC, name, configs={"cleanup.policy": "compact"})]
            )
            while (changed := await look(client)).partitions == 2:
                await asyncio.sleep(0.1)
            await admin.delete_topics([name])
            while name in await needs._look(client, [name]):
                await asyncio.sleep(0.1)
            await kafka_topics.ensure_topics(bootstrap, [spec])
            return first, changed, await look(client)

    first, changed, anew = asyncio.run(asyncio.wait_for(whole(), 60))
    assert judge([spec], {name: first}) == judge([spec], {name: anew}) == []
    assert {one.kind for one in judge([spec], {name: changed})} == {"topic-partitions", "topic-config"}
    assert first.id == changed.id != anew.id
    assert first.operations
    assert (first.partitions, first.copies, first.in_sync) == (2, 1, 1)


def test_a_kafka_that_lists_no_broker_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is starting answers, without brokers: the first request would end with NodeNotReadyError."""

    async def bootstrapped(self: Any) -> None:
        return None

    monkeypatch.setattr("aiokafka.client.AIOKafkaClient.bootstrap", bootstrapped)
    said: list[str] = []
    with pytest.raises(Refused, match="broker: Kafka at kafka:1 has no broker that is ready"):
        asyncio.run(kafka_topics.wait_for(Bootstrap("kafka:1"), 0.1, said.append))
    assert said == ["Waiting for Kafka at kafka:1 ..."]


def test_rights_that_a_worker_lacks_are_named() -> None:
    """It reads all topics, and writes all but those of events. A Kafka that does not tell the rights is not judged."""
    read, write = 1 << 3, 1 << 4
    topics_ = {
        PURCHASES.name: as_needed(PURCHASES, operations=read),
        PRODUCTS.name: as_needed(PRODUCTS, operations=write),
        LETTERS.name: as_needed(LETTERS, operations=1 << 8),
        COUNTS.name: as_needed(COUNTS),
    }
    found = judge_rights(SPECS, topics_)
    assert [(one.kind, one.subject, one.stops) for one in found] == [
        ("topic-rights", PRODUCTS.name, True),
        ("topic-rights", LETTERS.name, True),
    ]
    assert "no right to Read:" in found[0].text
    assert "no right to Read and Write:" in found[1].text
