"""Dead letters on real servers: listed, shown and retried, and a topic that stops when there are too many."""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import OpenShop
from tests.support.shop import (
    CONSOLE,
    FAUST,
    MODULE,
    Json,
    Origin,
    Record,
    Shop,
    Worker,
    becomes,
    encoded,
    product,
    purchase,
    until,
)

pytestmark = pytest.mark.servers

REASON = "unknown product"


@pytest.fixture(scope="module")
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop in which purchases wait only 0.1 s for their products."""
    with open_shop(batching_product_wait_seconds=0.1) as shop:
        yield shop


@pytest.fixture(scope="module")
def worker(shop: Shop) -> Worker:
    """A worker of the module's shop."""
    return shop.start_worker().ready()


def unpriced(product_id: str, **fields: Any) -> Json:
    """A purchase without a price, which needs its product."""
    return {name: value for name, value in purchase(product_id=product_id, **fields).items() if name != "price"}


def listed(shop: Shop, *options: str) -> list[Json]:
    """What `dead-letters list --json` prints."""
    found: list[Json] = shop.run("dead-letters", "list", "--json", *options).json()
    return found


def of(shop: Shop, event: Json) -> list[Json]:
    """The dead letters of this purchase's customer."""
    return [letter for letter in listed(shop) if letter["key"] == event["customer_id"]]


def failed(shop: Shop, event: Json, times: int = 1) -> Json:
    """The customer's newest dead letter, once there are this many."""
    found = until(lambda: letters if len(letters := of(shop, event)) == times else None, f"{times} dead letter(s)")
    return found[-1]


def retry(shop: Shop, *arguments: str, **settings: Any) -> str:
    """The output of a successful `dead-letters retry`."""
    done = shop.run("dead-letters", "retry", *arguments, **settings)
    progress = [line for line in done.errors if line.startswith("dead letters: ")]  # written if the command takes long
    assert (done.status, done.errors) == (0, progress), done
    return done.stdout


def dead_letter(event: Json, origin: Origin, *, reason: str = f"{REASON}: x", partition: int | None = None) -> Record:
    """A dead letter as a worker writes it."""
    headers = {
        "topic": origin.topic.encode(),
        "partition": str(origin.partition).encode(),
        "offset": str(origin.offset).encode(),
        "exception.message": reason.encode(),
    }
    return Record(
        event["customer_id"].encode(),
        encoded(event),
        origin.partition if partition is None else partition,
        tuple((f"__connect.errors.{name}", value) for name, value in headers.items()),
    )


def test_a_shop_without_dead_letters_says_so(open_shop: OpenShop) -> None:
    """Neither an empty topic nor a missing one is an error, and listing creates no topic."""
    with open_shop() as shop:
        for_people, as_json, shown = shop.run_all(
            [["dead-letters"], ["dead-letters", "list", "--json"], ["dead-letters", "show", "0:0"]]
        )
        assert (for_people.status, for_people.stdout) == (0, "Dead letters: none.\n")
        assert as_json.json() == []
        assert (shown.status, len(shown.errors)) == (2, 1)
        assert shop.describe_topics() == {}
        assert retry(shop, "--all") == "0 retried, 0 had been retried before.\n"
        assert shop.read("retries") == []


