"""Lets an aiokafka client notice a cut network, connect soon after its end, and ask for leaders with pauses."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from time import monotonic
from typing import Any

#: Of one attempt. In a cut network the kernel sends its packets after 0, 1, 3, 7, 15 ... seconds: after a long cut, a
#: long attempt would wait as long again. A new one begins anew.
_CONNECT_SECONDS = 5.0
#: A connection that is silent for so long is probed as often.
_PROBE_SECONDS = 2
#: So many requests for metadata may come within a second. Each further one waits first.
_REFRESHES, _REFRESH_PAUSE_SECONDS = 10, 0.1


def notice_cuts(client: Any, seconds: float) -> None:
    """Close each connection of an `AIOKafkaClient` whose other end is silent for this time, and connect in short tries.

    The kernel of the other end answers also if its process is frozen or slow, so the client's own limit for requests
    stays long. Without this, a request that a cut network lost holds up the client for that limit.
    """
    connect, request_seconds = client._get_conn, client._request_timeout_ms / 1000
    client._request_timeout_ms = int(_CONNECT_SECONDS * 1000)

    async def connected(*args: Any, **options: Any) -> Any:
        connection = await connect(*args, **options)
        if connection is not None and connection._request_timeout != request_seconds:
            connection._request_timeout = request_seconds
            _probe(connection._writer.transport.get_extra_info("socket"), seconds)
        return connection

    client._get_conn = connected


def pace_refreshes(client: Any) -> None:
    """Let an `AIOKafkaClient` pause between its requests for metadata when many come at once.

    While Kafka answers that a partition has no leader, as during its orderly stop, aiokafka asks again at once, as long
    as records wait for that partition: thousands of times a second.
    """
    refresh, recent = client._metadata_update, deque[float](maxlen=_REFRESHES)

    async def refreshed(*args: Any) -> Any:
        if len(recent) == _REFRESHES and monotonic() - recent[0] < 1:
            await asyncio.sleep(_REFRESH_PAUSE_SECONDS)
        recent.append(monotonic())
        return await refresh(*args)

    client._metadata_update = refreshed


def _probe(link: socket.socket, seconds: float) -> None:
    """Let the kernel close the connection when the other end is silent for this time. Linux has all these options."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _PROBE_SECONDS),
        ("TCP_KEEPINTVL", _PROBE_SECONDS),
        ("TCP_USER_TIMEOUT", int(seconds * 1000)),
    ):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
