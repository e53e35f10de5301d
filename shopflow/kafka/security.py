"""The security settings of Kafka clients: protocol, login and certificates. `Bootstrap` adds the brokers' addresses."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faust

from shopflow.config.settings import Config, Kafka
from shopflow.errors import Refused

#: The settings that need a login, and those that need TLS.
_OF_LOGIN = ("username", "password")
_OF_TLS = ("ca_file", "certificate_file", "key_file", "key_password")


@dataclass(frozen=True)
class Security:
    """A client's login and TLS context. The `repr` has neither the password nor a key."""

    protocol: str = "PLAINTEXT"
    mechanism: str = "PLAIN"
    username: str = ""
    password: str = field(default="", repr=False)
    context: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def logs_in(self) -> bool:
        return self.protocol.startswith("SASL_")

    @property
    def options(self) -> Mapping[str, Any]:
        """Arguments for aiokafka's clients."""
        if self.protocol == "PLAINTEXT":
            return {}
        options: dict[str, Any] = {"security_protocol": self.protocol, "ssl_context": self.context}
        if self.logs_in:
            options["sasl_mechanism"] = self.mechanism
            options["sasl_plain_username"] = self.username
            options["sasl_plain_password"] = self.password
        return options

    @property
    def faust(self) -> Any:
        """Faust's `broker_credentials`."""
        if self.logs_in:
            return faust.SASLCredentials(
                username=self.username, password=self.password, ssl_context=self.context, mechanism=self.mechanism
            )
        return faust.SSLCredentials(self.context) if self.context else None


@dataclass(frozen=True)
class Bootstrap:
    """Kafka's addresses and security settings: everything that a client needs."""

    servers: str
    """`host:port`, several separated by `;`. An IPv6 address is in brackets, as in a URL."""

    security: Security = field(default_factory=Security)

    def __str__(self) -> str:
        return self.servers

    @property
    def hosts(self) -> list[str]:
        return [server for server in self.servers.split(";") if server]

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for aiokafka's clients."""
        return {"bootstrap_servers": self.hosts, **self.security.options}


def check(config: Config) -> None:
    """Check that the settings of the section `kafka` go together. No file is read.

    Raises:
        Refused: They don't; the message names the field.
    """
    kafka = config.kafka
    protocol = kafka.security_protocol.lower()
    if protocol != "plaintext" and config.embeds_kafka:
        raise Refused(f"kafka.security_protocol: the embedded Kafka has no {protocol}; set broker to a Kafka that does")
    for name in _OF_LOGIN:
        given = bool(getattr(kafka, name))
        if given and not kafka.logs_in:
            raise Refused(f"kafka.{name}: has no use with security_protocol {protocol}; take sasl_ssl")
        if kafka.logs_in and not given:
            raise Refused(f"kafka.{name}: must be set with security_protocol {protocol}")
    for name in _OF_TLS:
        if getattr(kafka, name) and not kafka.encrypts:
            raise Refused(f"kafka.{name}: has no use with security_protocol {protocol}; take ssl or sasl_ssl")
    if not kafka.check_hostname and not kafka.encrypts:
        raise Refused(f"kafka.check_hostname: has no use with security_protocol {protocol}; take ssl or sasl_ssl")
    for name in ("key_file", "key_password"):
        if getattr(kafka, name) and not kafka.certificate_file:
            raise Refused(f"kafka.{name}: has no use without certificate_file")


def load(config: Config) -> Security:
    """Check the settings, and read the certificate files that they name.

    Raises:
        Refused: The settings don't go together, or a file is unusable; the message names the field.
    """
    check(config)
    kafka = config.kafka
    return Security(
        protocol=kafka.security_protocol.upper(),
        mechanism=kafka.sasl_mechanism.upper(),
        username=kafka.username,
        password=kafka.password,
        context=_context(kafka) if kafka.encrypts else None,
    )


def _context(kafka: Kafka) -> ssl.SSLContext:
    for name in ("ca_file", "certificate_file", "key_file"):
        _check_readable(name, getattr(kafka, name))
    try:
        context = ssl.create_default_context(cafile=kafka.ca_file or None)
    except ssl.SSLError as error:
        raise Refused(f"kafka.ca_file: {kafka.ca_file}: has no certificate in PEM: {_reason(error)}") from None
    context.check_hostname = kafka.check_hostname
    if kafka.certificate_file:
        try:
            # Always pass a password: without one OpenSSL would ask for it at the terminal.
            context.load_cert_chain(kafka.certificate_file, kafka.key_file or None, password=lambda: kafka.key_password)
        except (ssl.SSLError, ValueError) as error:
            raise Refused(f"{_at_fault(kafka, error)}: {_reason(error)}") from None
    return context


def _check_readable(name: str, path: str) -> None:
    try:
        if path:
            Path(path).read_bytes()
    except OSError as error:
        raise Refused(f"kafka.{name}: {path}: can't be read: {error.strerror}") from error


def _at_fault(kafka: Kafka, error: Exception) -> str:
    """The setting that is wrong when a certificate and its key can't be loaded, with the reason."""
    reason = str(getattr(error, "reason", "") or error)
    if reason == "KEY_VALUES_MISMATCH":
        return f"kafka.key_file: {kafka.key_file or kafka.certificate_file}: is not the key of certificate_file"
    path = kafka.key_file or kafka.certificate_file
    if "ENCRYPTED" in Path(path).read_text(encoding="ascii", errors="replace"):
        return f"kafka.key_password: does not open the key in {path}"
    return f"kafka.certificate_file, kafka.key_file: no certificate with its key in PEM in {kafka.certificate_file}" + (
        f" and {kafka.key_file}" if kafka.key_file else ""
    )


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", "") or type(error).__name__)
