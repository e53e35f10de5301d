"""Topics: how they are made, and which are refused."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    InvalidReplicationFactorError,
    KafkaError,
    TopicAlreadyExistsError,
)

from shopflow import kafka, topics
from shopflow.errors import Refused, Unavailable
from shopflow.kafka import TopicSpec


def test_compacted_topics_keep_the_last_of_each_key_and_others_their_time() -> None:
    """Set explicitly: a broker's defaults delete purchases after a week."""
    compacted = TopicSpec("p", 4, 1, compacted=True).configs
    assert (compacted["cleanup.policy"], "retention.ms" in compacted) == ("compact", False)
    kept = TopicSpec("p", 4, 1, retention_ms=-1).configs
    assert (kept["cleanup.policy"], kept["retention.ms"]) == ("delete", "-1")
    assert int(kept["max.message.bytes"]) == 16 * 1024 * 1024


def test_the_shops_topics_are_those_of_the_contract() -> None:
    """Names, clean-up, partitions; dead letters hold a largest record with its headers."""
    specs = {spec.name: spec for spec in topics.SPECS}
    assert {name: spec.compacted for name, spec in specs.items()} == {
        "shop.products": True,
        "shop.customers": True,
        "shop.purchases": False,
        "shop.purchase-prices": False,
        "shop.dead-letters": False,
        "shop.retries": True,
        "shopflow-purchase_counts-changelog": True,
    }
    assert {spec.partitions for spec in topics.SPECS} == {4}
    assert specs["shop.dead-letters"].max_message_bytes > specs["shop.purchases"].max_message_bytes


@pytest.mark.parametrize("found", [1, 3, 8])
def test_another_number_of_partitions_is_refused_with_both_numbers(found: int) -> None:
    """A customer's purchases would be in two partitions."""
    with pytest.raises(Refused) as refused:
        kafka._check_partitions(TopicSpec("shop.purchases", 4, 1), found)
    message = refused.value.format_message()
    assert message.startswith("topics.partitions: topic shop.purchases ")
    assert f"has {found} partitions, configured are 4" in message


@pytest.mark.parametrize("found", [None, 4])
def test_a_missing_topic_and_one_that_fits_are_fine(found: int | None) -> None:
    """One is made, the other is used."""
    kafka._check_partitions(TopicSpec("shop.purchases", 4, 1), found)


def test_a_kafka_that_does_not_answer_is_refused_after_a_while() -> None:
    """With its address, after one line that says what is waited for."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: nobody else takes it
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        said: list[str] = []
        with pytest.raises(Refused, match=f"broker: Kafka at {address} does not answer"):
            asyncio.run(kafka.wait_for(address, 0.1, said.append))
    assert said == [f"Waiting for Kafka at {address} ..."]


class Admin:
    """Fails as told, then answers."""

    def __init__(self, *errors: KafkaError) -> None:
        self.errors = list(errors)

    async def list_consumer_group_offsets(self, group: str) -> dict[Any, Any]:
        if self.errors:
            raise self.errors.pop(0)
        return {}


def test_a_new_broker_without_a_coordinator_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes the topic of the offsets only when somebody asks."""
    monkeypatch.setattr(kafka, "_CHECK_SECONDS", 0)
    admin = Admin(GroupCoordinatorNotAvailableError(), GroupCoordinatorNotAvailableError())
    assert asyncio.run(kafka._committed(admin, "shopflow")) == {}


def test_what_will_not_get_better_is_not_asked_again() -> None:
    """No rights, for instance."""
    with pytest.raises(GroupAuthorizationFailedError):
        asyncio.run(kafka._committed(Admin(GroupAuthorizationFailedError()), "shopflow"))


class Client:
    """An admin client and a consumer of one topic with two partitions, as far as they are asked."""

    def __init__(self, **topics: int) -> None:
        self.topics = topics
        self.made: list[str] = []
        self.place = 0
        self.only_markers = False

    async def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "topic": name,
                "error_code": 0 if name in self.topics else 3,
                "partitions": [{"leader": 0}] * self.topics.get(name, 0),
            }
            for name in names
        ]

    async def create_topics(self, new: list[Any]) -> Any:
        for topic in new:
            self.made.append(topic.name)
            self.topics[topic.name] = topic.num_partitions
        return SimpleNamespace(topic_errors=[(topic.name, 0, None) for topic in new])

    async def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 10)

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 30)

    async def list_consumer_group_offsets(self, group: str) -> dict[TopicPartition, Any]:
        places = [(0, 25), (1, 4)]  # the second one's records were deleted since
        return {TopicPartition("purchases", number): SimpleNamespace(offset=offset) for number, offset in places}

    def assign(self, places: list[TopicPartition]) -> None:
        self.places = places

    async def seek_to_beginning(self, *places: TopicPartition) -> None:
        self.place = 10

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.place = offset

    async def position(self, place: TopicPartition) -> int:
        return self.place

    async def getmany(self, *places: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[int]]:
        self.place += 8  # the last run goes on behind the end that was there at first
        if self.only_markers:
            return {}
        return {places[0]: [self.place]}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    """Instead of aiokafka's."""
    made = Client(purchases=2)

    @asynccontextmanager
    async def started(bootstrap: str, **options: Any) -> AsyncIterator[Client]:
        yield made

    for name in ("admin", "consumer"):
        monkeypatch.setattr(kafka, name, started)
    return made


def test_only_missing_topics_are_made(client: Client) -> None:
    """Those that are there stay as they are."""
    specs = [TopicSpec("purchases", 2, 1), TopicSpec("products", 2, 1)]
    asyncio.run(kafka.ensure_topics("kafka:1", specs))
    assert client.made == ["products"]