def test_a_purchase_is_retried_when_its_product_is_offered(shop: Shop, worker: Worker) -> None:
    """The retried purchase is stored and counted once. A second retry changes nothing."""
    offered, event = product(), unpriced("")
    event["product_id"] = offered["product_id"]
    (origin,) = shop.send(
        "purchases", Record(event["customer_id"].encode(), encoded(event), 2, (("trace", b"\xff"), ("trace", b"2")))
    )
    letter = failed(shop, event)
    assert (letter["topic"], letter["partition"], letter["offset"]) == origin
    assert letter["reason"].startswith(REASON)
    assert (letter["put_back"], letter["retries"], letter["history"]) == (None, 0, [])
    assert letter["id"].startswith("2:")
    shop.offer(offered)
    until(lambda: shop.db.products.find_one({"_id": offered["product_id"]}), "the product is stored")
    assert retry(shop, letter["id"], letter["id"]) == "1 retried, 0 had been retried before.\n"
    until(lambda: shop.stored(event), "it is stored")
    assert shop.run("dead-letters", "retry", letter["id"], program=CONSOLE).stdout.startswith("0 retried, 1 had been")
    becomes(lambda: worker.count(event["customer_id"])[1].get("purchases"), 1)
    until(lambda: shop.run("verify").status == 0, "all is processed")
    shown = shop.run("dead-letters", "show", letter["id"], "--json").json()
    to = Origin(**shown["put_back_to"])
    assert shop.stored(event)["source"] == {"origin": "kafka", **to._asdict()}  # type: ignore[index]
    assert (to.topic, to.partition, to.offset > origin.offset) == (origin.topic, 2, True)
    assert [again["put_back"] for again in of(shop, event)] == [shown["put_back"]]
    assert shown["value"] == encoded(event).decode()
    (back,) = (record for record in shop.read("purchases") if (record.partition, record.offset) == to[1:])
    assert (back.key, back.value) == (event["customer_id"].encode(), encoded(event))
    assert [value for name, value in back.headers if name == "trace"] == [b"\xff", b"2"]
    assert not [name for name, _ in back.headers if name.startswith("__connect.")]
    shop.agrees()


@pytest.mark.slow
def test_what_fails_again_is_a_new_dead_letter_with_its_history(shop: Shop, worker: Worker) -> None:
    """A retried record that fails again has its earlier failures, and can be retried again."""
    event = unpriced("never-offered")
    (origin,) = shop.sell(event)
    first = failed(shop, event)
    for times in (1, 2):
        before = of(shop, event)[-1]
        assert retry(shop, before["id"]) == "1 retried, 0 had been retried before.\n"
        letter = failed(shop, event, times + 1)
        assert (letter["retries"], len(letter["history"]), letter["put_back"]) == (times, times, None)
        assert letter["history"][-1] == {
            "dead_letter": before["id"],
            "reason": before["reason"],
            "time": letter["history"][-1]["time"],
            **{name: before[name] for name in Origin._fields},
        }
    assert letter["history"][0]["dead_letter"] == first["id"]
    assert [letter["history"][0][name] for name in Origin._fields] == list(origin)
    shown = shop.run("dead-letters", "show", letter["id"], program=MODULE).stdout
    assert "failed:   2 times before" in shown
    assert f"{first['id']}  " in shown
    assert "failed 2 times before" in shop.run("dead-letters").stdout
    assert shop.agrees()["tables"]["rejected"] >= 3


@pytest.mark.slow
def test_a_reason_chooses_and_a_limit_shows_the_newest(shop: Shop, worker: Worker) -> None:
    """`--reason` lists and retries only the dead letters whose reason has the text; `--limit` lists the newest."""
    bad = [purchase(f"zero-{number}", quantity=0) for number in range(3)]
    for event in bad:
        shop.sell(event)
        failed(shop, event)
    assert [letter["key"] for letter in listed(shop, "--limit", "2")] == ["zero-1", "zero-2"]
    assert {letter["key"] for letter in listed(shop, "--reason", "QUANTITY")} == {"zero-0", "zero-1", "zero-2"}
    *lines, summary = shop.run("dead-letters", "list", "--reason", "quantity", "--limit", "1").stdout.splitlines()
    assert len(lines) == 1
    assert "zero-2" in lines[0]
    assert summary == "Dead letters: 3 (0 retried): 3 invalid event."
    others = {
        letter["id"] for letter in listed(shop) if letter["put_back"] is None and "quantity" not in letter["reason"]
    }
    assert retry(shop, "--reason", "quantity") == "3 retried, 0 had been retried before.\n"
    for event in bad:
        failed(shop, event, 2)
    assert others <= {letter["id"] for letter in listed(shop) if letter["put_back"] is None}


