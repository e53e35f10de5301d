"""Configuration: a good one is read as written, a bad one is refused with the field's name and without secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shopflow.config.loading import load, variables
from shopflow.config.promotions import EXAMPLES, Rule
from shopflow.config.settings import Batching, Config, MongoDB
from shopflow.errors import Refused

ROOT = Path(__file__).parents[2]
SECRET = "geheim-7f3a"  # noqa: S105 - looked for in messages

Read = Callable[..., Config]
Rules = tuple[Rule, ...]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Loads a file with this text, and an environment with these variables and nothing else."""
    monkeypatch.chdir(tmp_path)

    def read(text: str | bytes | None = None, **environ: str) -> Config:
        if text is not None:
            (tmp_path / "config.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return load(environ)

    return read


def refusal(read: Read, text: str | bytes | None = None, **environ: str) -> str:
    with pytest.raises(Refused) as caught:
        read(text, **environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def leaves(values: dict[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*at, name))
        else:
            yield (*at, name), value


def test_no_file_and_no_variable_gives_the_contracts_defaults(read: Read) -> None:
    config = read()
    assert config == Config()
    assert (config.app_id, config.broker, config.data_dir) == ("shopflow", "embedded", "./data")
    assert (config.mongodb.uri, config.mongodb.database) == ("embedded", "shopflow")
    assert (config.topics.prefix, config.topics.partitions, config.topics.replication) == ("shop.", 4, 1)
    assert config.embeds_kafka
    assert config.embeds_mongodb


def test_an_empty_file_is_the_defaults(read: Read) -> None:
    assert read("# nothing\n") == Config()


def test_the_example_file_has_every_field_with_its_default_and_its_variable() -> None:
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    assert dict(leaves(yaml.safe_load(text))) == dict(leaves(json.loads(msgspec.json.encode(Config()))))
    assert load({"SHOPFLOW_CONFIG": str(ROOT / "config.yaml")}) == Config()
    beside = {line.split("#")[1].strip() for line in text.splitlines() if "# SHOPFLOW_" in line and ":" in line}
    assert beside == set(variables())


def test_the_example_of_promotions_is_what_the_demo_uses() -> None:
    """The file and `EXAMPLES`, which the demo uses, are equal."""
    config = load({"SHOPFLOW_CONFIG": str(ROOT / "examples" / "promotions.yaml")})
    assert config == Config(promotions=msgspec.convert(EXAMPLES, Rules))


def test_each_variable_is_beside_its_own_field() -> None:
    """In config.yaml, a variable beside another field would mislead."""
    for line in (ROOT / "config.yaml").read_text(encoding="utf-8").splitlines():
        if "# SHOPFLOW_" in line and not line.lstrip().startswith("#"):
            field, variable = line.split(":")[0].strip(), line.rpartition("#")[2].strip()
            assert variables()[variable][-1] == field


def test_every_field_has_a_variable_of_its_own() -> None:
    assert sorted(variables().values()) == sorted(path for path, _ in leaves(msgspec.to_builtins(Config())))


@pytest.mark.parametrize("variable", sorted(variables()))
def test_every_variable_overrides_its_field_and_no_other(variable: str, read: Read) -> None:
    path = variables()[variable]
    defaults = dict(leaves(msgspec.to_builtins(Config())))
    others = {
        "SHOPFLOW_BROKER": "kafka://one:9092",
        "SHOPFLOW_MONGODB_URI": "mongodb://one:27017",
        "SHOPFLOW_KAFKA_SECURITY_PROTOCOL": "ssl",
        "SHOPFLOW_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
        "SHOPFLOW_KAFKA_CHECK_HOSTNAME": "false",
        "SHOPFLOW_EMBEDDED_KAFKA_VERSION": "4.0.0",
        "SHOPFLOW_TOPICS_RETENTION_HOURS": "24",
        "SHOPFLOW_EMBEDDED_KAFKA_PORT": "1024",
        "SHOPFLOW_EMBEDDED_MONGODB_PORT": "1024",
    }
    default = defaults[path]
    if path == ("promotions",):  # not one value, but rules: as JSON
        assert read(SHOPFLOW_PROMOTIONS=json.dumps(EXAMPLES)) == Config(promotions=msgspec.convert(EXAMPLES, Rules))
        return
    if path == ("web", "allowed_origins"):
        assert read(SHOPFLOW_WEB_ALLOWED_ORIGINS='["https://a.b"]').web.allowed_origins == ("https://a.b",)
        return
    text = others.get(variable, "other" if isinstance(default, str) else str(default * 2))
    found = dict(leaves(msgspec.to_builtins(read(**{variable: text}))))
    assert found.pop(path) == (yaml.safe_load(text) if isinstance(default, bool) else type(default)(text))
    del defaults[path]
    assert found == defaults


def test_the_environment_wins_over_the_file_field_by_field(read: Read) -> None:
    config = read("topics: {prefix: file., partitions: 7}\napp_id: file", SHOPFLOW_TOPICS_PARTITIONS="9")
    assert (config.topics.prefix, config.topics.partitions, config.app_id) == ("file.", 9, "file")


def test_a_whole_number_is_a_good_number_of_seconds(read: Read) -> None:
    assert read("batching: {product_wait_seconds: 3}").batching.product_wait_seconds == 3.0


def test_a_path_in_the_environment_is_read_instead_of_the_file_here(read: Read, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("app_id: other")
    assert read("app_id: here", SHOPFLOW_CONFIG=str(tmp_path / "other.yaml")).app_id == "other"


def test_a_variable_can_name_a_file_that_has_its_value(read: Read, tmp_path: Path) -> None:
    """Containers get their secrets as files. A setting whose own name ends in FILE stays a setting."""
    (tmp_path / "uri").write_text(f"mongodb://anna:{SECRET}@mongodb:27017/\n")
    config = read(SHOPFLOW_MONGODB_URI_FILE=str(tmp_path / "uri"), SHOPFLOW_KAFKA_CA_FILE="/ca.pem")
    assert config.mongodb.uri == f"mongodb://anna:{SECRET}@mongodb:27017/"
    assert config.kafka.ca_file == "/ca.pem"


def test_a_file_of_a_value_that_does_not_help_is_refused_with_its_variable(read: Read, tmp_path: Path) -> None:
    name, path = "SHOPFLOW_MONGODB_URI_FILE", tmp_path / "uri"
    assert refusal(read, **{name: str(path)}) == f"{name}: {path} can't be read: No such file or directory"
    path.write_bytes(b"\xff" + SECRET.encode())
    assert refusal(read, **{name: str(path)}) == f"{name}: {path} is not UTF-8"
    path.write_text(f"mysql://{SECRET}")
    assert SECRET not in refusal(read, **{name: str(path)})
    both = refusal(read, SHOPFLOW_MONGODB_URI="embedded", **{name: str(path)})
    assert both == f"{name}: SHOPFLOW_MONGODB_URI is set too; set one of them"


def test_a_missing_file_is_refused_when_it_was_asked_for(read: Read, tmp_path: Path) -> None:
    path = str(tmp_path / "missing.yaml")
    assert refusal(read, SHOPFLOW_CONFIG=path) == f"{path}: can't be read: No such file or directory"


def test_a_folder_instead_of_a_file_is_refused(read: Read, tmp_path: Path) -> None:
    assert "can't be read: Is a directory" in refusal(read, SHOPFLOW_CONFIG=str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("brokr: x", "config.yaml: brokr: no such field"),
        ("'a - at `b': x", "config.yaml: a - at `b: no such field"),
        ("':': x", "config.yaml: ':': no such field"),
        ("topics: {'a - at `b': x}", "config.yaml: topics.a - at `b: no such field"),
        ("topics: {retention: 1}", "config.yaml: topics.retention: no such field"),
        ("mongodb.uri: embedded", "config.yaml: mongodb.uri: no such field"),
        ("app_id: 3", "config.yaml: app_id: expected `str`, got `int`"),
        ("app_id: 2024-01-01", "config.yaml: app_id: expected `str`, got `date`"),
        ("data_dir: ~", "config.yaml: data_dir: expected `str`, got `null`"),
        ("mongodb:", "config.yaml: mongodb: expected `object`, got `null`"),
        ("mongodb: 3", "config.yaml: mongodb: expected `object`, got `int`"),
        ("topics: {partitions: true}", "config.yaml: topics.partitions: expected `int`, got `bool`"),
        ("topics: {partitions: 4.0}", "config.yaml: topics.partitions: expected `int`, got `float`"),
        ("topics: {partitions: '4'}", "config.yaml: topics.partitions: expected `int`, got `str`"),
        ("'': x", "config.yaml: '': no such field"),
        ("3: x", "config.yaml: (a field's name): expected `str`"),
        ("mongodb: {3: x}", "config.yaml: mongodb.(a field's name): expected `str`"),
        ("just text", "config.yaml: must be fields and values, found str"),
        ("[app_id]", "config.yaml: must be fields and values, found list"),
        ("app_id: a\napp_id: b", "config.yaml: not YAML: line 2, column 1: app_id is given twice"),
        ("topics: {partitions: 1, partitions: 2}", "not YAML: line 1, column 25: partitions is given twice"),
        ("app_id: 'open", "config.yaml: not YAML: line 1, column 14: found unexpected end of stream"),
        ("app_id: !!python/object/apply:os.getcwd []", "config.yaml: not YAML: line 1, column 9: could not determine"),
        ("app_id: 2024-99-99", "config.yaml: not YAML: month must be in 1..12"),
        ("app_id: " + "9" * 5000, "config.yaml: "),
        ("[" * 5000, "config.yaml: not YAML: maximum recursion depth exceeded"),
        ("? [1]\n: 2", "config.yaml: not YAML: line 1, column 3: found unhashable key"),
        (b"app_id: \xff", "config.yaml: not YAML: 'utf-8' codec can't decode"),
        ("\0", "config.yaml: not YAML: unacceptable character #x0000"),
    ],
)
def test_a_bad_file_is_refused_with_the_fields_name(text: str | bytes, message: str, read: Read) -> None:
    assert message in refusal(read, text)


class Quoted(list[str]):
    """A list whose text, as in a variable, is JSON."""

    def __str__(self) -> str:
        return json.dumps(list(self))


BAD_VALUES = [
    ("app_id", "", "must be 1 to 180 letters"),
    ("app_id", "a b", "must be 1 to 180 letters"),
    ("app_id", "a" * 181, "must be 1 to 180 letters"),
    ("broker", "", "must be 'embedded' or kafka://host:port"),
    ("broker", "localhost:9092", "must be 'embedded' or kafka://host:port"),
    ("broker", "kafka://localhost", "must be 'embedded' or kafka://host:port"),
    ("broker", "kafka://a:9092,b:9092", "must be 'embedded' or kafka://host:port"),
    ("broker", "kafka://a:9092;", "must be 'embedded' or kafka://host:port"),
    ("broker", "kafka://a:99999", "must be 'embedded' or kafka://host:port"),
    ("broker", "kafka://a:0", "must be 'embedded' or kafka://host:port"),
    ("broker", "kafka://::1:9092", "must be 'embedded' or kafka://host:port"),
    ("broker", "kafka://[::1]", "must be 'embedded' or kafka://host:port"),
    ("broker", "kafka://[::g]:9092", "must be 'embedded' or kafka://host:port"),
    ("broker", "kafka://[1:2]:9092", "must be 'embedded' or kafka://host:port"),
    ("broker", "kafka://[]:9092", "must be 'embedded' or kafka://host:port"),
    ("broker", "http://a:9092", "must be 'embedded' or kafka://host:port"),
    ("kafka.security_protocol", "tls", "must be plaintext, ssl, sasl_plaintext or sasl_ssl"),
    ("kafka.sasl_mechanism", "GSSAPI", "must be PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"),
    ("kafka.username", "a\0b", "must be without a NUL"),
    ("kafka.password", "a\0b", "must be without a NUL"),
    ("kafka.ca_file", "a\0b", "must be without a NUL"),
    ("kafka.certificate_file", "a\0b", "must be without a NUL"),
    ("kafka.key_file", "a\0b", "must be without a NUL"),
    ("kafka.key_password", "a\0b", "must be without a NUL"),
    ("kafka.check_hostname", "perhaps", "expected `bool`"),
    ("mongodb.uri", "", "must be 'embedded', mongodb://host"),
    ("mongodb.uri", "localhost:27017", "must be 'embedded', mongodb://host"),
    ("mongodb.uri", "mongodb://", "must be 'embedded', mongodb://host"),
    ("mongodb.uri", "mongodb://?x=y", "must be 'embedded', mongodb://host"),
    ("mongodb.database", "", "must be 1 to 63 characters"),
    ("mongodb.database", "a" * 64, "must be 1 to 63 characters"),
    ("mongodb.database", "a.b", "must be 1 to 63 characters"),
    ("topics.prefix", "a/", "must be at most 180"),
    ("topics.partitions", 0, "must be 1 to 10000"),
    ("topics.partitions", 10**30, "must be 1 to 10000"),
    ("topics.replication", 0, "must be 1 to 100"),
    ("topics.retention_hours", 0, "must be -1 (for ever) or 1 to"),
    ("topics.retention_hours", -2, "must be -1 (for ever) or 1 to"),
    ("data_dir", "", "must be a folder"),
    ("data_dir", "~nobody-is-called-so/shop", "must be a folder; there is no such user"),
    ("embedded.kafka_port", 65536, "must be 0 to 65535"),
    ("embedded.mongodb_port", -1, "must be 0 to 65535"),
    ("embedded.kafka_version", "latest", "must be like 4.1.1"),
    ("embedded.kafka_heap_mb", 1, "must be at least 128"),
    ("embedded.start_seconds", 0, "must be more than 0"),
    ("embedded.start_seconds", float("nan"), "must be more than 0"),
    ("embedded.start_seconds", float("inf"), "must be more than 0"),
    ("web.bind", "", "must be an address"),
    ("web.port", 0, "must be 1 to 65535"),
    ("web.read_token", "two words", "must be at most 256 printable ASCII characters"),
    ("web.write_token", "a:b", "must be at most 256 printable ASCII characters"),
    *(
        ("web.allowed_origins", Quoted([origin]), "must be origins like https://shop.example.com")
        for origin in (
            *(
                "*",
                "null",
                "",
                "shop.example.com",
                "https://shop.example.com/",
                "https://Shop.example.com",
                "ftp://a.b",
            ),
            *(
                "https://*.example.com",
                "https://a.b:443",
                "http://a.b:80",
                "https://u@a.b",
                "https://a.b c",
                "https://",
            ),
        )
    ),
    ("web.max_body_bytes", 1, "must be 1024 to 16777216"),
    ("instance_id", "ł", "must be at most 180 letters, digits, '.', '_' or '-'"),
    ("web.max_events", 0, "must be 1 to 10000"),
    ("web.max_requests", 0, "must be 1 to 10000"),
    ("batching.max_records", 0, "must be 1 to 100000"),
    ("batching.max_event_bytes", 1, "must be 1024 to 8388608"),
    ("batching.product_wait_seconds", -1, "must be 0 to 3600"),
    ("batching.commit_interval_seconds", 0, "must be 0.05 to 60"),
    ("batching.session_timeout_seconds", 0, "must be 1 to 300"),
    ("dead_letters.max_share", 1.01, "must be 0 to 1"),
    ("dead_letters.max_share", float("nan"), "must be 0 to 1"),
    ("dead_letters.window", 0, "must be 1 to 1000000"),
    ("promotions", 3, "expected `array`, got `int`"),
]


@pytest.mark.parametrize(("field", "value", "must"), BAD_VALUES)
def test_a_bad_value_is_refused_with_its_field_in_the_file(field: str, value: Any, must: str, read: Read) -> None:
    section, _, name = field.rpartition(".")
    plain = list(value) if isinstance(value, Quoted) else value
    text = yaml.safe_dump({section: {name: plain}} if section else {name: plain})
    assert refusal(read, text).startswith(f"config.yaml: {field}: {must}")


@pytest.mark.parametrize(("field", "value", "must"), BAD_VALUES)
def test_a_bad_value_is_refused_with_its_variable(field: str, value: Any, must: str, read: Read) -> None:
    """The variable at fault is named, whatever else is set."""
    variable = "SHOPFLOW_" + field.replace(".", "_").upper()
    text = {"nan": ".nan", "inf": ".inf"}.get(str(value), str(value))  # as YAML writes them
    environ = {"SHOPFLOW_APP_ID": "good", "SHOPFLOW_WEB_HOST": "good", variable: text}
    assert refusal(read, **environ).startswith(f"{variable} ({field}): {must}")


def test_every_field_but_the_free_ones_has_a_bad_value_here() -> None:
    """A new field must come with a value that it refuses."""
    free = {"web.host"}
    assert {field for field, _, _ in BAD_VALUES} == {".".join(path) for path in variables().values()} - free


@pytest.mark.parametrize(
    "text", ["06066", "0x10", "0o17", "017", "0b11", "1_000", "1:30", "1:30.5", "+8", "!!int 010", "!!float 1:30"]
)
@pytest.mark.parametrize("field", ["web.port", "batching.product_wait_seconds"])
def test_a_number_is_decimal_or_refused_with_its_field(field: str, text: str, read: Read) -> None:
    """YAML 1.1 reads `06066` as 3126 and `1:30` as 90, which nobody who wrote them meant."""
    section, name = field.split(".")
    number = "int" if name == "port" else "float"
    must = f"expected `{number}`, got `str`; a number is decimal, like 1500 or 2.5"
    assert refusal(read, f"{section}:\n  {name}: {text}") == f"config.yaml: {field}: {must}"


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("7", 7), ("2.5", 2.5), ("1e1", 10), ("1.5E+2", 150)])
def test_a_decimal_number_is_the_same_in_the_file_and_in_the_environment(text: str, number: float, read: Read) -> None:
    wanted = Config(batching=Batching(product_wait_seconds=number))
    assert read(f"batching: {{product_wait_seconds: {text}}}") == wanted
    assert read("", SHOPFLOW_BATCHING_PRODUCT_WAIT_SECONDS=text) == wanted