def test_nothing_is_made_beside_a_topic_of_another_shape(client: Client) -> None:
    """Else a wrong setting would leave topics behind."""
    specs = [TopicSpec("products", 4, 1), TopicSpec("purchases", 4, 1)]
    with pytest.raises(Refused):
        asyncio.run(kafka.ensure_topics("kafka:1", specs))
    assert client.made == []


def test_the_lag_is_what_is_there_and_not_committed(client: Client) -> None:
    """Not what was deleted; and nothing of topics that do not exist."""
    lags = asyncio.run(kafka.lags("kafka:1", "shop", ["purchases", "unknown"]))
    assert lags == {"purchases": kafka.Lag(records=40, waiting=5 + 20)}


def test_the_end_of_a_transaction_does_not_wait(client: Client) -> None:
    """It takes an offset that no consumer is given, so none can commit past it when it is the last one."""
    client.only_markers = True
    lags = asyncio.run(kafka.lags("kafka:1", "shop", ["purchases"]))
    assert lags == {"purchases": kafka.Lag(records=40, waiting=0)}


def test_records_are_counted_and_not_offsets(client: Client) -> None:
    """Three runs of one record in each partition."""
    assert asyncio.run(kafka.count_records("kafka:1", "purchases", 2)) == 6


def test_a_group_that_never_committed_has_all_before_it(client: Client) -> None:
    """All that is there."""
    client.topics = {"products": 1}
    assert asyncio.run(kafka.lags("kafka:1", "shop", ["products"])) == {"products": kafka.Lag(20, 20)}


def test_a_partition_is_read_to_the_end_that_it_had(client: Client) -> None:
    """Not for ever, while others write to it."""
    runs: list[tuple[int, Any]] = []
    asyncio.run(kafka.read_partition("kafka:1", "changelog", 3, lambda partition, run: runs.append((partition, run))))
    assert runs == [(3, [18]), (3, [26]), (3, [34])]


def test_any_error_of_kafka_in_between_is_one_that_goes_away() -> None:
    """The commands say it in one line; nobody sees a traceback."""

    class Away:
        async def start(self) -> None:
            return

        async def stop(self) -> None:
            self.stopped = True

    away = Away()

    async def use() -> None:
        async with kafka._started(away, "kafka:1"):
            raise GroupCoordinatorNotAvailableError

    with pytest.raises(Unavailable, match="GroupCoordinatorNotAvailableError"):
        asyncio.run(use())
    assert away.stopped


def test_a_coordinator_that_never_comes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while; not an endless wait."""
    monkeypatch.setattr(kafka, "_CHECK_SECONDS", 0)
    monkeypatch.setattr(kafka, "_COORDINATOR_SECONDS", 0.05)
    admin = Admin(*(GroupCoordinatorNotAvailableError() for _ in range(100_000)))
    with pytest.raises(GroupCoordinatorNotAvailableError):
        asyncio.run(kafka._committed(admin, "shopflow"))
    assert len(admin.errors) < 100_000 - 1


@pytest.mark.parametrize(("bootstrap", "servers"), [("a:1", ["a:1"]), ("a:1;b:2", ["a:1", "b:2"]), ("a:1;", ["a:1"])])
def test_several_brokers_are_separated_by_semicolons(bootstrap: str, servers: list[str]) -> None:
    """As Faust writes them."""
    assert kafka._servers(bootstrap) == servers


class Creating(Client):
    """Answers the making of a topic with an error, in the answer or raised."""

    def __init__(self, code: int = 0, message: str | None = None, raised: Exception | None = None) -> None:
        super().__init__()
        self.code, self.message, self.raised = code, message, raised

    async def create_topics(self, new: list[Any]) -> Any:
        await super().create_topics(new)
        if self.raised:
            raise self.raised
        return SimpleNamespace(topic_errors=[(topic.name, self.code, self.message) for topic in new])


def made_by(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    """Make a topic with this client."""

    @asynccontextmanager
    async def started(bootstrap: str, **options: Any) -> AsyncIterator[Client]:
        yield client

    monkeypatch.setattr(kafka, "admin", started)
    asyncio.run(kafka.ensure_topics("kafka:1", [TopicSpec("shop.products", 2, 3)]))


@pytest.mark.parametrize(
    "client",
    [Creating(TopicAlreadyExistsError.errno), Creating(raised=TopicAlreadyExistsError())],
    ids=["told", "raised"],
)
def test_another_worker_may_be_quicker(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    """Two that start together both find the topic missing."""
    made_by(monkeypatch, client)
    assert client.made == ["shop.products"]


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (
            Creating(InvalidReplicationFactorError.errno, "larger than available brokers"),
            "larger than available brokers",
        ),
        (Creating(InvalidReplicationFactorError.errno), "InvalidReplicationFactorError"),
        (Creating(raised=InvalidReplicationFactorError("3 > 1")), "3 > 1"),
    ],
    ids=["with a message", "without", "raised"],
)
def test_a_topic_that_can_not_be_made_is_refused(monkeypatch: pytest.MonkeyPatch, client: Client, reason: str) -> None:
    """With its name and Kafka's reason."""
    with pytest.raises(Refused) as refused:
        made_by(monkeypatch, client)
    assert refused.value.format_message().startswith("topic shop.products can't be created: ")
    assert reason in refused.value.format_message()


def test_a_new_topic_is_waited_for_until_it_has_leaders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first event that is sent to it meets an error."""

    class Slow(Client):
        looks = 0

        async def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
            described = await super().describe_topics(names)
            self.looks += 1
            leader = 0 if self.looks > 3 else -1
            return [{**topic, "partitions": [{"leader": leader}] * len(topic["partitions"])} for topic in described]

    client = Slow()
    made_by(monkeypatch, client)
    assert client.looks == 4
