"""Topics: how they are made, and which are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.errors import GroupAuthorizationFailedError, GroupCoordinatorNotAvailableError, KafkaError

from shopflow import kafka, topics
from shopflow.errors import Refused
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
        "shop.dead-letters": False,
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
