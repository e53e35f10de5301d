"""Kafka's quotas: a client waits as long as Kafka says, and a worker tells that it is slowed down.

Kafka answers the request that exceeds a quota at once. The answer says for how long Kafka reads nothing more from that
connection. aiokafka ignores this: its next request would run into its time limit, be taken for an outage, and be sent
again.
"""

from __future__ import annotations

import asyncio
import threading
from time import monotonic
from typing import Any

from aiokafka.client import ConnectionGroup

from .troubles import Troubles

#: The kind of the trouble.
THROTTLED = "throttled"
#: Shorter pauses are not worth a word.
_TOLD_SECONDS = 1.0
#: It is over when Kafka has asked for no such pause for so long.
_OVER_SECONDS = 30.0


class Quotas:
    """Tells whether Kafka slows this worker down, over all its clients. Thread-safe."""

    def __init__(self, troubles: Troubles) -> None:
        self._troubles = troubles
        self._until: float | None = None  # the end of the last pause; None: nothing to tell
        self._lock = threading.Lock()

    def heed(self, client: Any) -> None:
        """Let an `AIOKafkaClient` send nothing over a connection until the pause is over that Kafka asked for."""
        send, pauses = client.send, dict[Any, float]()

        async def heeding(node_id: Any, request: Any, *, group: Any = ConnectionGroup.DEFAULT) -> Any:
            connection = (node_id, group)
            while (seconds := pauses.get(connection, 0.0) - monotonic()) > 0:
                await asyncio.sleep(seconds)
            answer = await send(node_id, request, group=group)
            seconds = getattr(answer, "throttle_time_ms", 0) / 1000
            if seconds > 0:
                pauses[connection] = max(pauses.get(connection, 0.0), monotonic() + seconds)
            self._heard(seconds)
            return answer

        client.send = heeding

    def _heard(self, seconds: float) -> None:
        now, long = monotonic(), seconds >= _TOLD_SECONDS
        with self._lock:
            if long:
                self._until = max(self._until or 0.0, now + seconds)
            elif self._until is None or now - self._until < _OVER_SECONDS:
                return
            else:
                self._until = None
        if not long:
            self._troubles.end(THROTTLED, "Kafka")
            return
        text = (
            f"Kafka slows this worker down: a quota is used up, and Kafka asked for a pause of {seconds:.0f} s; "
            "nothing is lost; an administrator of Kafka raises the quota: kafka-configs.sh --alter --entity-type users "
            "--entity-default --add-config producer_byte_rate=N,consumer_byte_rate=N,request_percentage=N"
        )
        self._troubles.begin(THROTTLED, "Kafka", text, stops=False)
