"""`verify` on a shop whose old purchases Kafka has removed: it distinguishes old purchases from lost ones."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.conftest import OpenShop
from tests.support.shop import PARTITIONS, Outcome, Shop, Worker, purchase, until

pytestmark = pytest.mark.servers

CHECK = "purchases in Kafka and tables"


@pytest.fixture(scope="module")
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop whose purchases are kept for a day."""
    with open_shop(topics_retention_hours=24) as opened:
        yield opened


@pytest.fixture(scope="module")
def worker(shop: Shop) -> Worker:
    """A worker that has counted ten purchases of one customer, three of them in a transaction."""
    worker = shop.start_worker().ready()
    shop.sell(*(purchase("anna") for _ in range(7)))
    shop.sell_in_transaction(*(purchase("anna") for _ in range(3)), commit=True)
    until(lambda: worker.count("anna")[1].get("purchases") == 10, "all are counted")
    return worker


def said(outcome: Outcome) -> str:
    """The detail of the check of the purchases."""
    (line,) = [line for line in outcome.stdout.splitlines() if CHECK in line]
    return line


def test_purchases_that_are_old_are_no_loss(shop: Shop, worker: Worker) -> None:
    """`verify` agrees, says from which offset on it can judge, and still finds purchases that MongoDB lacks."""
    (partition,) = {record.partition for record in shop.read("purchases")}
    shop.remove("purchases", partition, 5)
    outcome = shop.run("verify", "--deep")
    assert outcome.status == 0, outcome
    assert said(outcome) == (
        f"ok  {CHECK}: 10 = 10 counted + 0 repeated + 0 rejected; "
        f"5 of them are in Kafka, from offset 5 of partition {partition} on"
    )
    document = shop.db.purchases.find_one_and_delete({"source.offset": 2})
    try:
        assert shop.run("verify").status == 1
    finally:
        shop.db.purchases.insert_one(document)


def test_purchases_that_were_removed_unread_are_a_loss(shop: Shop, worker: Worker) -> None:
    """`verify` reports them before the next worker starts and afterwards. The worker logs them once."""
    worker.stop()
    end = shop.read("purchases")[-1].offset + 1
    sent = shop.sell(*(purchase("anna") for _ in range(5)))
    shop.remove("purchases", sent[0].partition, sent[3].offset)
    lost = sent[3].offset - end  # the marker of the transaction is among these offsets
    outcome = shop.run("verify")
    assert outcome.status == 1
    assert f"Kafka removed {lost} offsets before a worker read them" in said(outcome)
    again = shop.start_worker().ready()
    until(lambda: again.count("anna")[1].get("purchases") == 12, "the two that are left are counted")
    shop.drain()
    outcome = shop.run("verify")
    assert outcome.status == 1
    assert re.search(
        rf"NOT {CHECK}: 1 differ: partition \d: Kafka removed {lost} offsets before a worker", outcome.stdout
    )
    assert [line for line in outcome.stdout.splitlines() if line.startswith("NOT")] == [said(outcome)]
    assert again.output.count("before a worker read them; they are lost") == 1


def test_a_loss_can_be_accepted_and_is_still_told(shop: Shop, worker: Worker) -> None:
    """Only one that is named and confirmed. A further loss is told again, and a replay begins without any."""
    line = said(shop.run("verify"))
    found = re.search(r"Kafka removed (\d+) offsets .*verify --accept-loss (\S+:\d)`", line)
    assert found, line
    lost, place = found.groups()
    other = f"{place[:-1]}{(int(place[-1]) + 1) % PARTITIONS}"
    for arguments, why in (
        ([place], "nothing was changed: answer the question with y, or say --yes"),
        ([other, "--yes"], "Kafka removed nothing before a worker read it"),
        ([f"{place}9", "--yes"], "there is no partition"),
        ([shop.topic("products") + ":0", "--yes"], f"is not {shop.topic('purchases')}:PARTITION"),
    ):
        refused = shop.run("verify", "--accept-loss", *arguments)
        assert (refused.status, why in refused.stderr) == (2, True), refused
    assert shop.run("verify").status == 1
    accepted = shop.run("verify", "--accept-loss", place, "--yes")
    assert accepted.status == 0, accepted
    assert f"Kafka removed {lost} offsets of {place[:-2]}[{place[-1]}] before a worker read them" in accepted.stderr
    text = f"{lost} offsets that Kafka removed before a worker read them were accepted as lost"
    assert text in said(accepted)
    assert shop.run("verify", "--deep").status == 0
    assert shop.run("dead-letters").status == 0  # the mark is among those of retries
