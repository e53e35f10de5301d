"""The metrics: what is counted, and that alerts, dashboard and documents use only metrics that exist."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from faust.types import TP
from prometheus_client.parser import text_string_to_metric_families

import shopflow
from faust_batches import Outage, Troubles
from shopflow.app import discover
from shopflow.errors import PartitionLost, Unavailable
from shopflow.kafka.lag import Lags
from shopflow.kafka.offsets import Span
from shopflow.store import MongoStore
from shopflow.store.types import Deletion, Inserted
from shopflow.web.monitoring.metrics import Metrics, Rebalances
from tests.support.documents import DIRECT, NOON, product

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text(encoding="utf-8"))
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/shopflow.json").read_text(encoding="utf-8"))
OPERATIONS = (ROOT / "docs/OPERATIONS.md").read_text(encoding="utf-8")
#: Units that a metric's name may end with, by Prometheus' conventions.
UNITS = ("_seconds", "_bytes", "_records", "_offset", "_partitions")
#: Ends of names of metrics that are 1 or 0.
FLAGS = ("_ready", "_live", "_serving", "_away", "_refuses", "_stopped")


def worker_metrics() -> Metrics:
    """The worker's metrics, including those that are read at each request of Prometheus."""
    discover()
    return importlib.import_module("shopflow.bootstrap").parts.metrics  # type: ignore[no-any-return]


def families() -> dict[str, Any]:
    """Metrics by the name under which Prometheus stores them."""
    found = {}
    for family in worker_metrics().registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name not in found, f"{name} is declared twice"
        found[name] = family
    return found


FAMILIES = families()
#: All names in a query: also those of the parts of a histogram.
SERIES = set(FAMILIES) | {
    f"{name}_{part}"
    for name, family in FAMILIES.items()
    if family.type == "histogram"
    for part in ("bucket", "sum", "count")
}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


class Batch:
    """A batch of this many records."""

    def __init__(self, records: int = 3) -> None:
        self.records = [None] * records
        self.tp = TP("shop.purchases", 2)


# -- declarations


@pytest.mark.parametrize("name", sorted(name for name in FAMILIES if name.startswith("shopflow_")))
def test_names_follow_the_conventions(name: str) -> None:
    """Names have the prefix, a base unit at the end or `_total`; every metric has a sentence that explains it."""
    family = FAMILIES[name]
    assert re.fullmatch(r"shopflow_[a-z_]+", name)
    if family.type == "counter":
        assert name.endswith("_total")
    else:
        assert name.endswith(UNITS + FLAGS)
    assert family.documentation.endswith(".")


def test_nothing_foreign_is_in_the_registry() -> None:
    """prometheus_client's default registry would also have the metrics of any library in the process."""
    assert all(name.startswith(("shopflow_", "process_", "python_")) for name in FAMILIES)


def test_the_text_is_what_prometheus_reads() -> None:
    text = worker_metrics().text().decode()
    assert {family.name for family in text_string_to_metric_families(text)} == {
        family.name for family in FAMILIES.values()
    }


def test_the_documented_table_is_the_registry() -> None:
    """docs/OPERATIONS.md has the name, type and meaning of each metric. The failure shows what to write there."""
    rows = [
        f"| `{name}` | {family.type} | {family.documentation} |"
        for name, family in sorted(FAMILIES.items())
        if name.startswith("shopflow_")
    ]
    documented = [line for line in OPERATIONS.splitlines() if line.startswith("| `shopflow_")]
    assert documented == rows


# -- what is counted


def test_a_batch_is_counted_when_it_is_done() -> None:
    metrics = Metrics()

    with metrics.batch(Batch(5)):  # type: ignore[arg-type]
        pass
    assert value(metrics, "shopflow_batch_records_sum", topic="shop.purchases") == 5
    assert value(metrics, "shopflow_batch_duration_seconds_count", topic="shop.purchases") == 1
    assert metrics.activity["shop.purchases", 2] == 2


@pytest.mark.parametrize(
    ("error", "failures"), [(PartitionLost("gone"), None), (Unavailable("Kafka", "away"), None), (KeyError("x"), 1)]
)
def test_a_batch_that_is_not_done_is_not_counted(error: Exception, failures: int | None) -> None:
    """Only an error of the program counts as a failure. The error goes on to the caller."""
    metrics = Metrics()

    with pytest.raises(type(error)), metrics.batch(Batch()):  # type: ignore[arg-type]
        raise error
    assert value(metrics, "shopflow_batch_records_count", topic="shop.purchases") is None
    assert value(metrics, "shopflow_batch_failures_total", topic="shop.purchases") == failures
    assert metrics.activity["shop.purchases", 2] == 1


class Answers(MongoStore):
    """A store without a server, which refuses some documents and finds a duplicate."""

    async def _insert_and_compare(self, documents: Any) -> Inserted:
        return Inserted(frozenset({0}), {1: "why"})

    async def _upsert(self, name: str, documents: Any) -> dict[int, str]:
        return {0: "why"} if name == "products" else {}

    async def _write(self, name: str, operations: Any) -> None: ...