def either(read: Read, *given: Any, **variables: str) -> Config | None:
    """The configuration; None: it is refused."""
    try:
        return read(*given, **variables)
    except Refused:
        return None


_ODD = [
    "1_0",
    "010",
    "0x1",
    "0o1",
    "1:30",
    "1e1",
    "1.0",
    "1E400",
    ".inf",
    "yes",
    "Off",
    "on",
    "True",
    "1",
    "0",
    "~",
    "=",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    text=st.sampled_from(_ODD)
    | st.from_regex(r"[-+]?[0-9._]{1,5}([eE][-+]?[0-9]{1,2})?", fullmatch=True)
    | st.from_regex(r"[a-zA-Z~.]{1,6}", fullmatch=True),
    path=st.sampled_from([("topics", "partitions"), ("batching", "product_wait_seconds"), ("kafka", "check_hostname")]),
)
def test_a_value_is_the_same_in_the_file_and_in_the_environment(path: tuple[str, str], text: str, read: Read) -> None:
    """Or both refuse it. msgspec takes `1e1` for a whole number and `1` for true, YAML `yes` and `off` for booleans."""
    section, name = path
    in_file = either(read, f"{section}:\n  {name}: {text}\n")
    assert in_file == either(read, "", **{f"SHOPFLOW_{section}_{name}".upper(): text})


