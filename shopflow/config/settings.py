"""Every setting of shopflow: typed, explained, read from `config.yaml` and overridden by the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import yaml

from shopflow.errors import Refused

from .promotions import Rule

__all__ = ["Batching", "Config", "DeadLetters", "Embedded", "Kafka", "MongoDB", "Topics", "Web", "load", "variables"]

EMBEDDED = "embedded"
PREFIX = "SHOPFLOW_"

_NAME = re.compile(r"[A-Za-z0-9._-]{1,180}")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `(\$(?:\.\w+|\[\d+\])*)`)?", re.DOTALL)
_BROKER = re.compile(r"(?:kafka://)?[^\s/;:@]+:(\d{1,5})")
_MONGODB = re.compile(r"mongodb(\+srv)?://[^\s/?]\S*")
#: What Kubernetes puts into every container for services that happen to be called "shopflow" or "shopflow-mongodb".
_KUBERNETES = re.compile(r"SHOPFLOW_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")


def _check(good: bool, field: str, must: str) -> None:
    if not good:
        raise ValueError(f"{field}: must be {must}")


class Kafka(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to get into Kafka, when it is not the embedded one. What goes together is checked in `credentials`."""

    security_protocol: str = "plaintext"
    """`plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`: with TLS, with a login, with both."""

    sasl_mechanism: str = "PLAIN"
    """How the login goes: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`."""

    username: str = ""
    """The user of the login."""

    password: str = ""
    """Their password. Take it from the environment."""

    ca_file: str = ""
    """The certificates (PEM) that sign the brokers'. Empty: those that the system trusts."""

    certificate_file: str = ""
    """Our certificate (PEM), for brokers that demand one."""

    key_file: str = ""
    """Its key (PEM). Empty: in the same file."""

    key_password: str = ""
    """What opens the key, if it is locked. Take it from the environment."""

    check_hostname: bool = True
    """Must a broker's certificate be made for its name? Only false with a CA that signs nobody else's."""

    def __post_init__(self) -> None:
        protocols = {"plaintext", "ssl", "sasl_plaintext", "sasl_ssl"}
        known = self.security_protocol.lower() in protocols
        _check(known, "security_protocol", "plaintext, ssl, sasl_plaintext or sasl_ssl")
        mechanisms = {"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}
        _check(self.sasl_mechanism.upper() in mechanisms, "sasl_mechanism", "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
        for name in ("username", "password", "ca_file", "certificate_file", "key_file", "key_password"):
            _check("\0" not in getattr(self, name), name, "without a NUL character")

    def __repr__(self) -> str:
        """Without the passwords: a configuration may end up in a log."""
        return f"Kafka(security_protocol={self.security_protocol!r}, username={self.username!r})"

    @property
    def logs_in(self) -> bool:
        """With a user and a password?"""
        return self.security_protocol.lower().startswith("sasl_")

    @property
    def encrypts(self) -> bool:
        """With TLS?"""
        return self.security_protocol.lower().endswith("ssl")


class MongoDB(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The database that the events are written to."""

    uri: str = EMBEDDED
    """`embedded`, or a MongoDB URI with everything in it: hosts, user, password, TLS. Take it from the environment."""

    database: str = "shopflow"
    """The database's name."""

    def __post_init__(self) -> None:
        known = self.uri == EMBEDDED or _MONGODB.fullmatch(self.uri) is not None
        _check(known, "uri", "'embedded', mongodb://host... or mongodb+srv://host...")
        legal = 0 < len(self.database) < 64 and not set(self.database) & set('/\\. "$*<>:|?\0')
        _check(legal, "database", '1 to 63 characters without / \\ . " $ * < > : | ? or a space')

    def __repr__(self) -> str:
        """Without the password that may be in the URI: a configuration may end up in a log."""
        return f"MongoDB(uri={EMBEDDED if self.uri == EMBEDDED else '***'!r}, database={self.database!r})"


class Topics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The topics, when shopflow creates them."""

    prefix: str = "shop."
    """Put before every topic's name: `shop.` gives `shop.purchases`."""

    partitions: int = 4
    """Partitions of each topic: the most workers that can share the work. Can't be changed once the topics exist."""

    replication: int = 1
    """Copies of each partition in the Kafka cluster: 3 in production."""

    retention_hours: int = -1
    """Hours that purchases and dead letters stay in Kafka; -1: for ever, so that everything can be rebuilt."""

    def __post_init__(self) -> None:
        legal = self.prefix == "" or _NAME.fullmatch(self.prefix) is not None
        _check(legal, "prefix", "at most 180 letters, digits, '.', '_' or '-'")
        _check(1 <= self.partitions <= 10_000, "partitions", "1 to 10000")
        _check(1 <= self.replication <= 100, "replication", "1 to 100")
        forever = self.retention_hours == -1
        _check(forever or 1 <= self.retention_hours <= 876_000, "retention_hours", "-1 (for ever) or 1 to 876000")


class Embedded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The Kafka and the MongoDB that shopflow starts itself. Both listen on 127.0.0.1 only."""

    kafka_port: int = 0
    """Kafka's port. 0: 19092 if it is free, else any free port."""

    mongodb_port: int = 0
    """MongoDB's port. 0: 27117 if it is free, else any free port."""

    kafka_version: str = "4.1.1"
    """The version of Apache Kafka, fetched once from Maven Central."""

    kafka_heap_mb: int = 512
    """Most memory of Kafka's Java heap, in MiB."""

    start_seconds: float = 60.0
    """How long a server may take from its start to its first answer (the one-time fetch not counted)."""

    def __post_init__(self) -> None:
        _check(0 <= self.kafka_port <= 65535, "kafka_port", "0 to 65535")
        _check(0 <= self.mongodb_port <= 65535, "mongodb_port", "0 to 65535")
        _check(re.fullmatch(r"\d+\.\d+\.\d+", self.kafka_version) is not None, "kafka_version", "like 4.1.1")
        _check(self.kafka_heap_mb >= 128, "kafka_heap_mb", "at least 128")
        _check(0 < self.start_seconds <= 3_600, "start_seconds", "more than 0, at most 3600")


class Web(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The worker's web server. Faust's `--web-bind`, `--web-port` and `--web-host` win over these."""

    bind: str = "127.0.0.1"
    """The address it listens on. 0.0.0.0: every network; then set the tokens, and put TLS before it."""

    port: int = 6066
    """The port it listens on. Two workers on one machine need two."""

    host: str = ""
    """The name under which other workers reach this one. Empty: 127.0.0.1 when bound to it, else the host's name."""

    read_token: str = ""
    """Who reads must show it. Empty: anybody who reaches the port may read. Take it from the environment."""

    write_token: str = ""
    """Who sends events must show it; it also reads. Empty: anybody may send. Take it from the environment."""

    max_body_bytes: int = 1_048_576
    """A longer request is refused."""

    max_events: int = 500
    """Most events of one request, and most entries of one page of an answer."""

    max_requests: int = 100
    """Most requests that are answered at once; more are asked to come again."""

    def __post_init__(self) -> None:
        _check(self.bind != "", "bind", "an address")
        _check(1 <= self.port <= 65535, "port", "1 to 65535")
        for name in ("read_token", "write_token"):
            legal = re.fullmatch(r"[!-9;-~]{0,256}", getattr(self, name)) is not None
            _check(legal, name, "at most 256 printable ASCII characters without a space or ':'")
        _check(1_024 <= self.max_body_bytes <= 16_777_216, "max_body_bytes", "1024 to 16777216")
        _check(1 <= self.max_events <= 10_000, "max_events", "1 to 10000")
        _check(1 <= self.max_requests <= 10_000, "max_requests", "1 to 10000")

    def __repr__(self) -> str:
        """Without the tokens: a configuration may end up in a log."""
        return f"Web(bind={self.bind!r}, port={self.port}, host={self.host!r})"


class Batching(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much is taken at once, and how long things are waited for."""

    max_records: int = 4000
    """Most records of one batch, which is one write to MongoDB."""

    max_event_bytes: int = 1_048_576
    """A larger event goes to the dead letters."""

    product_wait_seconds: float = 10.0
    """How long a purchase without a price waits for a product that nobody offered yet, before it is a dead letter."""

    commit_interval_seconds: float = 0.25
    """How often finished batches are committed to Kafka. More often: less is done again after a crash."""

    session_timeout_seconds: float = 30.0
    """Kafka gives a worker's partitions to others when it is silent for this long."""

    def __post_init__(self) -> None:
        _check(1 <= self.max_records <= 100_000, "max_records", "1 to 100000")
        _check(1_024 <= self.max_event_bytes <= 8_388_608, "max_event_bytes", "1024 to 8388608")
        _check(0 <= self.product_wait_seconds <= 3_600, "product_wait_seconds", "0 to 3600")
        _check(0.05 <= self.commit_interval_seconds <= 60, "commit_interval_seconds", "0.05 to 60")
        _check(1 <= self.session_timeout_seconds <= 300, "session_timeout_seconds", "1 to 300")


class DeadLetters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a worker stops taking a topic, instead of moving it to the dead letters."""

    max_share: float = 0.5
    """More failures than this share of the last `window` records of a topic are too many. 1: never too many."""

    window: int = 1000
    """Of so many records of a topic, the last that this worker saw, the share is taken."""

    def __post_init__(self) -> None:
        _check(0 <= self.max_share <= 1, "max_share", "0 to 1")
        _check(1 <= self.window <= 1_000_000, "window", "1 to 1000000")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it. `load` reads it; nothing else in shopflow looks at the file or the environment."""

    app_id: str = "shopflow"
    """The application's name: also the consumer group, and the beginning of the changelog topics' names."""

    broker: str = EMBEDDED
    """`embedded`, or `kafka://host:port`, several separated by `;`."""

    kafka: Kafka = Kafka()
    mongodb: MongoDB = MongoDB()
    topics: Topics = Topics()

    data_dir: str = "./data"
    """Where the tables and the embedded servers keep their files."""

    embedded: Embedded = Embedded()
    web: Web = Web()
    batching: Batching = Batching()
    dead_letters: DeadLetters = DeadLetters()

    promotions: tuple[Rule, ...] = ()
    """What vouchers are given for. In the environment as JSON."""

    def __post_init__(self) -> None:
        _check(_NAME.fullmatch(self.app_id) is not None, "app_id", "1 to 180 letters, digits, '.', '_' or '-'")
        known = self.broker == EMBEDDED or _is_broker(self.broker)
        _check(known, "broker", "'embedded' or kafka://host:port[;host:port]")
        _check(self.data_dir != "" and "\0" not in self.data_dir, "data_dir", "a folder")
        try:
            Path(self.data_dir).expanduser()
        except RuntimeError:
            _check(False, "data_dir", "a folder; there is no such user")
        names = [rule.name for rule in self.promotions]
        twice = [name for name in names if names.count(name) > 1]
        _check(not twice, "promotions", f"rules with names of their own; there are several called {twice[:1]}")

    @property
    def data_path(self) -> Path:
        """`data_dir`, absolute."""
        return Path(self.data_dir).expanduser().absolute()

    @property
    def embeds_kafka(self) -> bool:
        """Is Kafka ours to start?"""
        return self.broker == EMBEDDED

    @property
    def embeds_mongodb(self) -> bool:
        """Is MongoDB ours to start?"""
        return self.mongodb.uri == EMBEDDED


def load(environ: Mapping[str, str] | None = None) -> Config:
    """Read `config.yaml`, then the environment over it.

    The file is `SHOPFLOW_CONFIG`, else `./config.yaml`, else none: the defaults.

    Raises:
        Refused: An unknown field, a wrong type or a bad value, with the field's name and where it stands.
    """
    environ = os.environ if environ is None else environ
    named = environ.get("SHOPFLOW_CONFIG")
    path = Path(named or "config.yaml")
    values = _read(path) if named or path.exists() else {}
    _convert(values, str(path))  # so that a fault in the file is not blamed on the environment
    return _convert(_overridden(values, environ), None)


def variables() -> dict[str, tuple[str, ...]]:
    """Every variable of the environment that sets a field, with the field's path."""
    return {_variable(path): path for path, _ in _leaves(Config)}


def _variable(path: Sequence[str]) -> str:
    names = path[:1] if path and path[0].startswith("promotions") else path  # which has one for all its rules
    return PREFIX + "_".join(name.partition("[")[0] for name in names).upper()


def _is_broker(value: str) -> bool:
    addresses = [_BROKER.fullmatch(address) for address in value.split(";")]
    return value.startswith("kafka://") and all(found and 1 <= int(found[1]) <= 65535 for found in addresses)


class _Loader(yaml.SafeLoader):
    """Refuses a field that stands there twice; YAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} stands there twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise Refused(f"{path}: can't be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Refused(f"{path}: not YAML: {_reason(error)}") from None  # its text has lines of the file: passwords
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise Refused(f"{path}: must be fields and values, found {type(values).__name__}")
    return values


def _reason(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}{error.problem or error.context}"


def _leaves(kind: type[msgspec.Struct], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from _leaves(hint, (*at, name))
        else:
            yield (*at, name), hint


def _overridden(values: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    known, types = variables(), dict(_leaves(Config))
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX) or _is_foreign(variable, text):
            continue
        path = known.get(variable)
        if path is None:
            raise Refused(f"{variable}: no such setting; known are {', '.join(sorted(known))}")
        try:
            # What is more than one value is JSON; its parts are checked with the rest.
            scalar = isinstance(types[path], type)
            value = msgspec.convert(text, types[path], strict=False) if scalar else msgspec.json.decode(text)
        except msgspec.ValidationError as error:
            raise Refused(f"{variable} ({'.'.join(path)}): {_lower(str(error))}") from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise Refused(f"{variable} ({'.'.join(path)}): not JSON: {_lower(str(error))}") from error
        values = _with(values, path, value)
    return values


def _is_foreign(variable: str, text: str) -> bool:
    """Is it not meant as a setting: the path of the file, the test suite's own, Kubernetes' addresses of services?"""
    ours = variable == "SHOPFLOW_CONFIG" or variable.startswith("SHOPFLOW_TEST_")
    return ours or _KUBERNETES.fullmatch(variable) is not None or (variable.endswith("PORT") and "://" in text)


def _with(values: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    head, *rest = path
    inner = values.get(head)
    return {**values, head: _with(inner if isinstance(inner, dict) else {}, tuple(rest), value) if rest else value}


def _convert(values: dict[str, Any], file: str | None) -> Config:
    """The values as a `Config`; `file` is where a wrong one stands, None: in the environment."""
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        path, message = _fault(str(error))
        field = ".".join(path) + _rule_named(values, path)
        where = f"{file}: {field}" if file else f"{_variable(path)} ({field})"
        raise Refused(f"{where}: {_lower(message)}") from error


def _rule_named(values: dict[str, Any], path: list[str]) -> str:
    """The name of the promotion that the path leads into."""
    rules = values.get("promotions")
    for number, rule in enumerate(rules if isinstance(rules, list) else []):
        if path[:1] == [f"promotions[{number}]"] and isinstance(rule, dict) and isinstance(rule.get("name"), str):
            return f" (rule {_visible(rule['name'])})"
    return ""


def _fault(text: str) -> tuple[list[str], str]:
    """The field and what is wrong with it, out of msgspec's "message - at `$.field`"."""
    # The unknown field first: its name is the user's, with anything in it.
    if unknown := _UNKNOWN.fullmatch(text):
        return [*(unknown[2] or "$").split(".")[1:], _visible(unknown[1])], "no such field"
    message, _, place = text.partition(" - at `")
    of_name = place.startswith("key` in `")
    path = [part for part in place.removeprefix("key` in `").rstrip("`").split(".") if part not in {"", "$"}]
    if of_name:
        return [*path, "(a field's name)"], message
    if re.match(r"[a-z_]+: must be ", message):
        field, _, message = message.partition(": ")
        path.append(field)
    return path, message


def _visible(name: str) -> str:
    return name if name.strip() and name.isprintable() and ":" not in name else repr(name)


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