class Away(MongoStore):
    """A store whose server does not answer."""

    async def _upsert(self, name: str, documents: Any) -> dict[int, str]:
        raise Unavailable("MongoDB", "away")


def test_documents_are_counted_by_what_became_of_them() -> None:
    metrics = Metrics()

    async def scenario() -> None:
        store, gone = Answers("shop"), Deletion("a", NOON, DIRECT)
        store.on_write = metrics.wrote
        documents = [product(5, name=name) for name in "abcd"]
        assert await store.insert_purchases(documents) == Inserted(frozenset({0}), {1: "why"})
        assert await store.upsert_products(documents) == {0: "why"}
        assert await store.upsert_customers(documents) == {}
        await store.restore_purchases(documents[:1])
        await store.delete_products([gone] * 2)
        await store.delete_customers([gone] * 3)

    asyncio.run(scenario())
    (family,) = (family for family in metrics.registry.collect() if family.name == "shopflow_documents")
    found = {(sample.labels["collection"], sample.labels["outcome"]): sample.value for sample in family.samples}
    assert found == {
        ("purchases", "inserted"): 2,
        ("purchases", "duplicate"): 1,
        ("purchases", "refused"): 1,
        ("purchases", "restored"): 1,
        ("products", "upserted"): 3,
        ("products", "refused"): 1,
        ("products", "deleted"): 2,
        ("customers", "upserted"): 4,
        ("customers", "deleted"): 3,
    }
    assert value(metrics, "shopflow_mongodb_write_duration_seconds_count", collection="purchases") == 2


def test_a_write_that_fails_is_not_counted() -> None:
    """A failed write is tried again, and counted when it succeeds."""
    metrics, store = Metrics(), Away("shop")
    store.on_write = metrics.wrote
    with pytest.raises(Unavailable):
        asyncio.run(store.upsert_products([]))
    assert value(metrics, "shopflow_mongodb_write_duration_seconds_count", collection="products") is None


def test_the_writes_of_a_worker_are_counted() -> None:
    assert importlib.import_module("shopflow.app").store.on_write == worker_metrics().wrote


def test_rebalances_are_timed() -> None:
    """A rebalance that is followed by another before its recovery counts as a rebalance, not as a recovery."""
    metrics = Metrics()
    sensor = Rebalances(metrics)
    state = sensor.on_rebalance_start(None)
    sensor.on_rebalance_return(None, state)
    sensor.on_rebalance_end(None, state)
    sensor.on_rebalance_end(None, sensor.on_rebalance_start(None))
    assert value(metrics, "shopflow_rebalance_duration_seconds_count") == 2
    assert value(metrics, "shopflow_recovery_duration_seconds_count") == 1


def test_a_strange_method_makes_no_new_series() -> None:
    """A client can send any method, so an unknown one is counted as `other`."""
    metrics = Metrics()
    metrics.answered("/", "BREW", 405, 0.1)
    assert value(metrics, "shopflow_http_requests_total", view="/", method="other", status="405") == 1


@pytest.fixture
def watched() -> tuple[Metrics, SimpleNamespace]:
    """Metrics of a worker that owns two of three partitions, and the fake that they read."""
    purchases, products = "shop.purchases", "shop.products"

    async def all_have_records(places: Any) -> set[Any]:
        return set()

    known = SimpleNamespace(
        lags=Lags(lambda: None, all_have_records),  # type: ignore[arg-type, return-value]
        mongodb=Outage("MongoDB"),
        kafka_outage=Outage("Kafka"),
        serving=True,
        stopped=[purchases],
        batched_topics={products, purchases},
        owned=[TP(purchases, number) for number in (0, 2)],
        monitor=shopflow.app.monitor,
        troubles=Troubles(),
    )
    known.troubles.begin("open-transaction", "shop.purchases[2]", "events wait", stops=True, since=time.time() - 60)
    asyncio.run(known.lags.take({purchases: {number: Span(1, 10 + number, 20) for number in range(3)}}))
    metrics = Metrics()
    application: Any = known
    metrics.watch(application, known.lags, application, known.mongodb)
    return metrics, known


def test_only_what_is_owned_is_told_of(watched: tuple[Metrics, SimpleNamespace]) -> None:
    """If every worker reported every partition, the sum over workers would count its lag several times."""
    metrics, _ = watched
    for number, waiting in ((0, 10), (1, None), (2, 8)):
        place = {"topic": "shop.purchases", "partition": str(number)}
        assert value(metrics, "shopflow_consumer_lag_records", **place) == waiting
        assert value(metrics, "shopflow_committed_offset", **place) == (None if waiting is None else 10 + number)
    assert value(metrics, "shopflow_assigned_partitions", topic="shop.purchases") == 2
    assert value(metrics, "shopflow_assigned_partitions", topic="shop.products") == 0
    assert value(metrics, "shopflow_topic_stopped", topic="shop.purchases") == 1
    assert value(metrics, "shopflow_topic_stopped", topic="shop.products") == 0
    trouble = {"kind": "open-transaction", "subject": "shop.purchases[2]", "stops": "true"}
    lasting = value(metrics, "shopflow_trouble_seconds", **trouble)
    assert lasting is not None
    assert 60 <= lasting < 120
    age = value(metrics, "shopflow_offsets_age_seconds")
    assert age is not None
    assert 0 <= age < 60


