"""The HTTP interface on real servers: events and answers, the OpenAPI description, and a load with kills."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from signal import SIGCONT, SIGSTOP, SIGTERM
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.conftest import HTTP_EXAMPLES, HTTP_SECONDS, OpenShop
from tests.support.shop import Json, Shop, Worker, customer, product, purchase, shared, until

pytestmark = pytest.mark.servers

RATE = 200


def chosen_seed() -> int:
    """The run's seed, printed; SHOPFLOW_TEST_SEED repeats a run."""
    number = int(os.environ.get("SHOPFLOW_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"SHOPFLOW_TEST_SEED={number}")
    return number


def post(worker: Worker, kind: str, sent: Any) -> tuple[int, Json, str | None]:
    """Status, answer and Retry-After of a POST of events."""
    connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=30)
    try:
        body = json.dumps(sent, ensure_ascii=False).encode()
        connection.request("POST", f"/events/{kind}", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers["Retry-After"]
    finally:
        connection.close()


@pytest.fixture(scope="module")
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """One shop for the tests that leave it in order."""
    with open_shop() as opened:
        yield opened


@pytest.fixture(scope="module")
def worker(shop: Shop) -> Worker:
    """The shop's worker."""
    return shop.start_worker().ready()


def test_what_is_sent_again_is_stored_once_and_can_be_read(shop: Shop, worker: Worker) -> None:
    """Events sent again are stored and counted once. They are in the partition that other producers choose."""
    milk, anna = product(price=250), customer("żaneta {1}/2")
    bought = [purchase(anna["customer_id"], product_id=milk["product_id"], price=250) for _ in range(3)]
    assert post(worker, "products", milk)[:2] == (202, {"ids": [milk["product_id"]]})
    assert post(worker, "customers", [anna])[:2] == (202, {"ids": [anna["customer_id"]]})
    for sent in (bought, bought[0], bought):
        assert post(worker, "purchases", sent)[0] == 202
    (origin,) = shop.sell(purchase(anna["customer_id"], purchase_id="by another producer", price=1))
    wanted = {"customer_id": anna["customer_id"], "purchases": 4, "items": 8, "spent": 3 * 500 + 2}
    until(lambda: worker.count(anna["customer_id"]) == (200, wanted), "the purchases are counted once")
    records = [one for one in shop.read("purchases") if one.key == anna["customer_id"].encode()]
    assert {one.partition for one in records} == {origin.partition}
    until(lambda: shop.db.customers.find_one({"_id": anna["customer_id"]}), "the customer is stored")
    until(lambda: shop.db.products.find_one({"_id": milk["product_id"]}), "the product is stored")

    path = f"/customers/{quote(anna['customer_id'], safe='')}/"
    status, found = worker.get(path)
    assert (status, found["customer_id"], found["first_name"]) == (200, anna["customer_id"], anna["first_name"])
    seen, following = [], "?limit=3"
    while following:
        status, page = worker.get(f"{path}purchases/{following}")
        assert status == 200
        seen += [one["purchase_id"] for one in page["purchases"]]
        following = page["next"] and f"?limit=3&after={quote(page['next'], safe='')}"
    assert sorted(seen) == sorted([*(one["purchase_id"] for one in bought), "by another producer"])
    ids, after = [], ""
    while after is not None:
        _, page = worker.get(f"/products/?limit=1&after={quote(after, safe='')}")
        ids += [one["product_id"] for one in page["products"]]
        after = page["next"]
    assert milk["product_id"] in ids
    assert ids == sorted(set(ids))


def test_what_is_wrong_is_named_and_nothing_of_it_is_stored(shop: Shop, worker: Worker) -> None:
    """One answer names every problem. The good event of the array is not sent."""
    good = purchase()
    status, answer, _ = post(worker, "purchases", [good, purchase(quantity=0, price="1", purchased_at="soon")])
    assert status == 400
    assert {one["field"] for one in answer["fields"]} == {"[1].quantity", "[1].price", "[1].purchased_at"}
    assert shop.stored(good) is None
    assert worker.get("/nothing")[1] == {"error": "404 Not Found: /nothing"}


def examine(operation: Any, mode: GenerationMode, chosen: int, tried: Counter[str]) -> None:
    """Make requests of one operation, and check the answers against the description."""

    @seed(chosen)
    @settings(
        max_examples=HTTP_EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        response = case.call()
        tried[f"{operation.label} {response.status_code}"] += 1
        # No schema can say the limit of the product of two fields, that a time must be in range in UTC too, and that
        # `since` goes with some values of `by` only.
        beyond = any(words in response.text for words in ("quantity times price", "out of range", '"field":"since"'))
        case.validate_response(response, excluded_checks=[positive_data_acceptance] if beyond else [])

    check()


def test_the_interface_is_what_its_description_says(shop: Shop, worker: Worker) -> None:
    """schemathesis makes right and wrong requests from /openapi.json, and checks every answer against it."""
    chosen = chosen_seed()
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{worker.port}/openapi.json")
    tried: Counter[str] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if mode is GenerationMode.NEGATIVE and operation.label.startswith(("GET /counts/", "GET /health/")):
                continue  # any text is an id, so there is no wrong request
            examine(operation, mode, chosen, tried)
    print(dict(tried))
    labels = {key.rpartition(" ")[0] for key in tried}
    assert len(labels) == sum(len(methods) for methods in schema.raw_schema["paths"].values())
    assert all(f"POST /events/{kind} {status}" in tried for kind in ("purchases", "products") for status in (202, 400))
    until(lambda: shop.run("verify").status == 0, "all is processed")  # a retry's transaction ends with a lag of 1
    # No accepted event is a dead letter, except purchases of products that nobody offers.
    reasons = [dict(one.headers)["__connect.errors.exception.message"] for one in shop.read("dead-letters")]
    assert [reason for reason in reasons if not reason.startswith(b"unknown product")] == []


def test_a_slow_sender_does_not_hold_up_the_stop(open_shop: OpenShop) -> None:
    """The worker stops although a client never finishes its request."""
    with open_shop() as shop:
        worker = shop.start_worker().ready()
        with socket.create_connection(("127.0.0.1", worker.port)) as slow:
            head = "POST /events/purchases HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: 100\r\n\r\n[".encode())
            sent = purchase()
            assert post(worker, "purchases", sent)[0] == 202  # the server has seen the slow request too
            began = time.monotonic()
            assert worker.stop(SIGTERM) == 0
            assert time.monotonic() - began < 10, worker.output[-3_000:]
        shop.start_worker(port=worker.port).ready()
        until(lambda: shop.stored(sent), "what was confirmed is stored")
        assert "Traceback" not in worker.output


def test_while_kafka_is_away_senders_are_asked_to_come_again(open_embedded_shop: OpenShop) -> None:
    """An event that got 503 while Kafka was frozen is sent again, and is stored and counted once."""
    with open_embedded_shop(batching_session_timeout_seconds=30) as shop:
        worker = shop.start_worker().ready()
        kafka = shop.server_pid("kafka")
        sent = [purchase("anna"), purchase("anna")]
        for event in sent:
            os.kill(kafka, SIGSTOP)
            try:
                began = time.monotonic()
                status, answer, again = post(worker, "purchases", event)
                assert (status, again) == (503, "1")
                assert answer["error"].startswith("Kafka: ")
                assert time.monotonic() - began < 15
            finally:
                os.kill(kafka, SIGCONT)
            until(lambda event=event: post(worker, "purchases", event)[0] == 202, "it is accepted", 60)
        wanted = {"customer_id": "anna", "purchases": 2, "items": 4, "spent": 2 * 2 * 399}
        until(lambda: worker.count("anna") == (200, wanted), "each is counted once", 60)
        assert worker.stop(SIGTERM) == 0


class Load:
    """Clients that make purchases at a steady rate until `enough`, and send each until it is confirmed."""

    def __init__(self, workers: list[Worker], choice: random.Random) -> None:
        self.ports = [worker.port for worker in workers]
        self.choice = choice
        self.enough = threading.Event()
        self.sold: list[Json] = []
        self.tries: Counter[str] = Counter()
        self.confirmed: set[str] = set()

    async def run(self) -> None:
        """Make all purchases, and wait until each is confirmed."""
        timeout = aiohttp.ClientTimeout(total=20)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            began, buying = time.monotonic(), []
            while not self.enough.is_set():
                number = len(self.sold)
                await asyncio.sleep(began + number / RATE - time.monotonic())
                self.sold.append(purchase(f"c-{self.choice.randrange(100)}", purchase_id=f"b-{number}"))
                buying.append(asyncio.create_task(self._buy(session, number, self.sold[-1])))
            await asyncio.gather(*buying)

    async def _buy(self, session: aiohttp.ClientSession, number: int, event: Json) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            status = await self._try(session, self.ports[number % len(self.ports)], event)
            self.tries[status] += 1
            if status == "202":
                self.confirmed.add(event["purchase_id"])
                return
            assert status in {"503", "connection"}, status
            number += 1  # the other worker
            await asyncio.sleep(0.2)

    @staticmethod
    async def _try(session: aiohttp.ClientSession, port: int, event: Json) -> str:
        try:
            async with session.post(f"http://127.0.0.1:{port}/events/purchases", json=event) as response:
                answer = await response.json()
        except (aiohttp.ClientConnectionError, asyncio.TimeoutError):
            return "connection"
        assert response.status != 202 or answer == {"ids": [event["purchase_id"]]}
        return str(response.status)


@pytest.mark.slow
def test_every_confirmed_purchase_is_there_once_while_workers_are_killed(open_shop: OpenShop) -> None:
    """Clients send 200 purchases a second while workers are killed. SHOPFLOW_TEST_HTTP_SECONDS=60 makes it a minute."""
    choice = random.Random(chosen_seed())
    with open_shop() as shop:
        workers = [shop.start_worker(), shop.start_worker()]
        until(lambda: shared(workers), "both workers have partitions", 60)
        load, kills, began = Load(workers, random.Random(choice.random())), 0, time.monotonic()
        thread = threading.Thread(target=lambda: asyncio.run(load.run()))
        thread.start()
        try:
            while kills < 2 or time.monotonic() - began < HTTP_SECONDS:
                time.sleep(choice.uniform(1, 4))  # the moment of the kill is by chance
                number = choice.randrange(2)
                workers[number].kill()
                kills += 1
                workers[number] = shop.start_worker(port=workers[number].port)
                fresh = workers[number]
                until(lambda fresh=fresh: fresh.get("/counts/")[0], "it answers again")
        finally:
            load.enough.set()
            thread.join()
        print(f"{kills} kills, {dict(load.tries)}")
        wanted = {event["purchase_id"] for event in load.sold}
        assert load.confirmed == wanted
        until(lambda: shared(workers), "both workers have partitions again", 60)
        shop.drain()
        assert {one["_id"] for one in shop.db.purchases.find({}, {"_id": 1})} == wanted

        def sums() -> int:
            return sum(worker.counts().get("purchases", 0) for worker in workers)

        until(lambda: sums() == len(wanted), "every purchase is counted once")
        shop.agrees()