def test_a_text_of_digits_is_a_text_as_it_stands(read: Read) -> None:
    assert read("mongodb: {database: 0123}\napp_id: 0x10") == Config(mongodb=MongoDB(database="0123"), app_id="0x10")


@pytest.mark.parametrize("text", ["many", "1.5", " 8", "1_0", "010", "0x10", "1:30", "", "true", "null"])
def test_a_variable_that_is_not_a_number_is_refused(text: str, read: Read) -> None:
    message = refusal(read, SHOPFLOW_TOPICS_PARTITIONS=text)
    assert message.startswith("SHOPFLOW_TOPICS_PARTITIONS (topics.partitions): expected `int`")


def test_a_text_that_looks_like_something_else_stays_a_text(read: Read) -> None:
    assert read(SHOPFLOW_APP_ID="123").app_id == "123"
    assert read(SHOPFLOW_APP_ID="null").app_id == "null"


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("SHOPFLOW_BROKR", "did you mean SHOPFLOW_BROKER?"),
        ("SHOPFLOW_MONGODB", "did you mean SHOPFLOW_MONGODB_URI?"),
        ("SHOPFLOW_mongodb_uri", "did you mean SHOPFLOW_MONGODB_URI?"),
        ("SHOPFLOW_", "there are: SHOPFLOW_APP_ID, "),
        ("SHOPFLOW_QQQQQ", "there are: SHOPFLOW_APP_ID, "),
    ],
)
def test_an_unknown_variable_is_refused_with_the_one_that_was_meant(variable: str, meant: str, read: Read) -> None:
    """The error proposes the most similar variable, or lists all if none is similar."""
    assert refusal(read, **{variable: "x"}).startswith(f"{variable}: no such setting; {meant}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("web: {prot: 1}", "web.prot: no such field; did you mean port?"),
        ("mongdb: {}", "mongdb: no such field; did you mean mongodb?"),
        ("zzz: 1", "zzz: no such field; there are: app_id, "),
        ("promotions: [{kind: nth, n: 3, nmae: a}]", "promotions[0].nmae: no such field; did you mean name?"),
        (
            "promotions: [{kind: nth, n: 3, name: a, voucher: {text: b, percnt: 5}}]",
            "promotions[0].voucher.percnt (rule a): no such field; did you mean percent?",
        ),
    ],
)
def test_a_misspelt_field_is_refused_with_the_one_that_was_meant(text: str, message: str, read: Read) -> None:
    assert refusal(read, text).startswith(f"config.yaml: {message}")


