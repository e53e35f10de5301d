"""The shop's topics: missing ones are created, existing ones checked for their number of partitions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from shopflow.errors import Refused, Unavailable

from . import brokers, connection
from .connection import CHECK_SECONDS
from .needs import TopicSpec, judge_partitions, look
from .security import Bootstrap


async def wait_for(bootstrap: Bootstrap, seconds: float, say: Callable[[str], None]) -> None:
    """Wait until Kafka answers.

    Raises:
        Refused: Kafka did not answer within that time, or a broker is too old.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    announced = False
    while True:
        try:
            async with connection.client(bootstrap) as client:
                return await brokers.check(client)
        except Unavailable as error:
            if asyncio.get_running_loop().time() >= deadline:
                raise Refused(f"broker: Kafka at {str(error).removeprefix('Kafka: ')}") from error
            if not announced:
                say(f"Waiting for Kafka at {bootstrap} ...")
                announced = True
            await asyncio.sleep(CHECK_SECONDS)


async def ensure_topics(bootstrap: Bootstrap, specs: Sequence[TopicSpec]) -> None:
    """Create the missing topics, and check the others.

    Raises:
        Refused: A topic has another number of partitions, or can't be created.
        Unavailable: Kafka does not answer.
    """
    async with connection.admin(bootstrap) as client:
        found = await partitions_of(client, [spec.name for spec in specs])
        for finding in judge_partitions(specs, found, ",".join(bootstrap.hosts)):
            raise Refused(finding.text)
        missing = [spec for spec in specs if spec.name not in found]
        for spec in missing:
            await _create(client, spec)
        deadline = asyncio.get_running_loop().time() + 30
        while missing and not await _ready(client, missing):
            if asyncio.get_running_loop().time() >= deadline:
                raise Unavailable("Kafka", f"{missing[0].name} was created but has no leader yet")
            await asyncio.sleep(0.1)


async def count_partitions(bootstrap: Bootstrap, topic: str) -> int:
    """The number of partitions of a topic; 0 if it does not exist.

    Raises:
        Unavailable: Kafka does not answer.
    """
    async with connection.admin(bootstrap) as client:
        return (await partitions_of(client, [topic])).get(topic, 0)


async def id_of(bootstrap: Bootstrap, topic: str) -> str:
    """Kafka's id of a topic; empty if it does not exist, or if this Kafka or its rights don't tell.

    Raises:
        Unavailable: Kafka does not answer.
    """
    with suppress(Refused):
        async with connection.client(bootstrap) as client:
            if found := await look(client, [topic]):
                return found[topic].id
    return ""


async def partitions_of(client: Any, topics: Iterable[str]) -> dict[str, int]:
    """The number of partitions of each topic. Topics that do not exist are left out. `client` is an admin client."""
    described = await client.describe_topics(list(topics))
    return {topic["topic"]: len(topic["partitions"]) for topic in described if topic["error_code"] == 0}


async def _ready(client: Any, specs: Iterable[TopicSpec]) -> bool:
    described = {topic["topic"]: topic for topic in await client.describe_topics([spec.name for spec in specs])}
    return all(
        len(topic["partitions"]) == spec.partitions and all(part["leader"] >= 0 for part in topic["partitions"])
        for spec in specs
        if (topic := described[spec.name])
    )


async def _create(client: Any, spec: TopicSpec) -> None:
    topic = NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=spec.configs)
    try:
        answer = await client.create_topics([topic])
    except TopicAlreadyExistsError:
        return
    except KafkaError as error:
        raise Refused(f"topic {spec.name} can't be created: {error}") from error
    for name, code, *message in answer.topic_errors:
        failure = for_code(code)
        if code and failure is not TopicAlreadyExistsError:  # that one: another worker was faster
            reason = (message[0] if message else None) or failure.__name__
            raise Refused(f"topic {name} can't be created: {reason}")
