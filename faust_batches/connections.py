"""Lets an aiokafka client notice a cut network, and connect soon after its end."""

from __future__ import annotations

import socket
from typing import Any

#: Of one attempt. In a cut network the kernel sends its packets after 0, 1, 3, 7, 15 ... seconds: after a long cut, a
#: long attempt would wait as long again. A new one begins anew.
_CONNECT_SECONDS = 5.0
#: A connection that is silent for so long is probed as often.
_PROBE_SECONDS = 2


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
