"""A Kafka that slows a worker down by a quota: told as that, and no outage. Nothing is lost, or sent again."""

from __future__ import annotations

import re
from typing import Any

import faust
import pytest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Float64, Int16, Int32, Schema, String

from tests.conftest import OpenShop
from tests.faults.crew import Server
from tests.support.shop import Record, Shop, Worker, encoded, own_servers, purchase, until
from tests.system.test_health import scraped
from tests.system.test_losses import asked, troubles
from tests.system.test_open_transactions import page

pytestmark = pytest.mark.servers

_ENTITY = Array(("entity_type", String("utf-8")), ("entity_name", String("utf-8")))
_CHANGE = Array(("key", String("utf-8")), ("value", Float64), ("remove", Boolean))


class _Response(Response):
    API_KEY, API_VERSION = 49, 0
    _ENTRY = (("error_code", Int16), ("error_message", String("utf-8")), ("entity", _ENTITY))
    SCHEMA = Schema(("throttle_time_ms", Int32), ("entries", Array(*_ENTRY)))


class _Struct(RequestStruct):
    API_KEY, API_VERSION = 49, 0
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(("entries", Array(("entity", _ENTITY), ("ops", _CHANGE))), ("validate_only", Boolean))


class AlterClientQuotas(Request[_Struct]):
    """Kafka's request, which aiokafka does not have.

    Arguments:
        rate: In bytes a second; None: without a limit.
    """

    API_KEY = 49

    def __init__(self, client: str, rate: float | None) -> None:
        self._client, self._rate = client, rate

    def build(self, request_struct_class: type[_Struct]) -> _Struct:
        change = ("producer_byte_rate", self._rate or 0.0, self._rate is None)
        return request_struct_class([([("client-id", self._client)], [change])], False)


def limit(shop: Shop, rate: float | None) -> None:
    """Limit what workers may send."""
    change = AlterClientQuotas(f"faust-{faust.__version__}", rate)
    answer: Any = asked(shop, lambda admin: admin._send_request(change))
    assert [code for code, *_ in answer.entries] == [0]


def pause(worker: Worker) -> int:
    """For how many seconds Kafka asked the worker to wait, as it says; 0 if it says nothing."""
    said = re.search(r"Kafka slows this worker down: .* asked for a pause of (\d+) s", str(page(worker)["sentences"]))
    return int(said[1]) if said else 0


@pytest.mark.slow
def test_a_worker_waits_as_a_quota_of_kafka_demands_and_says_so(open_shop: OpenShop) -> None:
    """The pauses are longer than a request may take, here 5 s: without waiting, requests would be sent twice."""
    with open_shop(**own_servers("kafka")) as shop:
        shop.environment["PRODUCER_REQUEST_TIMEOUT"] = "5"
        Server(shop, "kafka")
        worker = shop.start_worker().ready()
        limit(shop, 500.0)
        sold = 0

        def told() -> bool:
            nonlocal sold
            events = [purchase(f"c-{number}") for number in range(sold, sold + 100)]
            shop.send("purchases", *(Record(one["customer_id"].encode(), encoded(one)) for one in events))
            sold += len(events)
            return pause(worker) > 8

        until(told, "Kafka asks for a long pause", poll=1.0)
        waiting = shop.lag()
        status, ready = worker.get("/health/ready")
        assert status == 200
        assert any(warning.startswith("Kafka slows this worker down: ") for warning in ready["warnings"])
        until(lambda: shop.lag() < waiting, "something is sent after the pause", 120)
        limit(shop, None)
        shop.drain(120)
        assert "Kafka slows this worker down: " in str(shop.agrees()["checks"])
        until(lambda: ("throttled", "Kafka") not in troubles(worker), "it is over", 120)
        sent = [(each.partition, each.key, each.value) for each in shop.read_from(shop.changelog)]
        assert len(sent) == len(set(sent)), "what was counted is sent once"
        assert scraped(worker)["shopflow_retries_total"][(("server", "kafka"),)] == 0
        assert "Kafka is away" not in worker.output
        assert worker.stop() == 0
