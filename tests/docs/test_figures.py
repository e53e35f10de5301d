"""Numbers and messages in the documents are those of the code."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from faust.cli.base import cli

from faust_batches import agent, once, outage
from shopflow.commands import demo, samples, trading
from shopflow.config import promotions
from shopflow.config.settings import Config
from shopflow.kafka import connection, held, lag
from shopflow.models import MAX_ID_LENGTH, MAX_VALUE
from shopflow.operations import export, retry
from shopflow.servers import fetch, server
from shopflow.shop import sales_mirror, stock
from shopflow.shop.promotions import vouchers
from shopflow.web.monitoring import probes
from tests.docs.documents import ROOT, text_of

DEMO = {param.name: param.default for param in cli.commands[demo.demo.__name__].params}
BATCHING = Config().batching
ALERTS = [
    rule for group in yaml.safe_load(text_of("deploy/prometheus/alerts.yml"))["groups"] for rule in group["rules"]
]
DURATIONS = {"1m": "a minute", "2m": "2 minutes", "5m": "5 minutes", "10m": "10 minutes"}
MIB = 1 << 20
WORDS = {1: "a", 3: "three", 10: "ten", 60: "a minute"}


def words(number: float) -> str:
    """A number as the documents write it."""
    return WORDS[int(number)]


#: Document, sentence, and the value in it.
FIGURES: list[tuple[str, str, Any]] = [
    ("README.md", "downloads Apache Kafka once ({} MB)", fetch.KAFKA_MEGABYTES),
    ("README.md", "{:,} times", DEMO["purchases"]),
    ("README.md", "Then {} customers buy", DEMO["customers"]),
    ("README.md", "shop sells {:g} to", trading.RATES[0]),
    ("README.md", "to {:g} purchases a second, some", trading.RATES[1]),
    ("README.md", "{} products are offered", len(samples.PRODUCTS)),
    ("docs/COMMANDS.md", "{} Polish groceries", len(samples.PRODUCTS)),
    ("docs/COMMANDS.md", "waits for up to {} and continues", words(export.RETRY_SECONDS)),
    ("docs/TOUR.md", "waits for the product for {} seconds", words(BATCHING.product_wait_seconds)),
    ("docs/TOUR.md", "`batching.session_timeout_seconds` ({:g} by default)", BATCHING.session_timeout_seconds),
    ("docs/EVENTS.md", "strings of 1 to {} characters", MAX_ID_LENGTH),
    ("docs/EVENTS.md", "at most 10^{} grosze", len(str(MAX_VALUE)) - 1),
    ("docs/OPERATIONS.md", "for {} turns of the event loop", probes.STUCK_TURNS),
    ("docs/OPERATIONS.md", "for {:g} minutes plus", probes.STUCK_SECONDS / 60),
    ("docs/OPERATIONS.md", "within {} second, or writes", words(probes.PING_SECONDS)),
    ("docs/OPERATIONS.md", "every {:g} seconds for the lag", lag.LOOK_SECONDS),
    ("docs/OPERATIONS.md", "for more than {:g} seconds, or another trouble", held.PATIENCE_SECONDS),
    ("docs/RELIABILITY.md", "After {:g} seconds the worker is not ready", held.PATIENCE_SECONDS),
    ("docs/ARCHITECTURE.md", "After {:g} seconds of that", held.PATIENCE_SECONDS),
    ("docs/PROMOTIONS.md", "at most {}, by the time", promotions.MAX_DAYS),
    ("docs/PROMOTIONS.md", "`valid_days` ({})", promotions.Gift(text="-", percent=1).valid_days),
    ("docs/PROMOTIONS.md", "remembers it for {}", words(vouchers._TYPE_SECONDS)),
    ("docs/RELIABILITY.md", "tried again, {:g} to", outage.FIRST_PAUSE_SECONDS),
    ("docs/RELIABILITY.md", "to {:g} seconds apart", outage.LONGEST_PAUSE_SECONDS),
    ("docs/RELIABILITY.md", "more than {} minutes wrong", words(once._CLOCK_DIFFERENCE_MS / 60_000)),
    ("docs/ARCHITECTURE.md", "`batching.max_records` ({:,})", BATCHING.max_records),
    ("docs/ARCHITECTURE.md", "up to {} a round", stock.AT_ONCE),
    ("docs/ARCHITECTURE.md", "rests {} times as long", words(sales_mirror._PAUSE_FACTOR)),
    ("docs/ARCHITECTURE.md", "while purchases wait, {} times", sales_mirror._WAITING_FACTOR),
    ("docs/ARCHITECTURE.md", "one of the {} records of a transaction", retry._AT_ONCE),
    ("docs/ARCHITECTURE.md", "{} characters of each", retry._REASON_LENGTH),
    ("docs/ARCHITECTURE.md", "after {} seconds", words(server.STOP_SECONDS)),
    ("docs/ARCHITECTURE.md", "records of {} MiB", connection.MAX_MESSAGE_BYTES // MIB),
    ("faust_batches/README.md", "{} second later", words(agent.RETRY_SECONDS)),
]


@pytest.mark.parametrize(("document", "sentence", "value"), FIGURES)
def test_a_figure_is_that_of_the_code(document: str, sentence: str, value: Any) -> None:
    """A changed setting or constant must be changed in the documents too."""
    assert sentence.format(value) in " ".join(text_of(document).split())


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_an_alert_comes_when_the_document_says(rule: dict[str, Any]) -> None:
    """The durations and numbers in OPERATIONS.md are those of the alert's rule."""
    (row,) = [line for line in text_of("docs/OPERATIONS.md").splitlines() if line.startswith(f"| `{rule['alert']}` |")]
    when = row.split("|")[2]
    for duration in re.findall(r"a minute|\d+ minutes", when):
        assert duration == DURATIONS[rule["for"]]
    for number in re.findall(r"\d+,\d+", when):
        assert number.replace(",", "") in rule["expr"]


@pytest.mark.parametrize(
    ("message", "in_code"),
    [
        ("`MongoDB is away` or `Kafka is away`", "is away"),
        ("choose another with --web-port or SHOPFLOW_WEB_PORT`", "choose another with --web-port or SHOPFLOW_WEB_PORT"),
        ("`the embedded Kafka isn't running`", "isn't running"),
        ("`does not know`", "does not know "),
        ("`can't be fetched`", "can't be fetched"),
        ("partitions, configured are 8`", "partitions, configured are "),
        ("`has stopped taking`", "has stopped taking"),
        ("`were rejected in the last 15 minutes`", "rejected in the last"),
    ],
)
def test_a_message_in_the_troubleshooting_table_is_one_of_the_code(message: str, in_code: str) -> None:
    """A user searches the table for the words on the screen."""
    assert message in text_of("docs/OPERATIONS.md").partition("## Troubleshooting")[2]
    files = [path for package in ("faust_batches", "shopflow") for path in (ROOT / package).rglob("*.py")]
    assert any(in_code in path.read_text(encoding="utf-8") for path in files)
