"""What Kafka's errors demand: to wait, or to have somebody change a setting, which is named with its command."""

from __future__ import annotations

import pytest
from aiokafka import TopicPartition, errors
from aiokafka.errors import KafkaError

from faust_batches import Unavailable
from faust_batches.errors import Refusal, Slow
from faust_batches.producer import Undecided
from faust_batches.refusals import InvalidRecordError, kafka_failure, name_topic


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.MessageSizeTooLargeError(), "--entity-name sold --add-config max.message.bytes="),
        (errors.TopicAuthorizationFailedError({"bought"}), "refuses access to the topic bought; "),
        (errors.GroupAuthorizationFailedError("sold"), "--operation Read --operation Describe --group sold"),
        (errors.NotEnoughReplicasError(), "fewer of its copies are up to date than min.insync.replicas demands"),
        (errors.NotEnoughReplicasAfterAppendError(), "--entity-name sold --add-config min.insync.replicas=1"),
        (Undecided("sold:0", errors.NotEnoughReplicasError), "bring the brokers back that have them"),
        (errors.SaslAuthenticationFailed(), "correct the user and the password"),
        (errors.InvalidTopicError(), "choose another prefix of topics"),
        (Undecided("sold:0", InvalidRecordError), "a compacted topic takes none without a key"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, KafkaError) else None,
)
def test_what_only_a_setting_ends_is_a_refusal(error: KafkaError, said: str) -> None:
    """Waiting would not help, and nobody would know what to do."""
    found = kafka_failure(error, "sold")
    assert isinstance(found, Refusal)
    assert found.text.startswith("Kafka ")
    assert said in found.text
    assert str(found) == found.text


@pytest.mark.parametrize(
    "error", [errors.KafkaConnectionError("gone"), errors.RequestTimedOutError(), Undecided("no connection")]
)
def test_what_ends_by_itself_is_none(error: KafkaError) -> None:
    """Lost connections and timeouts are outages."""
    assert type(kafka_failure(error, "sold")) is Unavailable


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.UnknownTopicOrPartitionError(), "has no such topic or partition, sold; "),
        (
            errors.LeaderNotAvailableError(TopicPartition("bought", 1)),
            "has no leader for a partition of the topic bought",
        ),
        (Undecided("sold:0", errors.LeaderNotAvailableError), "if the topic is gone, restart a worker"),
    ],
    ids=["unknown", "without a leader", "a leader that moves"],
)
def test_a_topic_that_kafka_does_not_know_is_gone_only_if_that_lasts(error: KafkaError, said: str) -> None:
    """A topic that was just made is unknown to some brokers for a moment, and has no leader yet: no news."""
    assert isinstance(kafka_failure(error, "sold"), Slow)
    found = kafka_failure(error, "sold", lasting=True)
    assert isinstance(found, Refusal)
    assert said in found.text


def test_the_topic_of_the_request_is_named() -> None:
    """A batch of purchases sends to a changelog, too: that one may be refused."""
    error = errors.MessageSizeTooLargeError()
    name_topic(error, "changelog")
    name_topic(error, "other")
    found = kafka_failure(error, "sold")
    assert isinstance(found, Refusal)
    assert found.subject == "changelog"