def test_a_fault_of_the_file_is_not_blamed_on_the_environment(read: Read) -> None:
    assert refusal(read, "topics: {partitions: 0}", SHOPFLOW_APP_ID="x").startswith("config.yaml: topics.partitions: ")


def test_variables_of_others_are_left_alone(read: Read) -> None:
    others = {"PATH": "/bin", "SHOPFLOWER": "x", "shopflow_app_id": "x", "MY_SHOPFLOW_APP_ID": "x"}
    assert read(**others) == Config()


def test_the_test_suites_own_variables_are_left_alone(read: Read) -> None:
    """`SHOPFLOW_TEST_BROKER` names servers for the tests, and every worker of a test inherits it."""
    assert read(SHOPFLOW_TEST_BROKER="kafka://x:1", SHOPFLOW_TEST_MONGODB_URI="mongodb://x") == Config()


def test_kubernetes_variables_of_services_named_like_shopflow_are_left_alone(read: Read) -> None:
    """Kubernetes puts these into every container; `SHOPFLOW_WEB_PORT` even has the name of a setting."""
    environ = {}
    for service in ("SHOPFLOW", "SHOPFLOW_WEB", "SHOPFLOW_MONGODB", "SHOPFLOW_KAFKA_CONTROLLER"):
        environ |= {
            f"{service}_SERVICE_HOST": "10.0.0.7",
            f"{service}_SERVICE_PORT": "6066",
            f"{service}_SERVICE_PORT_HTTP": "6066",
            f"{service}_PORT": "tcp://10.0.0.7:6066",
            f"{service}_PORT_6066_TCP": "tcp://10.0.0.7:6066",
            f"{service}_PORT_6066_TCP_PROTO": "tcp",
            f"{service}_PORT_6066_TCP_PORT": "6066",
            f"{service}_PORT_6066_TCP_ADDR": "10.0.0.7",
        }
    assert read(**environ) == Config()


