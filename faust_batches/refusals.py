"""What Kafka's errors demand: wait (`Unavailable`), or have somebody change its configuration (`Refusal`)."""

from __future__ import annotations

from aiokafka import errors
from aiokafka.errors import KafkaError

from .errors import Refusal, Unavailable

_CONFIG = "kafka-configs.sh --alter --entity-type topics --entity-name {subject} --add-config"
_RIGHTS = "an administrator of Kafka grants it with kafka-acls.sh --add --allow-principal User:NAME"

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
    errors.PolicyViolationError: "refuses the request about {subject} by a policy of its administrators; "
    "have them change the policy (create.topic.policy.class.name, alter.config.policy.class.name)",
    errors.UnsupportedForMessageFormatError: "stores the topic {subject} in a format that is too old; "
    f"{_CONFIG} message.format.version=3.0",
    errors.InvalidTimestampError: "takes no record with this time for the topic {subject}; "
    f"{_CONFIG} message.timestamp.before.max.ms=9223372036854775807",
    errors.InvalidRequiredAcksError: "takes no records for the topic {subject} with these acks; remove PRODUCER_ACKS",
}
#: Errors without a class in aiokafka.
_REFUSALS_BY_CODE = {
    87: "takes no such record for the topic {subject}: a compacted topic takes no record without a key; "
    f"{_CONFIG} cleanup.policy=delete",
}
_IN_SYNC = "fewer replicas are in sync than min.insync.replicas demands; bring the brokers back that have them"


def kafka_failure(error: KafkaError, subject: str, *, lasting: bool = False) -> Unavailable:
    """What an error of Kafka demands; a `Refusal` if waiting does not end it.

    Arguments:
        subject: The topic or the group that the request was about. An error that names another one wins.
        lasting: True if it has lasted for so long that a topic that Kafka does not know is gone, and not just created.
    """
    subject = _subject(error) or subject
    if is_unknown_topic(error) and not lasting:
        return Unavailable("Kafka", f"{subject}: {type(error).__name__}")
    kind = _kind(error)
    words = next((text for known, text in _REFUSALS.items() if issubclass(kind, known)), None)
    words = words or _REFUSALS_BY_CODE.get(getattr(error, "errno", 0) or 0)
    if words:
        return Refusal("Kafka", subject, f"Kafka {words.format(subject=subject)}")
    if issubclass(kind, (errors.NotEnoughReplicasError, errors.NotEnoughReplicasAfterAppendError)):
        return Unavailable("Kafka", f"{subject}: {_IN_SYNC}")
    return Unavailable("Kafka", str(error) or type(error).__name__)


def is_unknown_topic(error: KafkaError) -> bool:
    """True if Kafka does not know the topic or the partition."""
    return issubclass(_kind(error), errors.UnknownTopicOrPartitionError)


def _kind(error: KafkaError) -> type[BaseException]:
    return getattr(error, "kind", None) or type(error)


def _subject(error: KafkaError) -> str | None:
    named = getattr(error, "subject", None) or (error.args[0] if error.args else None)
    if isinstance(error, errors.TopicAuthorizationFailedError) or hasattr(error, "subject"):
        return ", ".join(sorted(named)) if isinstance(named, (set, frozenset)) else str(named)
    return None


def name_topic(error: BaseException | None, topic: str) -> None:
    """Let an error of Kafka name the topic that the request was about."""
    if isinstance(error, KafkaError) and not hasattr(error, "subject"):
        error.subject = topic
