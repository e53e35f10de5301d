"""The worker's own name in the consumer group: one that comes back keeps its partitions, and nobody else stands still.

Kafka calls it a static member. It gives a member's partitions to whoever joins under its name, at once, also while that
member still works on them: its lease would be worth nothing. So a worker joins under a name that a member has only if
the process that was this member has ended: it had the worker's data directory locked, and wrote its member id there.
Any other member under the name is waited for, and if Kafka does not remove it within its session, it is alive.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, UnknownMemberIdError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.group import JoinGroupRequest, LeaveGroupRequest
from aiokafka.protocol.types import Array, Boolean, Bytes, Int16, Int32, Schema, String

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.3
#: A member that Kafka has not removed this long after its session timeout sends heartbeats.
_GRACE_SECONDS = 5.0
#: Kafka's error for a member whose name another one has taken.
_FENCED_INSTANCE_ID = 82


class _DescribeGroupsResponse(Response):  # type: ignore[misc] # aiokafka's classes have no types
    API_KEY, API_VERSION = 15, 4
    _MEMBER = (
        *(("member_id", String("utf-8")), ("instance_id", String("utf-8")), ("client_id", String("utf-8"))),
        *(("client_host", String("utf-8")), ("metadata", Bytes), ("assignment", Bytes)),
    )
    _GROUP = (
        *(("error_code", Int16), ("group", String("utf-8")), ("state", String("utf-8"))),
        *(("protocol_type", String("utf-8")), ("protocol", String("utf-8")), ("members", Array(*_MEMBER))),
        ("authorized_operations", Int32),
    )
    SCHEMA = Schema(("throttle_time_ms", Int32), ("groups", Array(*_GROUP)))


class _DescribeGroupsStruct(RequestStruct):  # type: ignore[misc]
    API_KEY, API_VERSION = 15, 4
    RESPONSE_TYPE = _DescribeGroupsResponse
    SCHEMA = Schema(("groups", Array(String("utf-8"))), ("include_authorized_operations", Boolean))


class _DescribeGroups(Request[_DescribeGroupsStruct]):  # type: ignore[misc]
    """Describes a group with its members' names: aiokafka has only versions without them. Kafka 2.4 has this one."""

    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[_DescribeGroupsStruct]) -> _DescribeGroupsStruct:
        return request_struct_class([self._group], False)


class _Member(NamedTuple):
    """A member of the group, as Kafka describes it."""

    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    metadata: bytes
    """What it subscribes to, and its address; empty in a rebalance."""

    assignment: bytes


class _NotOursError(Exception):
    """An assignment is another worker's."""


