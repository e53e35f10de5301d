"""What Kafka's errors demand: wait (`Unavailable`), or have somebody change its configuration (`Refusal`)."""

from __future__ import annotations

from aiokafka import TopicPartition, errors
from aiokafka.errors import KafkaError

from .errors import Refusal, Slow, Unavailable

_CONFIG = "kafka-configs.sh --alter --entity-type topics --entity-name {subject} --add-config"
_RIGHTS = "an administrator of Kafka grants it with kafka-acls.sh --add --allow-principal User:NAME"


class InvalidRecordError(KafkaError):  # type: ignore[misc]  # aiokafka's class has no types
    """A topic's settings forbid a record. aiokafka has no class for it."""

    errno = 87


#: Error -> what Kafka does, and who ends it how. `{subject}` is the topic or group.
_REFUSALS: dict[type[KafkaError], str] = {
    errors.MessageSizeTooLargeError: "takes no record of this size for the topic {subject}; raise its limit: "
    f"{_CONFIG} max.message.bytes=17825792",
    errors.RecordListTooLargeError: "takes no batch of this size for the topic {subject}; raise its limit: "
    f"{_CONFIG} segment.bytes=1073741824",
    errors.TopicAuthorizationFailedError: "refuses access to the topic {subject}; "
    f"{_RIGHTS} --operation Read --operation Write --operation Describe --topic {{subject}}",
    errors.GroupAuthorizationFailedError: "refuses access to the consumer group {subject}; "
    f"{_RIGHTS} --operation Read --operation Describe --group {{subject}}",
    errors.ClusterAuthorizationFailedError: "refuses to write to the topic {subject} for lack of rights on the "
    f"cluster; {_RIGHTS} --operation IdempotentWrite --cluster",
    errors.TransactionalIdAuthorizationFailed: "refuses the transactional id for the topic {subject}; "
    f"{_RIGHTS} --operation Write --operation Describe --transactional-id ID",
    errors.SaslAuthenticationFailed: "refuses the login for {subject}; correct the user and the password, or "
    "have an administrator of Kafka set the password again: kafka-configs.sh --alter --entity-type users",
    errors.InvalidTopicError: "takes no topic with the name {subject}; choose another prefix of topics",
    errors.UnknownTopicOrPartitionError: "has no such topic or partition, {subject}; "
    "restart a worker, which creates missing topics, or restore it: kafka-topics.sh --create --topic {subject}",
    errors.LeaderNotAvailableError: "has no leader for a partition of the topic {subject}; "
    "bring the brokers back that have it, or, if the topic is gone, restart a worker, which creates it",
    errors.PolicyViolationError: "refuses the request about {subject} by a policy of its administrators; "
    "have them change the policy (create.topic.policy.class.name, alter.config.policy.class.name)",
    errors.UnsupportedForMessageFormatError: "stores the topic {subject} in a format that is too old; "
    f"{_CONFIG} message.format.version=3.0",
    errors.InvalidTimestampError: "takes no record with this time for the topic {subject}; "
    f"{_CONFIG} message.timestamp.before.max.ms=9223372036854775807",
    errors.NotEnoughReplicasError: "takes no record for the topic {subject}: fewer of its copies are up to date than "
    "min.insync.replicas demands; bring the brokers back that have them, or, if there never were as many, lower it: "
    f"{_CONFIG} min.insync.replicas=1",
    InvalidRecordError: "takes no such record for the topic {subject}: a compacted topic takes none without a key; "
    f"{_CONFIG} cleanup.policy=delete",
    errors.InvalidRequiredAcksError: "takes no records for the topic {subject} with these acks; remove PRODUCER_ACKS",
}
_REFUSALS[errors.NotEnoughReplicasAfterAppendError] = _REFUSALS[errors.NotEnoughReplicasError]


def kafka_failure(error: KafkaError, subject: str, *, lasting: bool = False) -> Unavailable:
    """What an error of Kafka demands; a `Refusal` if waiting does not end it, `Slow` if it probably ends soon.

    Arguments:
        subject: The topic or the group that the request was about. An error that names another one wins.
        lasting: True if the error has lasted for too long for a topic that was just made, or whose leader moves.
    """
    subject = _subject(error) or subject
    if is_passing(error) and not lasting:
        return Slow("Kafka", f"{subject}: {_kind(error).__name__}")
    kind = _kind(error)
    words = next((text for known, text in _REFUSALS.items() if issubclass(kind, known)), None)
    if words:
        return Refusal("Kafka", subject, f"Kafka {words.format(subject=subject)}")
    return Unavailable("Kafka", str(error) or type(error).__name__)


def is_passing(error: KafkaError) -> bool:
    """True if Kafka answers so for a moment when it has just made a topic, or when a leader moves."""
    return issubclass(_kind(error), (errors.UnknownTopicOrPartitionError, errors.LeaderNotAvailableError))


def _kind(error: KafkaError) -> type[BaseException]:
    return getattr(error, "kind", None) or type(error)


def _subject(error: KafkaError) -> str | None:
    if hasattr(error, "subject"):
        return str(error.subject)
    first = error.args[0] if error.args else None
    if isinstance(first, TopicPartition):
        return str(first.topic)
    if isinstance(error, errors.TopicAuthorizationFailedError) and first:
        return ", ".join(sorted(first)) if isinstance(first, (set, frozenset)) else str(first)
    return None


def name_topic(error: BaseException | None, topic: str) -> None:
    """Let an error of Kafka name the topic that the request was about."""
    if isinstance(error, KafkaError) and not hasattr(error, "subject"):
        error.subject = topic
