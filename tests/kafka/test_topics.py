"""Topics: how they are created, checked and read; lag, offsets, transactions and the group."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    InvalidReplicationFactorError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    TopicAlreadyExistsError,
)

from faust_batches import UnreadableRecord
from faust_batches.fetching import KAFKA_FAILED
from faust_batches.unreadable import consumer_record
from shopflow import topics
from shopflow.errors import Refused, Unavailable
from shopflow.kafka import connection, offsets, reading, transactions
from shopflow.kafka import group as groups
from shopflow.kafka import topics as kafka_topics
from shopflow.kafka.needs import TopicSpec
from shopflow.kafka.security import Bootstrap
from tests.support.fakes import FakeRecord, FakeTopics


def test_compacted_topics_keep_the_last_of_each_key_and_others_their_time() -> None:
    """Cleanup policy and retention are set explicitly: a broker's default would delete purchases after a week."""
    compacted = TopicSpec("p", 4, 1, compacted=True).configs
    assert (compacted["cleanup.policy"], "retention.ms" in compacted) == ("compact", False)
    kept = TopicSpec("p", 4, 1, retention_ms=-1).configs
    assert (kept["cleanup.policy"], kept["retention.ms"]) == ("delete", "-1")
    assert int(kept["max.message.bytes"]) == 16 * 1024 * 1024


def test_the_shops_topics_are_those_of_the_contract() -> None:
    """Dead letters may be larger than purchases, because they have headers besides the largest record."""
    specs = {spec.name: spec for spec in topics.SPECS}
    assert {name: spec.compacted for name, spec in specs.items()} == {
        "shop.products": True,
        "shop.customers": True,
        "shop.purchases": False,
        "shop.purchase-prices": False,
        "shop.dead-letters": False,
        "shop.retries": True,
        "shop.vouchers": False,
        "shop.alerts": False,
        "shopflow-purchase_counts-changelog": True,
        "shopflow-product_sales-changelog": True,
        "shop.customer-activity": True,
        "shopflow-customer_windows-changelog": True,
    }
    assert {spec.partitions for spec in topics.SPECS} == {4}
    assert specs["shop.dead-letters"].max_message_bytes > specs["shop.purchases"].max_message_bytes


def test_a_kafka_that_does_not_answer_is_refused_after_a_while() -> None:
    """A line says what the command waits for. The error names the address."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: nobody else takes it
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        said: list[str] = []
        with pytest.raises(Refused, match=f"broker: Kafka at {address} does not answer"):
            asyncio.run(kafka_topics.wait_for(Bootstrap(address), 0.1, said.append))
    assert said == [f"Waiting for Kafka at {address} ..."]


class Admin:
    """Fails with the given errors, then answers."""

    def __init__(self, *errors: KafkaError) -> None:
        self.errors = list(errors)

    async def list_consumer_group_offsets(self, group: str) -> dict[Any, Any]:
        if self.errors:
            raise self.errors.pop(0)
        return {}


def test_a_new_broker_without_a_coordinator_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new broker creates its offsets topic at the first request, and has no coordinator until then."""
    monkeypatch.setattr(groups, "CHECK_SECONDS", 0)
    admin = Admin(GroupCoordinatorNotAvailableError(), GroupCoordinatorNotAvailableError())
    assert asyncio.run(groups.coordinated(admin.list_consumer_group_offsets, "shopflow")) == {}


def test_an_error_that_is_not_retriable_is_raised_at_once() -> None:
    """Missing rights, for instance, are not waited for."""
    with pytest.raises(GroupAuthorizationFailedError):
        asyncio.run(groups.coordinated(Admin(GroupAuthorizationFailedError()).list_consumer_group_offsets, "shopflow"))