class Instance:
    """Lets the coordinator of an `AIOKafkaConsumer` join under a name. All in the consumer's thread.

    Arguments:
        metadata: Topics -> what this worker will join with.
        folder: The worker's data directory.
    """

    def __init__(self, coordinator: Any, metadata: Callable[[Any], Any], folder: Path) -> None:
        self.name: str = coordinator._group_instance_id
        #: Another worker has the name, and is alive: a sentence without a full stop.
        self.taken: str | None = None
        self._coordinator, self._metadata = coordinator, metadata
        self._path = folder / "member"
        self._record: int | None = None  # the open file, which is locked until the process ends
        self._waits_since: float | None = None
        self._rejoin: Callable[[Any], Awaitable[bool]] = coordinator._do_rejoin_group
        self._send: Callable[[Any], Awaitable[Any]] = coordinator._send_req
        self._begin: Callable[..., Awaitable[None]] = coordinator._on_join_complete
        coordinator._do_rejoin_group = self._join
        coordinator._on_join_complete = self._begin_if_ours
        coordinator._send_req = self._send_known

    def leave_at_stop(self) -> None:
        """Let aiokafka leave the group when it stops, so that others take over at once. It does so without a name."""
        self._coordinator._group_instance_id = None

    def joined(self) -> None:
        """Write the member id down, before any work is done as this member."""
        if (record := self._locked()) is None:
            return
        try:
            os.ftruncate(record, 0)
            os.pwrite(record, self._coordinator.member_id.encode(), 0)
        except OSError as error:  # no space; started again, this worker then waits for the end of its session
            log.info("The member id can't be written to %s: %s", self._path, error)

    async def _send_known(self, request: Any) -> Any:
        """Send a request to the coordinator. A member whose name another one has taken is unknown, too."""
        answer = await self._send(request)
        if getattr(answer, "error_code", 0) == _FENCED_INSTANCE_ID:
            answer.error_code = UnknownMemberIdError.errno
        return answer

    async def _join(self, subscription: Any) -> bool:
        """Join the group; False: try again. A join with a member id replaces nobody."""
        unknown = self._coordinator.member_id == JoinGroupRequest.UNKNOWN_MEMBER_ID
        if unknown and not await self._may_join(subscription.topics):
            await asyncio.wait([self._coordinator._closing], timeout=_LOOK_SECONDS)
            return False
        try:
            return await self._rejoin(subscription)
        except _NotOursError:
            self._coordinator.reset_generation()
            return False

    async def _begin_if_ours(self, generation: int, member_id: str, protocol: str, assignment: bytes) -> None:
        """Begin with an assignment.

        Raises:
            _NotOursError: It is for the address of another worker, which took the name in the same rebalance.
        """
        data = ConsumerProtocol.ASSIGNMENT.decode(assignment).user_data
        url = json.loads(zlib.decompress(data))["url"] if data else None
        if url is not None and url != _url(self._metadata(())):
            raise _NotOursError
        await self._begin(generation, member_id, protocol, assignment)

    async def _may_join(self, topics: Any) -> bool:
        """True if no member has the name, or only one that has ended, with the same topics and address."""
        try:
            member = await self._holder()
        except GroupAuthorizationFailedError:
            raise
        except KafkaError as error:
            log.info("The group can't be described yet: %r", error)
            return False
        except NotImplementedError:
            log.warning("Kafka is older than 2.4: the instance id %s is not used", self.name)
            self._coordinator._group_instance_id = None
            return True
        if member is None:
            self._waits_since = self.taken = None
            return True
        if not self._has_ended(member):
            self._wait_for(member)
            return False
        if self._would_be_the_same(member, topics):
            return True
        # Kafka would give the old assignment back, which is for other topics or another address.
        await self._send(LeaveGroupRequest(self._coordinator.group_id, member.member_id))
        return False

    async def _holder(self) -> _Member | None:
        """The member of the group that has the name."""
        answer = await self._send(_DescribeGroups(self._coordinator.group_id))
        ((code, _, _, _, _, members, _),) = answer.groups
        if code:
            if (error := for_code(code)) is not GroupAuthorizationFailedError:
                self._coordinator.coordinator_dead()
            raise error(self._coordinator.group_id)
        found = (_Member(*each) for each in members)
        return next((each for each in found if each.instance_id == self.name), None)

    def _has_ended(self, member: _Member) -> bool:
        """True if the process that was this member had our data directory, which is ours now: or if it is ourselves."""
        record = self._locked()
        return record is not None and os.pread(record, 1_000, 0) == member.member_id.encode()

    def _locked(self) -> int | None:
        """The file with the member id, open and locked; None if another process has it locked."""
        if self._record is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                record = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                log.info("%s can't be opened: %s", self._path, error)
                return None
            try:
                fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(record)
                return None
            self._record = record
        return self._record

    def _would_be_the_same(self, member: _Member, topics: Any) -> bool:
        if not member.metadata:  # a rebalance: it is as well to be new
            return False
        before, now = ConsumerProtocol.METADATA.decode(member.metadata), self._metadata(topics)
        return set(before.subscription) == set(now.subscription) and _url(before) == _url(now)

    def _wait_for(self, member: _Member) -> None:
        url = _url(ConsumerProtocol.METADATA.decode(member.metadata)) if member.metadata else None
        who = f"{url or member.client_id}, connected from {member.client_host.removeprefix('/')}"
        if self._waits_since is None:
            self._waits_since = monotonic()
            log.warning(
                "A member of the group has the instance id %s: %s; this worker joins when Kafka has removed it",
                self.name, who,
            )  # fmt: skip
        elif monotonic() - self._waits_since > self._coordinator._session_timeout_ms / 1000 + _GRACE_SECONDS:
            self.taken = f"another worker has the instance id {self.name}: {who}"


def _url(metadata: Any) -> Any:
    """The address of a Faust worker; None without tables."""
    return json.loads(metadata.user_data or b"{}").get("url")
