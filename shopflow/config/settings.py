"""Every setting of shopflow: its type, default, meaning and legal values."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address
from pathlib import Path

import msgspec

from .checks import check, in_range
from .promotions import Rule

EMBEDDED = "embedded"

_NAME = re.compile(r"[A-Za-z0-9._-]{1,180}")
_BROKER = re.compile(r"(?:kafka://)?(?:[^\s/;:@\[\]]+|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})")
_MONGODB = re.compile(r"mongodb(\+srv)?://[^\s/?]\S*")


def _is_broker(value: str) -> bool:
    return value.startswith("kafka://") and all(map(_is_address, value.split(";")))


def _is_address(text: str) -> bool:
    found = _BROKER.fullmatch(text)
    if found is None or not 1 <= int(found[2]) <= 65535:
        return False
    try:
        return found[1] is None or bool(IPv6Address(found[1]))
    except AddressValueError:
        return False


class Kafka(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Login and TLS for a Kafka that is not embedded. `kafka.security` checks that the settings go together."""

    security_protocol: str = "plaintext"
    """`plaintext`, `ssl` (TLS), `sasl_plaintext` (a login) or `sasl_ssl` (both)."""

    sasl_mechanism: str = "PLAIN"
    """The mechanism of the login: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`."""

    username: str = ""
    """The user name of the login."""

    password: str = ""
    """The password of the login. Set it in the environment."""

    ca_file: str = ""
    """The CA certificates (PEM) for the brokers' certificates. Empty: the system's."""

    certificate_file: str = ""
    """The client certificate (PEM), for brokers that demand one."""

    key_file: str = ""
    """The client certificate's key (PEM). Empty: it is in `certificate_file`."""

    key_password: str = ""
    """The password of an encrypted key. Set it in the environment."""

    check_hostname: bool = True
    """True: a broker's certificate must have the broker's name. Use false only with a CA that signs only brokers'."""

    def __post_init__(self) -> None:
        protocols = {"plaintext", "ssl", "sasl_plaintext", "sasl_ssl"}
        legal = self.security_protocol.lower() in protocols
        check(legal, "security_protocol", "plaintext, ssl, sasl_plaintext or sasl_ssl")
        mechanisms = {"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}
        check(self.sasl_mechanism.upper() in mechanisms, "sasl_mechanism", "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
        for name in ("username", "password", "ca_file", "certificate_file", "key_file", "key_password"):
            check("\0" not in getattr(self, name), name, "without a NUL character")

    def __repr__(self) -> str:
        """Leaves out the passwords: a configuration may be logged."""
        return f"Kafka(security_protocol={self.security_protocol!r}, username={self.username!r})"

    @property
    def logs_in(self) -> bool:
        """True if clients log in with a user and a password."""
        return self.security_protocol.lower().startswith("sasl_")

    @property
    def encrypts(self) -> bool:
        return self.security_protocol.lower().endswith("ssl")


class MongoDB(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The database that the events are written to."""

    uri: str = EMBEDDED
    """`embedded`, or a MongoDB URI with hosts, user, password and TLS. Set it in the environment."""

    database: str = "shopflow"
    """The database's name."""

    def __post_init__(self) -> None:
        legal = self.uri == EMBEDDED or _MONGODB.fullmatch(self.uri) is not None
        check(legal, "uri", "'embedded', mongodb://host... or mongodb+srv://host...")
        legal = 0 < len(self.database) < 64 and not set(self.database) & set('/\\. "$*<>:|?\0')
        check(legal, "database", '1 to 63 characters without / \\ . " $ * < > : | ? or a space')

    def __repr__(self) -> str:
        """Leaves out the URI, which may have a password: a configuration may be logged."""
        return f"MongoDB(uri={EMBEDDED if self.uri == EMBEDDED else '***'!r}, database={self.database!r})"


class Topics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The topics that shopflow creates."""

    prefix: str = "shop."
    """The prefix of every topic's name: `shop.` gives `shop.purchases`."""

    partitions: int = 4
    """Partitions of each topic: the most workers that can share the work. It can't be changed once the topics exist."""

    replication: int = 1
    """Copies of each partition in the Kafka cluster: 3 in production."""

    retention_hours: int = -1
    """Hours that Kafka keeps purchases and dead letters. -1: for ever, so that everything can be rebuilt."""

    def __post_init__(self) -> None:
        legal = self.prefix == "" or _NAME.fullmatch(self.prefix) is not None
        check(legal, "prefix", "at most 180 letters, digits, '.', '_' or '-'")
        in_range(self, partitions=(1, 10_000), replication=(1, 100))
        forever = self.retention_hours == -1
        check(forever or 1 <= self.retention_hours <= 876_000, "retention_hours", "-1 (for ever) or 1 to 876000")


class Embedded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The embedded servers: a Kafka and a MongoDB that shopflow starts. Both listen on 127.0.0.1 only."""

    kafka_port: int = 0
    """Kafka's port. 0: 19092 if it is free, else any free port."""

    mongodb_port: int = 0
    """MongoDB's port. 0: 27117 if it is free, else any free port."""

    kafka_version: str = "4.1.1"
    """The version of Apache Kafka, fetched once from Maven Central."""

    kafka_heap_mb: int = 512
    """The largest size of Kafka's Java heap, in MiB."""

    start_seconds: float = 60.0
    """The time limit from a server's start to its first answer, in seconds. The one-time fetch doesn't count."""

    def __post_init__(self) -> None:
        in_range(self, kafka_port=(0, 65535), mongodb_port=(0, 65535))
        check(re.fullmatch(r"\d+\.\d+\.\d+", self.kafka_version) is not None, "kafka_version", "like 4.1.1")
        check(self.kafka_heap_mb >= 128, "kafka_heap_mb", "at least 128")
        check(0 < self.start_seconds <= 3_600, "start_seconds", "more than 0, at most 3600")


#: As browsers send it: without the default port.
_ORIGIN = re.compile(r"(http(?!.*:80$)|https(?!.*:443$))://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?")


class Web(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The worker's web server. Faust's `--web-bind`, `--web-port` and `--web-host` override these."""

    bind: str = "127.0.0.1"
    """The address to listen on. 0.0.0.0: every network; then set the tokens, and put a TLS proxy in front of it."""

    port: int = 6066
    """The port to listen on. Two workers on one machine need two."""

    host: str = ""
    """The name under which other workers reach this one. Empty: 127.0.0.1 if bound to it, else the host's name."""

    read_token: str = ""
    """The token that readers must send. Empty: everybody who reaches the port may read. Set it in the environment."""

    write_token: str = ""
    """The token for sending events, also valid for reading. Empty: everybody may send. Set it in the environment."""

    allowed_origins: tuple[str, ...] = ()
    """Web sites whose scripts may read, and send events, such as https://shop.example.com. Tokens are still needed."""

    max_body_bytes: int = 1_048_576
    """The largest body of a request, in bytes. A larger one is refused."""

    max_events: int = 500
    """The most events of one request, and the most entries of one page of an answer."""

    max_requests: int = 100
    """The most requests that are answered at once. Further ones are refused and may be repeated later."""

    def __post_init__(self) -> None:
        check(self.bind != "", "bind", "an address")
        in_range(self, port=(1, 65535))
        for name in ("read_token", "write_token"):
            legal = re.fullmatch(r"[!-9;-~]{0,256}", getattr(self, name)) is not None
            check(legal, name, "at most 256 printable ASCII characters without a space or ':'")
        good = all(_ORIGIN.fullmatch(origin) for origin in self.allowed_origins)
        check(good, "allowed_origins", "origins like https://shop.example.com: in lower case, without a path or '*'")
        in_range(self, max_body_bytes=(1_024, 16_777_216), max_events=(1, 10_000), max_requests=(1, 10_000))

    def __repr__(self) -> str:
        """Leaves out the tokens: a configuration may be logged."""
        return f"Web(bind={self.bind!r}, port={self.port}, host={self.host!r})"


class Batching(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sizes of batches, and how long the worker waits."""

    max_records: int = 4000
    """The most records of one batch, which is one write to MongoDB."""

    max_event_bytes: int = 1_048_576
    """The largest event, in bytes. A larger one goes to the dead letters."""

    product_wait_seconds: float = 10.0
    """How long a purchase without a price waits for its product, before it goes to the dead letters."""

    commit_interval_seconds: float = 0.25
    """The time between two commits of finished batches. With a shorter time, less work is repeated after a crash."""

    session_timeout_seconds: float = 10.0
    """Kafka's session timeout: after it, Kafka assigns the partitions of a silent worker to others."""

    def __post_init__(self) -> None:
        in_range(self, max_records=(1, 100_000), max_event_bytes=(1_024, 8_388_608), product_wait_seconds=(0, 3_600))
        in_range(self, commit_interval_seconds=(0.05, 60), session_timeout_seconds=(1, 300))


class DeadLetters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The failure limit: above it a worker stops consuming a topic instead of moving it to the dead letters."""

    max_share: float = 0.5
    """The largest share of failures among the last `window` records of a topic. 1: no limit."""

    window: int = 1000
    """The number of a topic's last records, as seen by this worker, of which the share is taken."""

    def __post_init__(self) -> None:
        in_range(self, max_share=(0, 1), window=(1, 1_000_000))


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. Only `loading.load` reads the file and the environment."""

    app_id: str = "shopflow"
    """The application's name, also of the consumer group, and the prefix of the changelog topics' names."""

    instance_id: str = ""
    """The worker's name in the consumer group: under it, it keeps its partitions when it is started again at once. Each
    worker needs its own. Empty: made of the host's name and the folder of the worker's tables."""

    broker: str = EMBEDDED
    """`embedded`, or `kafka://host:port`, several separated by `;`. An IPv6 address is written `[::1]`."""

    kafka: Kafka = Kafka()
    mongodb: MongoDB = MongoDB()
    topics: Topics = Topics()

    data_dir: str = "./data"
    """The folder with the files of the tables and the embedded servers."""

    embedded: Embedded = Embedded()
    web: Web = Web()
    batching: Batching = Batching()
    dead_letters: DeadLetters = DeadLetters()

    promotions: tuple[Rule, ...] = ()
    """The rules by which vouchers are given. In the environment they are JSON."""

    def __post_init__(self) -> None:
        check(_NAME.fullmatch(self.app_id) is not None, "app_id", "1 to 180 letters, digits, '.', '_' or '-'")
        legal = self.instance_id == "" or _NAME.fullmatch(self.instance_id) is not None
        check(legal, "instance_id", "at most 180 letters, digits, '.', '_' or '-'")
        legal = self.broker == EMBEDDED or _is_broker(self.broker)
        check(legal, "broker", "'embedded' or kafka://host:port[;host:port]")
        check(self.data_dir != "" and "\0" not in self.data_dir, "data_dir", "a folder")
        try:
            Path(self.data_dir).expanduser()
        except RuntimeError:
            check(False, "data_dir", "a folder; there is no such user")
        names = [rule.name for rule in self.promotions]
        twice = [name for name in names if names.count(name) > 1]
        check(not twice, "promotions", f"rules with different names; several have the name {twice[:1]}")

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser().absolute()

    @property
    def embeds_kafka(self) -> bool:
        """True if shopflow starts Kafka itself."""
        return self.broker == EMBEDDED

    @property
    def embeds_mongodb(self) -> bool:
        """True if shopflow starts MongoDB itself."""
        return self.mongodb.uri == EMBEDDED