def test_an_outage_is_told_of_while_it_lasts(watched: tuple[Metrics, SimpleNamespace]) -> None:
    metrics, known = watched
    known.mongodb.failed(Unavailable("MongoDB", "away"), "who")
    known.mongodb.failed(Unavailable("MongoDB", "away"), "who")
    assert value(metrics, "shopflow_server_away", server="mongodb") == 1
    assert (value(metrics, "shopflow_server_away_seconds", server="mongodb") or 0) > 0
    known.mongodb.succeeded("who")
    assert value(metrics, "shopflow_server_away", server="mongodb") == 0
    assert value(metrics, "shopflow_server_away_seconds", server="mongodb") == 0
    assert value(metrics, "shopflow_retries_total", server="mongodb") == 2


# -- what is made of them: deploy/

_NAME = re.compile(r"(?<![\w{\"])([a-z]+(?:_[a-z]+)+)\b(?!\s*\()")
_WORDS = {"histogram_quantile"}


def names(expression: str) -> set[str]:
    """The names of the metrics in an expression."""
    bare = re.sub(r"\{[^}]*\}|\b(?:by|without) \([^)]*\)", "", expression)
    return set(_NAME.findall(bare)) - _WORDS


def targets() -> list[tuple[str, str]]:
    """Title and expression of each query of the dashboard."""
    return [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_an_alert_speaks_of_what_is_there(rule: dict[str, Any]) -> None:
    """An alert uses metrics and labels that exist, has a severity and a description, and stands in OPERATIONS.md."""
    assert names(rule["expr"]) <= SERIES
    assert names(rule["expr"]) or "up{" in rule["expr"]
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "description"}
    assert f"| `{rule['alert']}` |" in OPERATIONS
    labels = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    assert labels <= {"topic", "partition", "reason", "server", "instance", "kind", "subject"}


def test_no_alert_is_documented_that_is_not_there() -> None:
    assert re.findall(r"^\| `(Shopflow\w+)` \|", OPERATIONS, re.MULTILINE) == [rule["alert"] for rule in ALERTS]


@pytest.mark.parametrize(("title", "expression"), targets())
def test_a_panel_shows_what_is_there(title: str, expression: str) -> None:
    found = names(expression)
    assert found, title
    assert found <= SERIES


def test_every_alert_is_tried() -> None:
    """`alerts.test.yml` tests when each alert fires."""
    tried = (DEPLOY / "prometheus/alerts.test.yml").read_text(encoding="utf-8")
    assert [rule["alert"] for rule in ALERTS if rule["alert"] not in tried] == []


def test_the_names_in_an_expression_are_found() -> None:
    """Functions, labels and label values are not taken for metrics."""
    assert names('sum by (le_x, topic) (rate(shopflow_a_b_bucket{job="not_this"}[5m])) / shopflow_c_d offset 5m') == {
        "shopflow_a_b_bucket",
        "shopflow_c_d",
    }


def test_the_dashboard_has_room_for_its_panels() -> None:
    """Panels don't overlap, have different ids, and query the provisioned data source."""
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert {each["datasource"]["uid"] for each in (panel, *panel["targets"])} == {source["uid"]}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_finds_the_workers_and_the_rules_where_compose_puts_them() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
    assert [path for path in config["rule_files"] if not (DEPLOY / "prometheus" / path).exists()] == []
    (job,) = config["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert [name for name in found["names"] if name not in compose] == []
    assert found["port"] == compose["worker"]["environment"]["SHOPFLOW_WEB_PORT"]
    assert job["metrics_path"] in importlib.import_module("shopflow.app").app.web.views
    assert job["authorization"]["credentials_file"] in compose["prometheus"]["command"][0]
    for service in ("prometheus", "grafana"):
        for volume in compose[service]["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("./") or (ROOT / source).is_dir()
    board = compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DEPLOY / "grafana/dashboards" / Path(board).name).exists()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, which comes with Prometheus")
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "alerts.yml"],
        ["check", "config", "--syntax-only", "prometheus.yml"],
        ["check", "metrics"],
        ["test", "rules", "alerts.test.yml"],
    ],
    ids=lambda arguments: "-".join(arguments[:2]),
)
def test_promtool_accepts_it(arguments: list[str]) -> None:
    """Prometheus' own checks: expressions, settings, conventions of names, and when each alert fires."""
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=DEPLOY / "prometheus",
        input=worker_metrics().text(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, which comes with Prometheus")
@pytest.mark.parametrize(("title", "expression"), targets())
def test_promtool_reads_each_line_of_the_dashboard(title: str, expression: str, tmp_path: Path) -> None:
    """promtool checks only rules, so each query is written as a rule."""
    rules = {"groups": [{"name": "dashboard", "rules": [{"record": "x", "expr": expression}]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    command = ["promtool", "check", "rules", str(tmp_path / "rules.yml")]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, (title, done.stdout + done.stderr)