def test_dead_letters_of_other_topics_are_refused_and_the_others_retried(open_shop: OpenShop) -> None:
    """Each refused dead letter is named on stderr without control characters, and the status is 1."""
    with open_shop() as shop:
        shop.run("seed-products")
        good = purchase()
        (letter,) = shop.send(
            "dead-letters",
            dead_letter(good, Origin(shop.topic("purchases"), 1, 0)),
        )
        foreign = [
            Record(b"\xff", None, 0),
            dead_letter(purchase(), Origin("elsewhere\x1b[31m", 1, 0), reason="\x9b31m\u202e\n"),
            dead_letter(purchase(), Origin(shop.topic("purchases"), 9, 0), partition=1),
            dead_letter(purchase(), Origin(shop.topic("dead-letters"), 1, 0)),
        ]
        refused = shop.send("dead-letters", *foreign)
        for number in (1, 2):
            done = shop.run("dead-letters", "retry", "--all")
            assert done.status == 1
            assert (
                done.stdout == f"{2 - number} retried, {number - 1} had been retried before, 4 could not be retried.\n"
            )
            assert len(done.errors) == 4
            for origin in refused:
                assert sum(f"{origin.partition}:{origin.offset}: " in line for line in done.errors) == 1
        outputs = [
            done.stdout + done.stderr
            for done in shop.run_all(
                [
                    *(["dead-letters", "show", f"{origin.partition}:{origin.offset}"] for origin in refused),
                    ["dead-letters", "list"],
                    ["dead-letters", "list", "--json"],
                    ["dead-letters", "retry", "--all"],
                ]
            )
        ]
        assert all(letter == "\n" or letter.isprintable() for output in outputs for letter in output)
        assert [record.value for record in shop.read("purchases")] == [encoded(good)]
        assert len([one for one in listed(shop) if one["put_back"]]) == 1
        assert letter.topic == shop.topic("dead-letters")


WRONG = [
    (["show", "0:99999"], "0:99999"),
    (["show", "99:0"], "99:0"),
    (["retry", "0:99999"], "0:99999"),
    (["show", "nonsense"], "nonsense"),
    (["show", "-1"], "-1"),
    (["show"], "one id"),
    (["list", "0:0"], "ids"),
    (["retry"], "--all"),
    (["retry", "0:0", "--all"], "--all"),
    (["retry", "--all", "--reason", "x"], "--reason"),
    (["retry", "--all", "--limit", "3"], "--limit"),
    (["show", "0:0", "--all"], "--all"),
    (["list", "--limit", "-1"], "--limit"),
    (["nonsense"], "nonsense"),
]


def test_a_wrong_use_is_named(shop: Shop, worker: Worker) -> None:
    """A wrong argument ends with status 2 and its name, and nothing is retried."""
    before = len(shop.read("retries"))
    outcomes = shop.run_all([["dead-letters", *arguments] for arguments, _ in WRONG])
    for done, (arguments, named) in zip(outcomes, WRONG, strict=True):
        assert done.status == 2, (arguments, done)
        assert named in done.errors[-1], (arguments, done)
        assert "Traceback" not in done.stderr, (arguments, done)
    assert len(shop.read("retries")) == before