class Client:
    """A fake for the admin client and for the consumer of one topic with two partitions."""

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
        places = [(0, 25), (1, 4)]  # the second one's committed records were deleted since
        return {TopicPartition("purchases", number): SimpleNamespace(offset=offset) for number, offset in places}

    def assign(self, places: list[TopicPartition]) -> None:
        self.places = places

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.place = offset

    async def position(self, place: TopicPartition) -> int:
        return self.place

    async def getmany(self, *places: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        self.place += 8  # the last run goes past the end at the start of the read
        if self.only_markers:
            return {}
        return {places[0]: [SimpleNamespace(offset=self.place - 8)]}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    """A fake client in place of aiokafka's."""
    made = Client(purchases=2)

    @asynccontextmanager
    async def started(bootstrap: str, **options: Any) -> AsyncIterator[Client]:
        yield made

    for name in ("admin", "consumer"):
        monkeypatch.setattr(connection, name, started)
    return made


def test_only_missing_topics_are_made(client: Client) -> None:
    """Existing topics stay as they are."""
    specs = [TopicSpec("purchases", 2, 1), TopicSpec("products", 2, 1)]
    asyncio.run(kafka_topics.ensure_topics(Bootstrap("kafka:1"), specs))
    assert client.made == ["products"]


def test_nothing_is_made_beside_a_topic_of_another_shape(client: Client) -> None:
    """A wrong setting must not leave new topics behind."""
    specs = [TopicSpec("products", 4, 1), TopicSpec("purchases", 4, 1)]
    with pytest.raises(Refused):
        asyncio.run(kafka_topics.ensure_topics(Bootstrap("kafka:1"), specs))
    assert client.made == []


def test_the_lag_counts_records_that_are_not_committed(client: Client) -> None:
    """Deleted records and missing topics don't count as lag."""
    lags = asyncio.run(offsets.lags("kafka:1", "shop", ["purchases", "unknown"]))
    assert lags == {"purchases": offsets.Lag(records=40, waiting=5 + 20)}


def test_the_end_of_a_transaction_does_not_wait(client: Client) -> None:
    """A transaction's marker takes an offset and is no record. Consumers don't commit past a marker at the end."""
    client.only_markers = True
    lags = asyncio.run(offsets.lags("kafka:1", "shop", ["purchases"]))
    assert lags == {"purchases": offsets.Lag(records=40, waiting=0)}


def test_partitions_without_a_record_to_read_are_found(client: Client) -> None:
    """A span that has only markers of transactions is empty."""
    places = {("purchases", 0): offsets.Span(10, 25, 30), ("purchases", 1): offsets.Span(10, 10, 30)}
    assert asyncio.run(offsets.empty("kafka:1", places)) == set()
    client.only_markers = True
    assert asyncio.run(offsets.empty("kafka:1", places)) == set(places)


def test_a_client_that_is_not_waited_for_is_closed() -> None:
    """If Kafka is frozen and the page gives up, no connection stays open."""
    stopped = []

    class Slow:
        async def start(self) -> None:
            await asyncio.sleep(60)

    async def closed() -> None:
        stopped.append(True)

    async def run() -> None:
        async with connection._started(Slow(), closed, "kafka:1"):
            raise AssertionError

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(asyncio.wait_for(run(), 0.01))
    assert len(stopped) == 1


def test_a_group_that_never_committed_has_all_before_it(client: Client) -> None:
    """Without a committed offset, every record of the topic is lag."""
    client.topics = {"products": 1}
    assert asyncio.run(offsets.lags("kafka:1", "shop", ["products"])) == {"products": offsets.Lag(20, 20)}


def test_any_error_of_kafka_in_between_is_one_that_goes_away() -> None:
    """An error of Kafka during a command becomes `Unavailable`: one line, no traceback."""

    class Away:
        async def start(self) -> None:
            return

        async def stop(self) -> None:
            self.stopped = True

    away = Away()

    async def use() -> None:
        async with connection._started(away, away.stop, Bootstrap("kafka:1")):
            raise GroupCoordinatorNotAvailableError

    with pytest.raises(Unavailable, match="GroupCoordinatorNotAvailableError"):
        asyncio.run(use())
    assert away.stopped


def test_a_coordinator_that_never_comes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command gives up after a while."""
    monkeypatch.setattr(groups, "CHECK_SECONDS", 0)
    monkeypatch.setattr(groups, "_COORDINATOR_SECONDS", 0.05)
    admin = Admin(*(GroupCoordinatorNotAvailableError() for _ in range(100_000)))
    with pytest.raises(GroupCoordinatorNotAvailableError):
        asyncio.run(groups.coordinated(admin.list_consumer_group_offsets, "shopflow"))
    assert len(admin.errors) < 100_000 - 1


@pytest.mark.parametrize(("bootstrap", "servers"), [("a:1", ["a:1"]), ("a:1;b:2", ["a:1", "b:2"]), ("a:1;", ["a:1"])])
def test_several_brokers_are_separated_by_semicolons(bootstrap: str, servers: list[str]) -> None:
    """Several brokers are written as Faust writes them."""
    assert Bootstrap(bootstrap).hosts == servers


class Creating(Client):
    """A client that can't create a topic: the error is in the answer, or raised."""

    def __init__(self, code: int = 0, message: str | None = None, raised: Exception | None = None) -> None:
        super().__init__()
        self.code, self.message, self.raised = code, message, raised

    async def create_topics(self, new: list[Any]) -> Any:
        await super().create_topics(new)
        if self.raised:
            raise self.raised
        return SimpleNamespace(topic_errors=[(topic.name, self.code, self.message) for topic in new])


def made_by(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    """Create a topic with this client."""

    @asynccontextmanager
    async def started(bootstrap: str, **options: Any) -> AsyncIterator[Client]:
        yield client

    monkeypatch.setattr(connection, "admin", started)
    asyncio.run(kafka_topics.ensure_topics(Bootstrap("kafka:1"), [TopicSpec("shop.products", 2, 3)]))


@pytest.mark.parametrize(
    "client",
    [Creating(TopicAlreadyExistsError.errno), Creating(raised=TopicAlreadyExistsError())],
    ids=["told", "raised"],
)
def test_another_worker_may_be_quicker(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    """Two workers that start together both find a topic missing, and one of them creates it first."""
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
    """The error has the topic's name and Kafka's reason."""
    with pytest.raises(Refused) as refused:
        made_by(monkeypatch, client)
    assert str(refused.value).startswith("topic shop.products can't be created: ")
    assert reason in str(refused.value)


def test_a_new_topic_is_waited_for_until_it_has_leaders(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that is sent before a partition has a leader would fail."""

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


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> FakeTopics:
    """A topic of three partitions whose records have these offsets and times."""
    partitions = [[(0, 10), (1, 50), (2, 40), (5, 70)], [], [(7, 5), (8, 45), (9, 60)]]
    records = [
        [FakeRecord(None, b"v", offset, number, "t", timestamp=time) for offset, time in places]
        for number, places in enumerate(partitions)
    ]
    return FakeTopics(monkeypatch, lambda topic: records if topic == "t" else [])


def read(*partitions: int, **bounds: int) -> list[list[int]]:
    """The runs of these partitions, as lists of offsets."""

    found: list[list[int]] = []

    async def run() -> None:
        for partition in partitions:
            async with reading.runs("kafka:1", "t", partition, **bounds) as runs:
                found.extend([[record.offset for record in run] async for run in runs])

    asyncio.run(run())
    return found


def test_a_partition_is_read_in_runs_from_the_given_offset(log: FakeTopics) -> None:
    """The start is an offset, a number of offsets before the end, or a time. Gaps do not end the read."""
    assert read(0, 1, 2) == [[0, 1], [2, 5], [7, 8], [9]]
    assert read(0, start=1) == [[1, 2], [5]]
    assert read(0, start=3) == [[5]]
    assert read(2, start=3) == [[7, 8], [9]]
    assert read(0, 1, 2, start=-3) == [[5], [7, 8], [9]]
    assert read(0, 1, start=-50) == [[0, 1], [2, 5]]
    assert read(0, since=45) == [[1, 2], [5]]
    assert read(0, 1, 2, since=65) == [[5]]
    assert read(0, 1, 2, start=99) == read(2, since=99) == []


def test_no_record_is_read_at_or_behind_the_end(log: FakeTopics) -> None:
    """The end is given, or the one at the start of the read: otherwise the read goes on while others write."""
    assert read(0, end=5) == [[0, 1], [2]]
    assert read(0, end=3) == read(0, end=4) == [[0, 1], [2]]
    assert read(0, start=2, end=3) == [[2]]
    assert read(0, start=3, end=5) == read(1, end=5) == read(0, start=2, end=2) == []
    assert read(2, end=99) == [[7, 8], [9]]
    log.ends = {("t", 0): 2, ("t", 2): 8}
    assert read(0, 2, end=99) == read(0, 2) == [[0, 1], [7]]


def test_the_next_run_is_fetched_when_the_last_one_was_handled(log: FakeTopics) -> None:
    """Only one run is in memory at a time."""

    async def run() -> list[tuple[int, int]]:
        partition = TopicPartition("t", 0)
        async with connection.consumer("kafka:1") as client:
            client.assign([partition])
            return [
                (run[-1].offset, await client.position(partition))
                async for run in reading.fetched(client, partition, 6)
            ]

    assert asyncio.run(run()) == [(1, 2), (5, 6)]


def test_records_since_a_time_have_values_only_if_they_are_wanted(log: FakeTopics) -> None:
    """The search for a dead letter needs only the headers, and values are large."""
    for values, expected in ((False, None), (True, b"v")):
        found = asyncio.run(reading.read_since("kafka:1", "t", 0, 45, values=values))
        assert [(record.offset, record.value) for record in found] == [(n, expected) for n in (1, 2, 5)]


def test_a_look_up_waits_for_the_records_that_only_the_leader_has_yet(
    log: FakeTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what a worker sent last before it was lost would be sent again. A leader that had more may be gone, too."""
    log.ends, log.log_ends = {("t", 0): 2}, {("t", 0): 6}
    monkeypatch.setattr(reading, "_COPIES_SECONDS", 0.05)
    with pytest.raises(Unavailable, match="too few brokers have the last records"):
        asyncio.run(reading.read_since("kafka:1", "t", 0, 0, values=True))

    async def later(change: Callable[[], None]) -> list[int]:
        asyncio.get_running_loop().call_later(0.05, change)
        return [record.offset for record in await reading.read_since("kafka:1", "t", 0, 0, values=True)]

    monkeypatch.setattr(reading, "_COPIES_SECONDS", 60)
    assert asyncio.run(later(lambda: log.ends.update({("t", 0): 6}))) == [0, 1, 2, 5]
    log.ends = {("t", 0): 2}
    assert asyncio.run(later(lambda: log.log_ends.update({("t", 0): 2}))) == [0, 1]


def by_time(topic: str = "t") -> list[tuple[int, int]]:
    """Partition and offset of a topic's records."""

    async def run() -> list[tuple[int, int]]:
        return [(record.partition, record.offset) async for record in reading.by_time("kafka:1", topic)]

    return asyncio.run(run())


def test_a_topic_is_read_by_time_and_each_partition_in_its_order(log: FakeTopics) -> None:
    """A record with a wrong time stays in its partition's order. Gaps and empty partitions don't end the read."""
    assert by_time() == [(2, 7), (0, 0), (2, 8), (0, 1), (0, 2), (2, 9), (0, 5)]
    assert by_time("unknown") == []


def test_records_that_arrive_during_a_read_are_not_read(log: FakeTopics) -> None:
    """A retry would otherwise retry records that fail again, for ever."""
    log.ends = {("t", 0): 2, ("t", 2): 8}
    assert by_time() == [(2, 7), (0, 0), (0, 1)]


def test_the_tail_of_a_topic_is_read_and_no_more(log: FakeTopics) -> None:
    """Only the last offsets of each partition are read, so that a large topic takes no longer than a small one."""
    for most, expected in ((1, [(0, 5), (2, 9)]), (2, [(0, 5), (2, 8), (2, 9)]), (50, None)):
        found = asyncio.run(reading.tail("kafka:1", "t", most))
        places = [(record.partition, record.offset) for record in found]
        assert places == (expected or [(0, 0), (0, 1), (0, 2), (0, 5), (2, 7), (2, 8), (2, 9)])
    log.ends = {("t", 0): 1, ("t", 2): 8}
    assert len(asyncio.run(reading.tail("kafka:1", "t", 50))) == 2  # later records are not read
    assert asyncio.run(reading.tail("kafka:1", "unknown", 50)) == []


def test_only_topics_that_exist_have_partitions(client: Client) -> None:
    """A new shop has no topics; the count is 0."""
    count = kafka_topics.count_partitions
    assert [asyncio.run(count("kafka:1", topic)) for topic in ("purchases", "unknown")] == [2, 0]


class Producing:
    """A fake for a transactional producer."""

    def __init__(self, seconds: float = 0) -> None:
        self.did: list[Any] = []
        self.seconds = seconds

    async def begin_transaction(self) -> None:
        self.did.append("begin")

    async def commit_transaction(self) -> None:
        await asyncio.sleep(self.seconds)
        self.did.append("commit")

    async def send(
        self, topic: str, value: Any, key: Any, partition: int, *, timestamp_ms: int | None, headers: Any
    ) -> Any:
        self.did.append((topic, partition, key, value, timestamp_ms, headers))
        return asyncio.get_running_loop().create_future()

    def create_batch(self) -> Any:
        return SimpleNamespace(append=lambda **record: self.did.append(record))

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> Any:
        self.did.append((topic, partition))
        return asyncio.get_running_loop().create_future()


def test_a_transaction_is_committed_when_its_body_ends_well() -> None:
    """A record with neither key nor value, which aiokafka's `send` refuses, is sent as a batch."""
    client = Producing()

    async def use() -> None:
        producer = transactions.Transactions(client)
        async with producer.transaction():
            await producer.send("t", 3, b"k", None, [("a", b"1")])
            await producer.send("t", 2, None, None, (("a", b"1"),), timestamp=7)
        with pytest.raises(KafkaConnectionError):
            async with producer.transaction():
                raise KafkaConnectionError

    asyncio.run(use())
    bare = {"key": None, "value": None, "timestamp": 7, "headers": [("a", b"1")]}
    assert client.did == ["begin", ("t", 3, b"k", None, None, [("a", b"1")]), bare, ("t", 2), "commit", "begin"]


def test_a_commit_that_takes_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiokafka retries for ever while Kafka is away, and the command would hang."""
    monkeypatch.setattr(transactions, "_COMMIT_SECONDS", 0.01)

    async def use() -> None:
        async with transactions.Transactions(Producing(60)).transaction():
            pass

    with pytest.raises(KafkaTimeoutError, match="no answer within"):
        asyncio.run(use())


def test_a_kafka_that_is_away_takes_no_transactions() -> None:
    """The error is `Unavailable`, and no client is left open."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: nobody else takes it

        async def use() -> None:
            async with transactions.transactions(Bootstrap(f"127.0.0.1:{unused.getsockname()[1]}"), "id"):
                raise AssertionError("it can't have started")

        with pytest.raises(Unavailable, match="Kafka"):
            asyncio.run(use())


def test_spans_have_the_first_committed_and_end_offsets(client: Client) -> None:
    """The committed offset in a span is never smaller than the start."""
    found = asyncio.run(offsets.spans("kafka:1", "shop", ["purchases", "unknown"]))
    assert found == {"purchases": {0: offsets.Span(10, 25, 30), 1: offsets.Span(10, 10, 30)}}


class Described(Client):
    """A client that describes the group with these answers, one after the other."""

    def __init__(self, *answers: tuple[Any, ...]) -> None:
        super().__init__()
        self.answers = list(answers)

    async def describe_consumer_groups(self, names: list[str]) -> list[Any]:
        assert names == ["shop"]
        return [SimpleNamespace(groups=[self.answers.pop(0)])]


def described(monkeypatch: pytest.MonkeyPatch, *answers: tuple[Any, ...]) -> groups.Group:
    """The group that follows from these answers."""
    client = Described(*answers)

    @asynccontextmanager
    async def started(bootstrap: str) -> AsyncIterator[Client]:
        yield client

    monkeypatch.setattr(connection, "admin", started)
    monkeypatch.setattr(groups, "CHECK_SECONDS", 0)
    return asyncio.run(groups.group_of("kafka:1", "shop"))


def test_a_group_is_described_with_its_members_assignments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later versions of Kafka's answer have more fields, which don't matter."""
    members = [("id2", "faust-b", "/10.0.0.2", b"m", b"two"), ("id1", "faust-a", "/10.0.0.1", b"m", b"one", "more")]
    group = described(monkeypatch, (0, "shop", "Stable", "consumer", "faust", members, -1))
    given = (("faust-a at /10.0.0.1", b"one"), ("faust-b at /10.0.0.2", b"two"))
    assert group == groups.Group("Stable", given, ("id2", "id1"))


def test_a_group_is_asked_for_again_until_it_has_a_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a missing coordinator is in the answer. Another error is raised."""
    dead = (0, "shop", "Dead", "", "", [])
    loading = (GroupCoordinatorNotAvailableError.errno, "shop", "", "", "", [])
    assert described(monkeypatch, loading, loading, dead) == groups.Group("Dead", ())
    with pytest.raises(GroupAuthorizationFailedError):
        described(monkeypatch, (GroupAuthorizationFailedError.errno, "shop", "", "", "", []))


@pytest.mark.parametrize("last", [0, 1])
def test_what_kafka_itself_can_not_read_is_one_up_to_where_its_log_goes_on(last: int) -> None:
    """Also at the end of the log. `verify` compares it with one dead letter, and `dead-letters skip` steps over all."""
    tp = TopicPartition("t", 0)
    good = [FakeRecord(b"a", b"1", 0), FakeRecord(b"a", b"1", 4)][: 1 + last]
    failed = [
        UnreadableRecord(consumer_record(tp, n), KAFKA_FAILED, b"", n, whole=False, batch=True) for n in (1, 2, 3)
    ]
    answers: list[list[Any]] = [good[:1], *([one] for one in failed[:2]), [failed[2], *good[1:]]]
    at = 0

    async def position(_: Any) -> int:
        return at

    async def getmany(*_: Any, **__: Any) -> dict[Any, list[Any]]:
        nonlocal at
        run = answers.pop(0)
        at = run[-1].offset + 1
        return {tp: run}

    async def whole() -> list[list[Any]]:
        client = SimpleNamespace(position=position, getmany=getmany)
        return [run async for run in reading.fetched(client, tp, 4 + last)]

    runs = asyncio.run(whole())
    assert [[(one.offset, getattr(one, "start", one.offset)) for one in run] for run in runs] == [
        [(0, 0)],
        [(3, 1), *((4, 4) for _ in range(last))],
    ]
