"""The worker's name in the group: a worker takes the place of an ended one at once, and of a living one never."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.errors import GroupAuthorizationFailedError, UnknownMemberIdError
from aiokafka.protocol.group import LeaveGroupRequest

from faust_batches import instance
from faust_batches.instance import Instance

URL = "http://127.0.0.1:6066"


def metadata(topics: Any, url: str = URL) -> Any:
    """What a worker joins with."""
    return ConsumerProtocolMemberMetadata(4, list(topics), json.dumps({"url": url}).encode())


class Coordinator:
    """A coordinator without Kafka, in a group that may have a member with the name."""

    def __init__(self) -> None:
        self._group_instance_id: str | None = "name"
        self._session_timeout_ms = 0
        self.group_id, self.member_id = "group", ""
        self.member: tuple[Any, ...] | None = None
        self.left: list[str] = []
        self.joins = 0
        self.begun = 0
        self.error = 0
        self.assigned_to = URL

    def has(self, member_id: str, topics: Any = ("a", "b"), url: str = URL, name: str = "name") -> None:
        """The group has this member."""
        self.member = (member_id, name, "client", "/10.0.0.1", metadata(topics, url).encode(), b"")

    async def _send_req(self, request: Any) -> Any:
        if isinstance(request, LeaveGroupRequest):
            self.left.append(request._member_id)
            self.member = None
            return SimpleNamespace(error_code=0)
        return SimpleNamespace(groups=[(self.error, "group", "Stable", "", "", [self.member] * bool(self.member), 0)])

    async def _do_rejoin_group(self, subscription: Any) -> bool:
        self.joins += 1
        data = zlib.compress(json.dumps({"url": self.assigned_to}).encode())
        await self._on_join_complete(1, "m1", "faust", ConsumerProtocolMemberAssignment(4, [], data).encode())
        return True

    async def _on_join_complete(self, *_: Any) -> None:
        self.begun += 1

    def reset_generation(self) -> None:
        self.member_id = ""

    def coordinator_dead(self) -> None:
        self.left.append("coordinator")


_started: list[Instance] = []


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Coordinator]:
    monkeypatch.setattr(instance, "_LOOK_SECONDS", 0.01)
    yield Coordinator()
    while _started:
        end(_started.pop())


def end(worker: Instance) -> None:
    """What the kernel does at the end of a process."""
    if worker._record is not None:
        os.close(worker._record)
        worker._record = None


def worker(coordinator: Coordinator, folder: Path) -> Instance:
    """A worker that starts, with its tables in this folder."""
    _started.append(Instance(coordinator, metadata, folder))
    return _started[-1]


def join(coordinator: Coordinator, topics: Any = ("b", "a")) -> bool:
    """One attempt of aiokafka to join."""

    async def attempt() -> bool:
        coordinator._closing = asyncio.get_running_loop().create_future()  # type: ignore[attr-defined]
        return await coordinator._do_rejoin_group(SimpleNamespace(topics=topics))

    return asyncio.run(attempt())


def start_again(coordinator: Coordinator, folder: Path) -> Instance:
    """A worker joined as member `m1` and was killed; another one starts with its tables."""
    first = worker(coordinator, folder)
    coordinator.member_id = "m1"
    first.joined()
    end(first)
    vars(coordinator).clear()  # also of what the first one hooked
    vars(coordinator).update(vars(Coordinator()))
    return worker(coordinator, folder)


def test_a_name_that_nobody_has_is_joined_under(coordinator: Coordinator, tmp_path: Path) -> None:
    worker(coordinator, tmp_path)
    coordinator.has("other", name="other")
    assert join(coordinator)
    assert coordinator.joins == 1


def test_an_ended_worker_is_replaced_at_once(coordinator: Coordinator, tmp_path: Path) -> None:
    start_again(coordinator, tmp_path)
    coordinator.has("m1")
    assert join(coordinator)
    assert (coordinator.joins, coordinator.left) == (1, [])


@pytest.mark.parametrize("change", [{"url": "http://127.0.0.1:6067"}, {"topics": ("a",)}])
def test_with_another_address_or_other_topics_the_ended_one_is_removed_first(
    change: dict[str, Any], coordinator: Coordinator, tmp_path: Path
) -> None:
    """Kafka gives the old assignment back: it would lack a topic, or name an address at which nobody answers."""
    start_again(coordinator, tmp_path)
    coordinator.has("m1", **change)
    assert not join(coordinator)
    assert (coordinator.joins, coordinator.left) == (0, ["m1"])
    assert join(coordinator)


def test_in_a_rebalance_the_ended_one_is_removed_first(coordinator: Coordinator, tmp_path: Path) -> None:
    """Kafka does not tell with what its members joined then."""
    start_again(coordinator, tmp_path)
    coordinator.member = ("m1", "name", "client", "/10.0.0.1", b"", b"")
    assert not join(coordinator)
    assert coordinator.left == ["m1"]


def test_a_living_worker_is_never_replaced(coordinator: Coordinator, tmp_path: Path) -> None:
    """It is waited for as long as Kafka may need to remove a dead one. Then a sentence names it."""
    second = start_again(coordinator, tmp_path)
    coordinator.has("m2")
    coordinator._session_timeout_ms = -int(instance._GRACE_SECONDS * 1000)
    assert not join(coordinator)
    assert second.taken is None
    assert not join(coordinator)
    assert second.taken == f"another worker has the instance id name: {URL}, connected from 10.0.0.1"
    assert coordinator.joins == 0
    coordinator.member = None
    assert join(coordinator)


def test_a_worker_whose_folder_is_locked_is_alive(coordinator: Coordinator, tmp_path: Path) -> None:
    """Two workers have one folder: what is written there is of the one that has it locked."""
    (tmp_path / "member").write_text("m1")
    with (tmp_path / "member").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        second = worker(coordinator, tmp_path)
        coordinator.has("m1")
        assert not join(coordinator)
        coordinator.member_id = "m2"
        second.joined()
        assert (tmp_path / "member").read_text() == "m1"


def test_a_full_disk_keeps_nobody_out(
    coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its member id on disk, the next process waits for the end of the session."""

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    first = start_again(coordinator, tmp_path)
    coordinator.member_id = "m2"
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        first.joined()
    end(first)
    coordinator = Coordinator()
    worker(coordinator, tmp_path)
    coordinator.has("m2")
    assert not join(coordinator)