def many(shop: Shop, number: int) -> list[Json]:
    """This many dead letters of good purchases, as workers write them."""
    shop.run("seed-products")  # makes the topics
    events = [purchase(f"c-{index % 50}") for index in range(number)]
    topic = shop.topic("purchases")
    shop.send("dead-letters", *(dead_letter(event, Origin(topic, n % 4, n // 4)) for n, event in enumerate(events)))
    return events


def check_each_once(shop: Shop, events: list[Json]) -> None:
    """Each purchase is counted once: none is missing, and none counts as sent twice."""
    shop.start_worker().ready()
    until(lambda: shop.run("verify").status == 0, "all are processed", 90)
    tables = shop.agrees()["tables"]
    assert (tables["purchases"], tables["duplicates"], tables["rejected"]) == (len(events), 0, 0)


@pytest.mark.slow
def test_a_retry_that_is_killed_in_the_middle_is_finished_by_the_next(open_shop: OpenShop) -> None:
    """Each dead letter is retried exactly once, also those of the transaction that the kill aborted."""
    with open_shop() as shop:
        events = many(shop, 20_000)
        process = shop.spawn("dead-letters", "retry", "--all")
        # More than one transaction has: the records that are read here may not be committed yet.
        print("killed after", enough := random.randint(500, 3_000))
        until(lambda: len(shop.read("retries")) > enough, "some are retried")
        process.kill()
        assert "retried" not in process.output, "it had finished before it was killed: take more dead letters"
        back, already, *_ = (int(word) for word in retry(shop, "--all").split() if word.isdigit())
        assert back + already == len(events)
        assert min(back, already) > 0
        check_each_once(shop, events)


@pytest.mark.slow
def test_two_retries_at_a_time_retry_nothing_twice(open_shop: OpenShop) -> None:
    """The later run takes over; the earlier one, if it was not done, ends with a line that says so."""
    with open_shop() as shop:
        events = many(shop, 4_000)
        both = [shop.spawn("dead-letters", "retry", "--all") for _ in range(2)]
        statuses = [process.wait(60) for process in both]
        assert 0 in statuses
        for status, process in zip(statuses, both, strict=True):
            assert status == 0 or "another retry has taken over" in process.output.splitlines()[-1]
            assert "Traceback" not in process.output
            assert "never retrieved" not in process.output
        check_each_once(shop, events)
        first = shop.run("dead-letters", program=("sh", "-c", '"$@" | head -1', "sh", *FAUST))
        assert (len(first.stdout.splitlines()), first.stderr) == (1, "")


def test_when_too_much_fails_the_worker_stops_taking_the_topic(open_shop: OpenShop) -> None:
    """The worker logs it once, sends none of the bad records to the dead letters, and goes on with other topics.

    With `max_share` 1 it sends them to the dead letters, and goes on.
    """
    with open_shop(dead_letters_window=100) as shop:
        shop.run("seed-products")
        events = [purchase("anna", quantity=int(number % 10 == 0)) for number in range(100)]
        shop.send("purchases", *(Record(b"anna", encoded(event), 1) for event in events))
        worker = shop.start_worker().ready()
        until(lambda: "is stopped" in worker.output, "the worker has met them")
        offered = product()
        shop.offer(offered)
        until(lambda: shop.db.products.find_one({"_id": offered["product_id"]}), "other topics go on", 60)
        shop.sell(purchase("anna"))
        (line,) = [line for line in worker.output.splitlines() if "is stopped" in line]
        for word in ("[ERROR]", shop.topic("purchases"), "90 of the last 100", "invalid event", "max_share"):
            assert word in line
        assert "to the dead letters" not in worker.output
        assert shop.read("dead-letters") == []
        becomes(shop.lag, 101)
        assert worker.counts()["purchases"] == 0
        assert worker.stop() == 0
        worker = shop.start_worker(port=worker.port, dead_letters_max_share=1).ready()
        shop.drain()
        assert len(shop.read("dead-letters")) == 90
        assert worker.counts()["purchases"] == 11
        assert "is stopped" not in worker.output
        shop.agrees()


@pytest.mark.slow
def test_headers_that_lie_about_a_history_do_no_harm(open_shop: OpenShop) -> None:
    """Another program wrote wrong retry headers. They are not shown, and a retry replaces them."""
    with open_shop() as shop:
        shop.run("seed-products")
        event = purchase()
        record = dead_letter(event, Origin(shop.topic("purchases"), 0, 0))
        lies = (("shopflow.retry.count", b"many"), ("shopflow.retry.history", b"\xff{"))
        shop.send("dead-letters", record._replace(headers=(*record.headers, *lies)))
        (letter,) = listed(shop)
        assert (letter["retries"], letter["history"]) == (0, [])
        retry(shop, "--all")
        (back,) = shop.read("purchases")
        assert [name for name, _ in back.headers] == ["shopflow.retry.count", "shopflow.retry.history"]
        assert dict(back.headers)["shopflow.retry.count"] == b"1"
        assert len(json.loads(dict(back.headers)["shopflow.retry.history"])) == 1


# -- over HTTP

WRITE = "write-" + "w" * 20
READ = "read-" + "r" * 20


def asked(worker: Worker, method: str, path: str, *, token: str = "", form: bool = False) -> tuple[int, str, str]:
    """Status, body and `Location` of an answer."""
    connection = http.client.HTTPConnection(worker.host, worker.port, timeout=60)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if form:
        headers |= {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
    try:
        connection.request(method, path, b"" if method == "POST" else None, headers)
        response = connection.getresponse()
        return response.status, response.read().decode(), response.headers.get("Location", "")
    except OSError as error:  # it is starting
        return 0, repr(error), ""
    finally:
        connection.close()


@pytest.mark.slow
def test_a_retry_over_http_needs_the_write_token_and_happens_once(open_shop: OpenShop) -> None:
    """The page shows the dead letter to readers, and what became of the retry; command and HTTP retry it once."""
    with open_shop(batching_product_wait_seconds=0.1, web_read_token=READ, web_write_token=WRITE) as shop:
        worker = shop.start_worker()
        until(lambda: asked(worker, "GET", "/counts/", token=READ)[0] == 200, "the worker serves", 60)
        offered, events = product(), [unpriced("", quantity=2) for _ in range(3)]
        for event in events:
            event["product_id"] = offered["product_id"]
        shop.sell(*events)
        found = until(lambda: letters if len(letters := listed(shop)) == 3 else None, "three dead letters")
        path = f"/dead-letters/{found[0]['id']}/"
        assert asked(worker, "GET", path)[0] == 401
        status, html, _ = asked(worker, "GET", path, token=READ)
        assert (status, "not retried yet" in html, "unknown product" in html) == (200, True, True)
        assert [asked(worker, "POST", f"{path}retry", token=token)[0] for token in ("", READ)] == [401, 403]
        assert asked(worker, "POST", "/dead-letters/0:99999/retry", token=WRITE)[0] == 404
        shop.offer(offered)
        until(lambda: shop.db.products.find_one({"_id": offered["product_id"]}), "the product is stored")
        assert json.loads(asked(worker, "POST", f"{path}retry", token=WRITE)[1]) == {
            "retried": 1, "already": 0, "refused": [],
        }  # fmt: skip
        assert asked(worker, "POST", f"{path}retry", token=WRITE, form=True)[::2] == (303, path)
        until(lambda: "it is stored" in asked(worker, "GET", path, token=READ)[1], "the page says that it is stored")
        assert retry(shop, found[0]["id"], found[1]["id"]).startswith("1 retried, 1 had been retried before")
        everything = asked(worker, "POST", "/dead-letters/retry?reason=unknown%20product", token=WRITE)
        assert json.loads(everything[1]) == {"retried": 1, "already": 2, "refused": []}
        until(lambda: all(shop.stored(event) for event in events), "all are stored")
        assert len(shop.read("retries")) == 3
        trace = asked(worker, "GET", f"/trace/?purchase={events[0]['purchase_id']}", token=READ)
        assert (trace[0], "It is stored once" in trace[1]) == (200, True)
        until(lambda: shop.run("verify").status == 0, "all is counted once")
        assert (WRITE in worker.output, "Traceback" in worker.output) == (False, False)
