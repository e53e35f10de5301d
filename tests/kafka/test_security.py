"""Security settings of Kafka's clients: their combinations, the files, and no secret in any text."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import faust
import pytest
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from shopflow.app import app
from shopflow.app import config as config_of_app
from shopflow.config.settings import Config, Kafka, MongoDB, Web
from shopflow.errors import Refused, Unavailable
from shopflow.kafka import connection
from shopflow.kafka import security as credentials
from shopflow.kafka.security import Bootstrap, Security
from shopflow.servers.servers import Addresses
from shopflow.web.access import Guard
from tests.support.certificates import Authority

ROOT = Path(__file__).parents[2]
SECRET = "geheim-7f3a"  # noqa: S105 - looked for in messages


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"), "ours")


def config(**settings: Any) -> Config:
    return Config(
        broker="kafka://kafka.example:9093",
        kafka=Kafka(**{key: value if isinstance(value, bool) else str(value) for key, value in settings.items()}),
    )


LOGIN = {"security_protocol": "sasl_plaintext", "username": "shop", "password": SECRET}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"username": "shop"}, "kafka.username: has no use with security_protocol plaintext"),
        ({"password": SECRET}, "kafka.password: has no use with security_protocol plaintext"),
        ({"security_protocol": "ssl", "username": "shop"}, "kafka.username: has no use with security_protocol ssl"),
        ({"security_protocol": "sasl_ssl"}, "kafka.username: must be set with security_protocol sasl_ssl"),
        ({"security_protocol": "SASL_SSL", "username": "shop"}, "kafka.password: must be set with security_protocol"),
        ({**LOGIN, "ca_file": "ca.pem"}, "kafka.ca_file: has no use with security_protocol sasl_plaintext"),
        ({"certificate_file": "c.pem"}, "kafka.certificate_file: has no use with security_protocol plaintext"),
        ({"key_file": "c.pem"}, "kafka.key_file: has no use with security_protocol plaintext"),
        ({"key_password": SECRET}, "kafka.key_password: has no use with security_protocol plaintext"),
        ({"check_hostname": False}, "kafka.check_hostname: has no use with security_protocol plaintext"),
        ({"security_protocol": "ssl", "key_file": "k.pem"}, "kafka.key_file: has no use without certificate_file"),
        ({"security_protocol": "ssl", "key_password": SECRET}, "kafka.key_password: has no use without certificate_"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_the_fields_name(
    settings: dict[str, Any], message: str
) -> None:
    """An unused password, or a login that seemed to use TLS and does not, must not go unnoticed."""
    with pytest.raises(Refused) as caught:
        credentials.check(config(**settings))
    assert str(caught.value).startswith(message)
    assert SECRET not in str(caught.value)


def test_the_embedded_kafka_has_no_login() -> None:
    with pytest.raises(Refused, match=r"kafka\.security_protocol: the embedded Kafka has no sasl_ssl"):
        credentials.check(Config(kafka=Kafka(security_protocol="sasl_ssl", username="shop", password=SECRET)))


def test_the_defaults_are_aiokafkas_own() -> None:
    security = credentials.load(Config())
    assert (security.options, security.faust) == ({}, None)
    assert Bootstrap("one:9092;two:9092").options == {"bootstrap_servers": ["one:9092", "two:9092"]}


def test_a_login_without_tls() -> None:
    security = credentials.load(config(**LOGIN, sasl_mechanism="scram-sha-512"))
    assert security.options == {
        "security_protocol": "SASL_PLAINTEXT",
        "ssl_context": None,
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "shop",
        "sasl_plain_password": SECRET,
    }


@pytest.mark.parametrize("protocol", ["ssl", "sasl_ssl", "sasl_plaintext"])
def test_faust_shows_the_same_as_our_own_clients(protocol: str, authority: Authority) -> None:
    """Faust's consumer and producer log in as shopflow's own clients do, and use TLS where these do."""
    tls = {"ca_file": authority.file} if protocol.endswith("ssl") else {}
    login = {"username": "shop", "password": SECRET} if protocol.startswith("sasl") else {}
    security = credentials.load(config(security_protocol=protocol, **tls, **login))
    assert credentials_to_aiokafka_auth(security.faust) == security.options
    assert (security.context is not None) == protocol.endswith("ssl")


def test_a_certificate_is_demanded_and_its_name_is_checked(authority: Authority) -> None:
    security = credentials.load(config(security_protocol="ssl", ca_file=authority.file))
    assert security.context
    assert (security.context.verify_mode, security.context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_without_the_check_of_the_name_the_certificate_is_still_demanded(authority: Authority) -> None:
    security = credentials.load(config(security_protocol="ssl", ca_file=authority.file, check_hostname=False))
    assert security.context
    assert (security.context.verify_mode, security.context.check_hostname) == (ssl.CERT_REQUIRED, False)


@pytest.mark.parametrize("password", [None, SECRET])
def test_a_certificate_of_ours_with_an_open_and_a_locked_key(password: str | None, authority: Authority) -> None:
    certificate, key = authority.issue("shop.example", password=password)
    credentials.load(
        config(security_protocol="ssl", certificate_file=certificate, key_file=key, key_password=password or "")
    )


def test_the_key_may_be_in_the_certificates_file(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("one.example")
    (tmp_path / "both.pem").write_bytes(certificate.read_bytes() + key.read_bytes())
    credentials.load(config(security_protocol="ssl", certificate_file=tmp_path / "both.pem"))


def test_a_bad_file_is_refused_with_the_fields_name(authority: Authority, tmp_path: Path) -> None:
    """The error is one line, and OpenSSL never asks for a password at the terminal."""
    certificate, key = authority.issue("two.example")
    _, other = authority.issue("three.example")
    _, locked = authority.issue("four.example", password=SECRET)
    nothing, junk = tmp_path / "nothing.pem", tmp_path / "junk.pem"
    junk.write_text("no certificate")
    for settings, message in (
        ({"ca_file": nothing}, f"kafka.ca_file: {nothing}: can't be read: No such file"),
        ({"ca_file": tmp_path}, f"kafka.ca_file: {tmp_path}: can't be read: Is a directory"),
        ({"ca_file": junk}, f"kafka.ca_file: {junk}: has no certificate in PEM"),
        ({"certificate_file": nothing}, f"kafka.certificate_file: {nothing}: can't be read"),
        ({"certificate_file": certificate, "key_file": nothing}, f"kafka.key_file: {nothing}: can't be read"),
        ({"certificate_file": junk, "key_file": key}, "kafka.certificate_file, kafka.key_file: no certificate"),
        ({"certificate_file": certificate}, "kafka.certificate_file, kafka.key_file: no certificate"),
        ({"certificate_file": certificate, "key_file": junk}, "kafka.certificate_file, kafka.key_file: no cert"),
        ({"certificate_file": certificate, "key_file": other}, f"kafka.key_file: {other}: is not the key of"),
        (
            {"certificate_file": certificate, "key_file": locked},
            f"kafka.key_password: does not open the key in {locked}",
        ),
        (
            {"certificate_file": certificate, "key_file": locked, "key_password": "wr0ng-one"},
            f"kafka.key_password: does not open the key in {locked}",
        ),
    ):
        with pytest.raises(Refused) as caught:
            credentials.load(config(security_protocol="ssl", **settings))
        assert str(caught.value).startswith(message)
        assert not {"\n", "wr0ng-one"} & set(str(caught.value).split(" "))


def test_no_repr_has_a_secret() -> None:
    """A configuration may get into a log, a traceback or a failed assertion."""
    held = Config(
        broker="kafka://kafka.example:9093",
        kafka=Kafka(**LOGIN, key_password=SECRET),
        mongodb=MongoDB(uri=f"mongodb://shop:{SECRET}@localhost"),
        web=Web(read_token=SECRET, write_token=SECRET),
    )
    security = Security("SASL_PLAINTEXT", "PLAIN", "shop", SECRET)
    for thing in (
        held,
        held.kafka,
        security,
        Bootstrap("k:1", security),
        Addresses("k:1", held.mongodb.uri),
        security.faust,
    ):
        assert SECRET not in f"{thing} {thing!r}"
        assert SECRET.encode() in pickle.dumps(thing) or thing is security.faust  # the object does hold the secret


# -- the errors of a broker that refuses a client


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SaslAuthenticationFailed("x"), "kafka.username, kafka.password: Kafka at k:1 refuses the login of 'shop'"),
        (AuthenticationFailedError("x"), "kafka.username, kafka.password: Kafka at k:1 refuses the login of 'shop'"),
        (UnsupportedSaslMechanismError("x"), "kafka.sasl_mechanism: Kafka at k:1 takes no login by PLAIN"),
        (IllegalSaslStateError("x"), "kafka.security_protocol: Kafka at k:1 takes no login at this port"),
    ],
)  # fmt: skip
def test_a_broker_that_refuses_clients_is_distinguished_from_one_that_is_away(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal is an error of use: waiting would not help. tests/system/test_security.py has a real broker."""

    async def refuse(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(connection, "create_conn", refuse)
    bootstrap = Bootstrap("k:1", Security("SASL_PLAINTEXT", "PLAIN", "shop", SECRET))
    found = asyncio.run(connection.explained(bootstrap))
    assert isinstance(found, Refused)
    assert str(found) == message


def test_a_broker_that_is_away_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut connection is no refused login, so the command may be tried again."""

    async def away(*args: Any, **options: Any) -> None:
        raise KafkaConnectionError

    monkeypatch.setattr(connection, "create_conn", away)
    found = asyncio.run(
        connection.explained(Bootstrap("127.0.0.1:1", Security("SASL_PLAINTEXT", "PLAIN", "shop", SECRET)))
    )
    assert isinstance(found, Unavailable)
    assert str(found) == "Kafka: 127.0.0.1:1 does not answer"


def test_a_broker_that_accepts_connections_and_does_not_answer_may_want_another_protocol() -> None:
    """A broker that demands TLS closes a plaintext connection without a reason."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        found = asyncio.run(connection.explained(Bootstrap(f"127.0.0.1:{listening.getsockname()[1]}")))
    assert isinstance(found, Unavailable)
    assert "though it accepts connections: is plaintext the right kafka.security_protocol?" in str(found)


def test_the_log_of_requests_has_no_logins(caplog: pytest.LogCaptureFixture) -> None:
    """aiokafka logs every request at level debug, and a login request has the password."""

    class SaslAuthenticateRequest_v0:  # noqa: N801 - aiokafka's
        def __repr__(self) -> str:
            return SECRET

    log = logging.getLogger("aiokafka.conn")
    caplog.set_level(logging.DEBUG, "aiokafka")
    log.setLevel(logging.DEBUG)
    log.debug("Request %d: %s", 1, SaslAuthenticateRequest_v0())
    log.debug("Request %d: %s", 2, "Metadata")
    assert "Metadata" in caplog.text
    assert SECRET not in caplog.text


def test_the_application_gets_the_credentials() -> None:
    """Faust makes its consumer and producer with `broker_credentials`."""
    assert isinstance(Security("SASL_PLAINTEXT", "PLAIN", "shop", SECRET).faust, faust.SASLCredentials)


@pytest.mark.parametrize("program", ["faust", "shopflow"])
def test_settings_that_do_not_go_together_end_every_command_with_one_line(program: str, tmp_path: Path) -> None:
    """The settings are checked at the start, also by a command that does not need Kafka."""
    names = ["faust", "-A", "shopflow"] if program == "faust" else ["shopflow"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SHOPFLOW_")}
    environment |= {"PYTHONPATH": str(ROOT), "SHOPFLOW_KAFKA_PASSWORD": SECRET}
    done = subprocess.run(
        [sys.executable, "-m", *names, "list-products"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: kafka.password: has no use with security_protocol plaintext; take sasl_ssl\n"


def test_the_web_server_of_the_application_is_guarded() -> None:
    """Tokens and limits hold only if the guard is among the application's middlewares."""
    server = app.web.web_app  # type: ignore[attr-defined]
    assert any(getattr(each, "__func__", None) is Guard.middleware for each in server.middlewares)
    assert server._client_max_size == config_of_app.web.max_body_bytes