@pytest.mark.parametrize(
    "text",
    [
        f"mongodb: {{uri: 'http://user:{SECRET}@host'}}",
        f"mongodb: {{uri: 'mongodb://user:{SECRET}@host",
        f"mongodb:\n  uri: mongodb://user:{SECRET}@host: x",
        f"mongodb:\n  uri: mongodb://user:{SECRET}@host\n  uri: mongodb://host",
        f"mongodb:\n  uri: [mongodb://user:{SECRET}@host]",
        f"mongodb: mongodb://user:{SECRET}@host",
        f"mongodb://user:{SECRET}@host",
        f"broker: kafka://user:{SECRET}@host:9092",
        f"mongodb:\n\turi: mongodb://user:{SECRET}@host",
    ],
)
def test_no_refusal_shows_a_secret_of_the_file(text: str, read: Read) -> None:
    """A secret is neither in the message nor in the traceback, which may be logged."""
    with pytest.raises(Refused) as caught:
        read(text)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SHOPFLOW_MONGODB_URI", f"http://user:{SECRET}@host"),
        ("SHOPFLOW_MONGODB_URI", f"mongodb://user:{SECRET} @host"),
        ("SHOPFLOW_BROKER", f"kafka://user:{SECRET}@host:9092"),
        ("SHOPFLOW_TOPICS_PARTITIONS", SECRET),
        ("SHOPFLOW_MONGODB_PASSWORD", SECRET),
    ],
)
def test_no_refusal_shows_a_secret_of_the_environment(variable: str, text: str, read: Read) -> None:
    with pytest.raises(Refused) as caught:
        read(**{variable: text})
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_printed_configuration_shows_no_secret() -> None:
    config = Config(mongodb=MongoDB(uri=f"mongodb://user:{SECRET}@host"))
    assert SECRET not in repr(config)
    assert SECRET not in str(config)
    assert "embedded" in repr(Config().mongodb)


