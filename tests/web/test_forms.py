"""The check of events that a client sends: every problem is named, and what passes is accepted by the agents."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shopflow.errors import Rejected
from shopflow.models import MAX_VALUE, Product, Purchase
from shopflow.shop.decoding import Decoder
from shopflow.web.api.forms import Form, Problem
from tests.support.documents import NOON

FORM = Form(
    Purchase,
    id_field="purchase_id",
    key_field="customer_id",
    made={"purchase_id": lambda: "made", "purchased_at": lambda: NOON},
    max_bytes=1_000,
)
ACCEPT = Decoder(Purchase, "customer_id", 1_000)
WHOLE = {
    "purchase_id": "b",
    "customer_id": "anna",
    "product_id": "mleko",
    "quantity": 2,
    "price": 399,
    "purchased_at": "2026-05-01T12:00:00Z",
}


def problems(sent: Any) -> dict[str, str]:
    """What is wrong, by field."""
    return {problem.field: problem.message for problem in FORM.check(sent).problems}


def value(sent: Any) -> Any:
    """What goes to Kafka for the one event that was sent."""
    ((_, found),) = FORM.check(sent).records
    return json.loads(found)


def test_a_whole_event_is_passed_on_with_its_key() -> None:
    """The client gets the purchase's id back. The Kafka key is the customer's id, as the contract says."""
    checked = FORM.check(WHOLE)
    assert checked.problems == []
    ((key, found),) = checked.records
    assert (checked.ids, key, json.loads(found)) == (["b"], b"anna", WHOLE)


def test_what_may_be_left_out_is_made() -> None:
    """The worker adds `purchase_id` and `purchased_at`. It adds no `price`: the agents find the price in force."""
    sent = {"customer_id": "anna", "product_id": "mleko", "quantity": 2}
    assert value(sent) == {**sent, "purchase_id": "made", "purchased_at": "2026-05-01T12:00:00Z"}


def test_only_known_fields_are_passed_on() -> None:
    """A newer client can talk to an older worker, and no client can add fields to the events in Kafka."""
    assert value({**WHOLE, "note": "x", "$set": {"a": 1}}) == WHOLE
    assert value({**WHOLE, "price": None}) == {name: one for name, one in WHOLE.items() if name != "price"}


def test_a_whole_number_may_be_written_with_a_point() -> None:
    """JSON Schema counts 2.0 as an integer. Kafka gets 2."""
    assert FORM.check({**WHOLE, "quantity": 2.0}).records == FORM.check(WHOLE).records


def test_every_problem_of_every_event_is_named() -> None:
    """One answer names every wrong field of every event, so that the client can mend all at once."""
    assert problems([WHOLE, {"quantity": 0, "price": "4", "purchased_at": "soon"}, 7]) == {
        "[1].customer_id": "is missing",
        "[1].product_id": "is missing",
        "[1].quantity": "Expected `int` >= 1",
        "[1].price": "Expected `int | null`, got `str`",
        "[1].purchased_at": "Invalid RFC3339 encoded datetime",
        "[2]": "must be an object with the fields of an event",
    }
    assert set(problems({**WHOLE, "quantity": 1.5, "customer_id": ""})) == {"quantity", "customer_id"}


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("purchase_id", ""),
        ("purchase_id", "x" * 129),
        ("purchase_id", None),
        ("customer_id", {"$gt": ""}),
        ("product_id", ["a"]),
        ("quantity", True),
        ("quantity", 10**9 + 1),
        ("quantity", 10**30),
        ("price", -1),
        ("price", 3.99),
        ("price", MAX_VALUE),  # times two
        ("purchased_at", None),
        ("purchased_at", 1),
        ("purchased_at", "2026-05-01T12:00:00"),
        ("purchased_at", "2026-05-01"),
        ("purchased_at", "0001-01-01T00:00:00+01:00"),
        ("purchased_at", "2026-05-01T12:00:00+00:00\0"),
    ],
)
def test_a_wrong_value_is_named_by_its_field(field: str, wrong: Any) -> None:
    """The answer names the wrong field, and no other."""
    assert list(problems({**WHOLE, field: wrong})) == [field]


@pytest.mark.parametrize(
    "time", ["2026-05-01T14:00:00+02:00", "2026-05-01T12:00Z", "2026-05-01 12:00:00z", "2026-05-01T12:00:00.000+00:00"]
)
def test_times_are_read_as_those_in_kafka_and_passed_on_in_utc(time: str) -> None:
    """Every ISO 8601 time with an offset is accepted. Kafka gets it in UTC."""
    assert value({**WHOLE, "purchased_at": time})["purchased_at"] == "2026-05-01T12:00:00Z"


def test_an_event_that_the_agents_find_too_large_is_refused() -> None:
    """A product larger than `max_bytes` would become a dead letter, so the client gets a problem instead."""
    form = Form(Product, id_field="product_id", key_field="product_id", made={"updated_at": lambda: NOON}, max_bytes=99)
    sent = {"product_id": "p", "name": "x" * 99, "type": "t", "price": 1}
    ((problem,), records) = (checked := form.check([sent])).problems, checked.records
    assert problem.field == "[0].(the event)"
    assert "99 are accepted" in problem.message
    assert records == []
    assert isinstance(problem, Problem)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_EVENTS = st.fixed_dictionaries({}, optional={name: st.just(one) | _VALUES for name, one in WHOLE.items()})


@given(st.lists(_EVENTS | _VALUES, max_size=4) | _EVENTS)
def test_what_passes_is_never_a_dead_letter_and_what_does_not_is_named(sent: Any) -> None:
    """For any JSON, each event is either accepted by the agents' decoder, or has a problem with a message."""
    checked = FORM.check(msgspec.json.decode(msgspec.json.encode(sent)))
    for key, found in checked.records:
        try:
            ACCEPT(key, found)
        except Rejected as error:
            pytest.fail(f"{found!r}: {error}")
    count = len(sent) if isinstance(sent, list) else 1
    bad = {problem.field.partition("]")[0] if isinstance(sent, list) else "" for problem in checked.problems}
    assert len(checked.records) + len(bad) == count
    assert all(problem.message for problem in checked.problems)