def test_a_member_that_kafka_knows_joins_again_without_a_look(coordinator: Coordinator, tmp_path: Path) -> None:
    worker(coordinator, tmp_path)
    coordinator.member_id = "m1"
    coordinator.has("m1")
    assert join(coordinator)


def test_an_assignment_of_another_worker_is_not_begun(coordinator: Coordinator, tmp_path: Path) -> None:
    """Two workers with one name joined in the same rebalance: Kafka gives both what is for the later one."""
    worker(coordinator, tmp_path)
    coordinator.assigned_to, coordinator.member_id = "http://127.0.0.1:6067", "m1"
    assert not join(coordinator)
    assert coordinator.begun == 0
    assert coordinator.member_id == ""  # so the next attempt looks for the name's holder
    coordinator.assigned_to = URL
    assert join(coordinator)
    assert coordinator.begun == 1


def test_while_the_group_is_not_known_nobody_joins(coordinator: Coordinator, tmp_path: Path) -> None:
    """Kafka may be loading it: its coordinator is asked for again."""
    worker(coordinator, tmp_path)
    coordinator.error = 15
    assert not join(coordinator)
    assert coordinator.left == ["coordinator"]


def test_a_missing_right_is_told(coordinator: Coordinator, tmp_path: Path) -> None:
    """Then this worker never joins: aiokafka gives the error to who tells it."""
    worker(coordinator, tmp_path)
    coordinator.error = GroupAuthorizationFailedError.errno
    with pytest.raises(GroupAuthorizationFailedError):
        join(coordinator)


def test_a_member_whose_name_was_taken_is_unknown(coordinator: Coordinator, tmp_path: Path) -> None:
    """aiokafka would end at the error."""

    async def fenced(request: Any) -> Any:
        return SimpleNamespace(error_code=82)

    coordinator._send_req = fenced  # type: ignore[method-assign]
    worker(coordinator, tmp_path)
    assert asyncio.run(coordinator._send_req(None)).error_code == UnknownMemberIdError.errno


def test_a_worker_that_stops_leaves_the_group(coordinator: Coordinator, tmp_path: Path) -> None:
    """aiokafka sends no LeaveGroup for a member with a name."""
    worker(coordinator, tmp_path).leave_at_stop()
    assert coordinator._group_instance_id is None