SHARE = {"name": "bread", "kind": "share", "percent": 25, "days": 30, "product_types": ["bread"]}
GIFT = {"text": "butter", "percent": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"days": 0}, "promotions[0].days (rule bread): must be 1 to 366"),
        ({"days": "x"}, "promotions[0].days (rule bread): expected `int`, got `str`"),
        ({"percent": 100}, "promotions[0].percent (rule bread): must be 0 to less than 100"),
        ({"product_ids": ["x"]}, "promotions[0].product_types (rule bread): must be given, or else `product_ids`"),
        ({"product_types": [3]}, "promotions[0].product_types[0] (rule bread): expected `str`, got `int`"),
        ({"min_spent": -1}, "promotions[0].min_spent (rule bread): must be 0 to"),
        ({"colour": "red"}, "promotions[0].colour (rule bread): no such field"),
        ({"kind": "party"}, "promotions[0].kind (rule bread): invalid value 'party'"),
        ({"name": "Br:ead"}, "promotions[0].name (rule 'Br:ead'): must be 1 to 60 of a-z"),
        ({"voucher": {"text": "x"}}, "promotions[0].voucher.percent (rule bread): must be given, or else `amount`"),
        ({"voucher": {**GIFT, "valid_days": 0}}, "promotions[0].voucher.valid_days (rule bread): must be 1 to 3660"),
        ({"voucher": {"percent": 5}}, "promotions[0].voucher.product_type (rule bread): must be given, or `text`"),
        ({"voucher": 3}, "promotions[0].voucher (rule bread): expected `object`, got `int`"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_name_and_field(change: dict[str, Any], message: str, read: Read) -> None:
    """A rule in the file or the environment is checked at the start, not at the first purchase."""
    rules = [{**SHARE, "voucher": GIFT, **change}]
    field, _, must = message.partition(": ")
    assert refusal(read, SHOPFLOW_PROMOTIONS=json.dumps(rules)).startswith(f"SHOPFLOW_PROMOTIONS ({field}): {must}")
    assert refusal(read, yaml.safe_dump({"promotions": rules})).startswith(f"config.yaml: {message}")


def test_two_rules_of_one_name_are_refused(read: Read) -> None:
    """The vouchers of two rules with the same name would have the same ids."""
    rule = {**SHARE, "voucher": GIFT}
    assert "promotions: must be rules with different names" in refusal(read, yaml.safe_dump({"promotions": [rule] * 2}))


def test_rules_in_the_environment_that_are_no_json_are_refused(read: Read) -> None:
    assert refusal(read, SHOPFLOW_PROMOTIONS="[{").startswith("SHOPFLOW_PROMOTIONS (promotions): not JSON: ")
    assert "promotions[0]: no such field" in refusal(read, "'promotions[0]': {}\npromotions: 3")


def test_servers_elsewhere_are_accepted(read: Read) -> None:
    uri = "mongodb+srv://user:p%40ss@cluster.example.net/?retryWrites=true&tls=true"
    config = read(SHOPFLOW_BROKER="kafka://one:9092;kafka://two:9092;three:9093", SHOPFLOW_MONGODB_URI=uri)
    assert (config.broker, config.mongodb.uri) == ("kafka://one:9092;kafka://two:9092;three:9093", uri)
    assert not config.embeds_kafka
    assert not config.embeds_mongodb


@pytest.mark.parametrize("broker", ["kafka://[::1]:9092", "kafka://[2001:db8::7]:9092;[fd00::7]:9093;kafka://b:1"])
def test_a_broker_may_have_an_ipv6_address(broker: str, read: Read) -> None:
    """In every place that reads it: the setting, the clients of commands, Faust's consumer and producer."""
    config = read(SHOPFLOW_BROKER=broker)
    environ = {**os.environ, "SHOPFLOW_BROKER": config.broker}
    code = """
from faust.transport.drivers.aiokafka import server_list
from aiokafka.conn import collect_hosts
from shopflow.app import app, config, connect_kafka, connected_kafka, kafka_at
from shopflow.servers.servers import locate
connect_kafka(locate(config, mongodb=False))
found = kafka_at(locate(config, mongodb=False)).hosts, connected_kafka().hosts, server_list(app.conf.broker_consumer, 0)
for hosts in found:
    print(*(f"{host} {port}" for host, port, _ in collect_hosts(hosts, randomize=False)), sep=";")
"""
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    addresses = [part.removeprefix("kafka://").rpartition(":") for part in broker.split(";")]
    assert set(done.stdout.splitlines()) == {";".join(f"{host.strip('[]')} {port}" for host, _, port in addresses)}


def test_the_data_folder_is_absolute(read: Read, tmp_path: Path) -> None:
    """The tables must not move when something changes the working directory."""
    assert read().data_path == tmp_path / "data"
    assert read(SHOPFLOW_DATA_DIR="~/shop").data_path == Path.home() / "shop"
    assert read(SHOPFLOW_DATA_DIR="/shop").data_path == Path("/shop")


def test_a_configuration_cant_be_changed() -> None:
    with pytest.raises(AttributeError):
        Config().app_id = "other"  # type: ignore[misc]


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(sorted({name for path in variables().values() for name in path})) | st.text()


@given(values=st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, VALUES, max_size=3), max_size=3))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    message = ""
    try:
        load({"SHOPFLOW_CONFIG": str(path)})
    except Refused as refused:
        message = str(refused)
    assert not message or message.startswith(f"{path}: ")
    assert ": : " not in message
    assert "\n" not in message


def test_the_longest_session_timeout_is_accepted_by_faust() -> None:
    """Faust refuses a longer one with a traceback after the worker's start."""
    environ = {**os.environ, "SHOPFLOW_BATCHING_SESSION_TIMEOUT_SECONDS": "300"}
    code = "from shopflow.app import app; print(app.conf.broker_session_timeout <= app.conf.broker_request_timeout)"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_published_announcements_are_kept_with_any_retention_of_purchases() -> None:
    """Vouchers and alerts that their topics no longer have would be published again."""
    environ = {**os.environ, "SHOPFLOW_TOPICS_RETENTION_HOURS": "1"}
    code = "from shopflow.topics import SPECS; print(*sorted(s.name for s in SPECS if s.retention_ms == 3600000))"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    named = {name.removeprefix("shop.") for name in done.stdout.split()}
    assert {"purchases", "dead-letters"} <= named
    assert not named & {"vouchers", "alerts"}
