"""What the guarantee needs of each topic, and whether Kafka's topics have it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from aiokafka.admin.config_resource import ConfigResourceType
from aiokafka.errors import UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.admin import DescribeConfigsRequest

from shopflow.errors import Refused

from .connection import MAX_MESSAGE_BYTES
from .protocol import Metadata

#: A topic that was made a moment ago is unknown to some brokers.
_AGAIN_SECONDS = 1.0
_UNKNOWN = UnknownTopicOrPartitionError.errno
_HOUR_MS = 3_600_000
#: Stands for Kafka's address.
KAFKA = "HOST:9092"
_LEAST_COPIES = "min.insync.replicas"
#: More than a batch of records that a worker sends.
_LEAST_BYTES = 1_000_000


#: Kafka's numbers of the operations that a worker needs.
_READ, _BOTH = {"Read": 3}, {"Read": 3, "Write": 4}


class Role(Enum):
    """What a topic is for."""

    EVENTS = "events"  #: agents read it; the key decides on the partition
    RECORDS = "records"  #: workers write and read it, by partition number; further partitions stay empty
    CHANGELOG = "changelog"  #: a table's


#: Events are written by other programs, and by the views and commands that send some.
_RIGHTS = {Role.EVENTS: _READ, Role.RECORDS: _BOTH, Role.CHANGELOG: _BOTH}


@dataclass(frozen=True)
class TopicSpec:
    """A topic as the guarantee needs it, and as shopflow creates it.

    Arguments:
        compacted: True: keep the last record of each key for ever. False: keep all records for `retention_ms`.
        retention_ms: In milliseconds; -1: for ever. Not used if compacted.
    """

    name: str
    partitions: int
    replication: int
    compacted: bool = False
    retention_ms: int = -1
    max_message_bytes: int = MAX_MESSAGE_BYTES
    role: Role = Role.EVENTS

    @property
    def configs(self) -> dict[str, str]:
        configs = {"max.message.bytes": str(self.max_message_bytes)}
        if self.compacted:
            configs["cleanup.policy"] = "compact"
        else:
            configs |= {
                "cleanup.policy": "delete",
                "retention.ms": str(self.retention_ms),
                "retention.bytes": "-1",
            }
        if self.replication >= 3:  # with two copies, the second one's failure would stop all writes
            configs[_LEAST_COPIES] = "2"
        return configs


@dataclass(frozen=True)
class Found:
    """A topic as it is.

    Arguments:
        id: Kafka's; another topic of the same name has another one.
        copies: Of the partition that has the fewest.
        in_sync: The copies that are up to date, of the partition that has the fewest.
        operations: The rights on it, a bit for each of Kafka's operations; None: Kafka does not tell.
        configs: None: Kafka does not show them to this user.
    """

    id: str
    partitions: int
    copies: int = 1
    in_sync: int = 1
    operations: int | None = None
    configs: Mapping[str, str] | None = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """Something that a topic lacks: the arguments of `Troubles.begin`."""

    kind: str
    subject: str
    text: str
    stops: bool = False


async def look(client: Any, names: Sequence[str]) -> dict[str, Found]:
    """The topics of these names that exist. `client` is that of `connection.client`.

    Raises:
        KafkaError: Kafka does not answer, or has no leader for a partition now.
        Refused: Kafka is older than 2.8, or does not let this user see a topic.
    """
    found = await _look(client, names)
    if len(found) < len(set(names)):
        await asyncio.sleep(_AGAIN_SECONDS)
        found = await _look(client, names)
    return found


async def _look(client: Any, names: Sequence[str]) -> dict[str, Found]:
    try:
        answer = await client.send(client.get_random_node(), Metadata.of(names))
    except NotImplementedError as error:
        raise Refused("broker: this Kafka is too old; Kafka 2.8 is the oldest that has what shopflow needs") from error
    found = {name: described for code, name, *described in answer.topics if code != _UNKNOWN}
    for code, name, *_ in answer.topics:
        if code == 29:  # TOPIC_AUTHORIZATION_FAILED
            raise Refused(f"topic {name}: this user of Kafka has no right to see it (Describe)")
        if code not in {0, _UNKNOWN}:
            raise for_code(code)(name)
    configs = await _configs(client, list(found))
    return {name: _found(described, configs[name]) for name, described in found.items() if name in configs}


def _found(described: Sequence[Any], configs: Mapping[str, str] | None) -> Found:
    topic_id, _, partitions, operations, _ = described
    return Found(
        str(topic_id),
        len(partitions),
        copies=min((len(replicas) for *_, replicas, _, _, _ in partitions), default=0),
        in_sync=min((len(in_sync) for *_, in_sync, _, _ in partitions), default=0),
        operations=operations if operations > 0 else None,
        configs=configs,
    )


async def _configs(client: Any, names: Sequence[str]) -> dict[str, Mapping[str, str] | None]:
    """The configurations by topic; None: this user may not read them. Topics that are gone meanwhile are left out."""
    if not names:
        return {}
    request = DescribeConfigsRequest([(ConfigResourceType.TOPIC.value, name, None) for name in names])
    answer = await client.send(client.get_random_node(), request)
    return {
        name: {entry[0]: entry[1] for entry in entries} if code == 0 else None
        for code, _, _, name, entries in answer.resources
        if code != _UNKNOWN
    }


def judge(specs: Sequence[TopicSpec], found: Mapping[str, Found], at: str = KAFKA) -> list[Finding]:
    """Everything that the topics lack, each with what mends it. Pure.

    Arguments:
        at: Kafka's address for the commands. The default is for texts that strangers may read.
    """
    findings = [
        Finding(
            "topic-missing",
            spec.name,
            f"Topic {spec.name} does not exist: start a worker, which creates it; its records, if it had any, are lost",
            stops=True,
        )
        for spec in specs
        if spec.name not in found
    ]
    findings += judge_partitions(specs, {name: topic.partitions for name, topic in found.items()}, at)
    events = [found[spec.name] for spec in specs if spec.name in found and spec.role is Role.EVENTS]
    largest = max(map(_largest, events), default=0)
    for spec in specs:
        if topic := found.get(spec.name):
            findings += _configured(at, spec, topic, largest)
            findings += _copied(at, spec, topic)
    return findings


def judge_rights(specs: Sequence[TopicSpec], found: Mapping[str, Found]) -> list[Finding]:
    """The rights that this user lacks, as far as Kafka tells them. Pure."""
    return [
        Finding(
            "topic-rights",
            spec.name,
            f"Topic {spec.name}: this user of Kafka has no right to {' and '.join(missing)}: an administrator of Kafka "
            "grants it with kafka-acls.sh",
            stops=True,
        )
        for spec in specs
        if (topic := found.get(spec.name)) and topic.operations is not None
        if (missing := [name for name, bit in _RIGHTS[spec.role].items() if not topic.operations & 1 << bit])
    ]


def judge_ids(
    specs: Sequence[TopicSpec], found: Mapping[str, Found], ids: Mapping[str, Collection[str]]
) -> list[Finding]:
    """The topics that are no longer those that were read or written.

    Arguments:
        ids: The ids of those that were read, by name.
    """
    return [
        Finding(
            "topic-replaced",
            spec.name,
            f"Topic {spec.name} was deleted and made anew: {_REPLACED[spec.role]}",
            stops=spec.role is not Role.RECORDS,
        )
        for spec in specs
        if spec.name in found
        if set(ids.get(spec.name, ())) - {found[spec.name].id}
    ]


#: What it means that a topic is another one now.
_REPLACED = {
    Role.EVENTS: "the counts are of the old one, and new events at its offsets are taken for counted ones; run "
    "`faust -A shopflow replay`, then restart the workers",
    Role.CHANGELOG: "the new one lacks what the tables have; run `faust -A shopflow replay`, then restart the workers",
    Role.RECORDS: "its records are lost; `faust -A shopflow replay` makes dead letters and decided prices again, "
    "but no marks of retries. It is told until the workers are restarted",
}


def _largest(topic: Found) -> int:
    return min(int((topic.configs or {}).get("max.message.bytes", "0")), MAX_MESSAGE_BYTES)


def judge_partitions(specs: Sequence[TopicSpec], found: Mapping[str, int], at: str = KAFKA) -> list[Finding]:
    """What is wrong with the numbers of partitions. Topics that do not exist are left out. Pure."""
    wanted = {spec.name: spec.partitions for spec in specs if spec.name in found}
    numbers = {found[name] for name in wanted}
    if len(numbers) == 1 and numbers.isdisjoint(wanted.values()):
        (number,) = numbers
        name, configured = next(iter(wanted.items()))
        text = (
            f"topics.partitions: topic {name} has {number} partitions, configured are {configured}; "
            f"all topics have {number}: set topics.partitions to {number}"
        )
        return [Finding("topic-partitions", name, text, stops=True)]
    return [
        Finding(
            "topic-partitions",
            spec.name,
            f"topics.partitions: topic {spec.name} has {number} partitions, configured are {spec.partitions}: "
            + _of_partitions(at, spec, number),
            stops=True,
        )
        for spec in specs
        if (number := found.get(spec.name, spec.partitions)) != spec.partitions
        and (spec.role is not Role.RECORDS or number < spec.partitions)
    ]


def _of_partitions(at: str, spec: TopicSpec, found: int) -> str:
    """What to do about another number of partitions."""
    alter = _command("kafka-topics.sh", at, f"--alter --topic {spec.name} --partitions {spec.partitions}")
    if spec.role is Role.RECORDS:
        return f"run {alter}"
    if spec.role is Role.CHANGELOG:
        delete = _command("kafka-topics.sh", at, f"--delete --topic {spec.name}")
        return f"stop the workers, run {delete}, and then `faust -A shopflow replay`, which counts again"
    anew = "begin anew with another app_id, topics.prefix and mongodb.database, and send all events again"
    if found < spec.partitions:
        return f"if no event was sent to it yet, run {alter}; else {anew}"
    return f"no worker reads the others, and Kafka can't take partitions away: stop the producers, {anew}"


def _configured(at: str, spec: TopicSpec, topic: Found, largest: int) -> Iterator[Finding]:
    """Arguments:
    largest: The bytes of the largest record that a topic of events takes.
    """
    configs = topic.configs or {}
    for name, wanted in spec.configs.items():
        needed = _needed_bytes(spec, largest) if name == "max.message.bytes" else wanted
        value = configs.get(name) if name != _LEAST_COPIES else None  # of copies see below
        if value is not None and (harm := _harm(name, value, needed)):
            command = _alter(at, spec.name, name, wanted)
            text = f"Topic {spec.name} has {name}={value}, needed is {needed}: {harm}; to mend it, run {command}"
            yield Finding("topic-config", f"{spec.name} {name}", text)


def _needed_bytes(spec: TopicSpec, largest: int) -> str:
    """A topic of events takes what it takes. The dead letters must take each of them, with headers."""
    if spec.role is Role.EVENTS:
        return "0"
    headers = spec.max_message_bytes - MAX_MESSAGE_BYTES
    return str(largest + headers if headers > 0 else _LEAST_BYTES)


def _harm(name: str, value: str, needed: str) -> str | None:
    """What this value of a configuration does; None if it does no harm."""
    if name == "cleanup.policy":
        return None if {part.strip() for part in value.split(",")} == {needed} else _POLICY_HARM[needed]
    has, wanted = int(value), int(needed)
    for_ever = name.startswith("retention.") and wanted == -1
    harmful = has != -1 and (for_ever or has < wanted)
    return _HARM[name].format(hours=has / _HOUR_MS) if harmful else None


#: By the policy that is needed.
_POLICY_HARM = {
    "compact": "Kafka deletes old records that are still needed",
    "delete": "Kafka deletes all records of a key but the last, also unread ones, and they can't be counted again",
}
#: What a smaller value does.
_HARM = {
    "retention.ms": "Kafka deletes records after {hours:g} hours, also unread ones (topics.retention_hours allows it)",
    "retention.bytes": "Kafka deletes the oldest records of a larger partition, also unread ones",
    "max.message.bytes": "it refuses larger records, and the work stands still at one",
}


def _copied(at: str, spec: TopicSpec, topic: Found) -> Iterator[Finding]:
    least = int((topic.configs or {}).get(_LEAST_COPIES, "1"))
    if least > topic.copies:
        command = _alter(at, spec.name, _LEAST_COPIES, str(2 if topic.copies >= 3 else 1))
        text = (
            f"Topic {spec.name} has min.insync.replicas={least}, but {_copies(topic.copies)} of each partition: "
            "an older Kafka accepts no record, a newer one asks for no more copies than there are; to mend it, run "
            f"{command}"
        )
        yield Finding("topic-copies", spec.name, text)  # if it accepts none, that is told as a refusal
    elif least > topic.in_sync:
        text = (
            f"Topic {spec.name} has a partition with {_copies(topic.in_sync)} up to date, and "
            f"min.insync.replicas={least}: Kafka accepts no record there: start the brokers that are down"
        )
        yield Finding("topic-copies", spec.name, text, stops=True)
    elif topic.copies < spec.replication:
        text = (
            f"Topic {spec.name} has {_copies(topic.copies)} of each partition, topics.replication is "
            f"{spec.replication}: more are lost with a broker than configured; kafka-reassign-partitions.sh adds copies"
        )
        yield Finding("topic-copies", spec.name, text)
    elif topic.configs and least < 2 and topic.copies >= 3:
        text = (
            f"Topic {spec.name} has {_LEAST_COPIES}={least}: a record is acknowledged when one broker has it, and lost "
            f"with that broker; to mend it, run {_alter(at, spec.name, _LEAST_COPIES, '2')}"
        )
        yield Finding("topic-copies", spec.name, text)


def _copies(number: int) -> str:
    return "1 copy" if number == 1 else f"{number} copies"


def _alter(at: str, topic: str, name: str, value: str) -> str:
    change = f"--alter --entity-type topics --entity-name {topic} --add-config {name}={value}"
    return _command("kafka-configs.sh", at, change)


def _command(script: str, at: str, arguments: str) -> str:
    return f"`{script} --bootstrap-server {at} {arguments}`"
