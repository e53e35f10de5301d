"""Decoding: a good event has the values that were sent; anything else is `Rejected`, with the field's name."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta, timezone
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import faust
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shopflow.errors import Rejected
from shopflow.models import MAX_ID_LENGTH, MAX_QUANTITY, MAX_VALUE, Customer, Product, Purchase, PurchaseCount
from shopflow.shop.decoding import Decoder, check_value, encode, split, struct_of
from shopflow.shop.times import read_time
from shopflow.web.api.forms import Form
from tests.support.fakes import FakeRecord

UTC = timezone.utc
MAX_BYTES = 1 << 20

product = Decoder(Product, "product_id", MAX_BYTES)
customer = Decoder(Customer, "customer_id", MAX_BYTES)
purchase = Decoder(Purchase, "customer_id", MAX_BYTES)

PRODUCT = {"product_id": "m", "name": "Mleko", "type": "mleko", "price": 389, "updated_at": "2026-03-01T12:00:00Z"}
CUSTOMER = {
    "customer_id": "c",
    "first_name": "Żaneta",
    "last_name": "Łęcka",
    "address": "ul. Prosta 1, 00-001 Łódź",
    "city": "Łódź",
    "registered_at": "2026-03-01T12:00:00Z",
}
PURCHASE = {
    "purchase_id": "p",
    "customer_id": "c",
    "product_id": "m",
    "quantity": 2,
    "price": 389,
    "purchased_at": "2026-03-01T13:00:00+01:00",
}
TYPES: list[tuple[Decoder[Any], bytes, dict[str, Any]]] = [
    (product, b"m", PRODUCT),
    (customer, b"c", CUSTOMER),
    (purchase, b"c", PURCHASE),
]
FIELDS = [(decoder, key, event, field) for decoder, key, event in TYPES for field in event]
FIELD_IDS = [f"{next(iter(event))}-{field}" for _, _, event, field in FIELDS]


def raw(**texts: str) -> bytes:
    """A purchase with these fields as raw JSON text, in forms that no encoder would write."""
    fields = {name: json.dumps(value) for name, value in PURCHASE.items()} | texts
    return ("{" + ",".join(f'"{name}":{text}' for name, text in fields.items()) + "}").encode("utf-8", "surrogatepass")


def bought(**changes: Any) -> Purchase:
    event = {**PURCHASE, **changes}
    return purchase(str(event["customer_id"]).encode(), json.dumps(event).encode())


def rejection(key: bytes | None, value: bytes | None, decoder: Decoder[Any] = purchase) -> Rejected:
    with pytest.raises(Rejected) as caught:
        decoder(key, value)
    return caught.value


class TestGood:
    def test_a_product_is_read_as_written(self) -> None:
        event = product(b"m", json.dumps(PRODUCT).encode())
        found = (event.product_id, event.name, event.type, event.price, event.updated_at)
        assert found == ("m", "Mleko", "mleko", 389, datetime(2026, 3, 1, 12, tzinfo=UTC))

    def test_a_customer_is_read_as_written(self) -> None:
        event = customer(b"c", json.dumps(CUSTOMER, ensure_ascii=False).encode())
        assert (event.customer_id, event.first_name, event.last_name) == ("c", "Żaneta", "Łęcka")
        assert (event.address, event.city) == ("ul. Prosta 1, 00-001 Łódź", "Łódź")
        assert event.registered_at == datetime(2026, 3, 1, 12, tzinfo=UTC)

    def test_a_purchase_is_read_as_written_with_its_time_in_utc(self) -> None:
        event = bought()
        assert (event.purchase_id, event.customer_id, event.product_id) == ("p", "c", "m")
        assert (event.quantity, event.price) == (2, 389)
        assert event.purchased_at == datetime(2026, 3, 1, 12, tzinfo=UTC)
        assert event.purchased_at.tzinfo is UTC

    @pytest.mark.parametrize("changes", [{"price": None}, {}])
    def test_a_purchase_may_have_no_price(self, changes: dict[str, Any]) -> None:
        event = {**PURCHASE, **changes}
        if not changes:
            del event["price"]
        assert purchase(b"c", json.dumps(event).encode()).price is None

    @pytest.mark.parametrize("changes", [{"city": None}, {}])
    def test_a_customer_may_have_no_city(self, changes: dict[str, Any]) -> None:
        event = {**CUSTOMER, **changes}
        if not changes:
            del event["city"]
        assert customer(b"c", json.dumps(event).encode()).city is None

    def test_a_price_of_zero_is_a_price(self) -> None:
        assert bought(price=0).price == 0

    @pytest.mark.parametrize(
        "extra",
        ["1", "null", "1e400", "9" * 5000, '{"deep":[[[{}]]]}', '"\\ud83d\\ude00"', '""'],
        ids=["number", "null", "huge float", "huge integer", "object", "emoji", "empty"],
    )
    @pytest.mark.parametrize("time", ['"2026-03-01T13:00:00+01:00"', '"2026-03-01T12:00Z"'], ids=["RFC", "short"])
    def test_fields_not_named_are_ignored(self, extra: str, time: str) -> None:
        """A newer producer may add fields that an older worker doesn't know."""
        assert purchase(b"c", raw(new_field=extra, __faust='{"ns":"x"}', purchased_at=time)) == bought()

    def test_what_a_record_dumps_is_accepted(self) -> None:
        """Another Faust application may send our Records: Faust adds its own field."""
        record = Purchase(**{**PURCHASE, "purchased_at": datetime(2026, 3, 1, 12, tzinfo=UTC)})
        value = record.dumps()
        assert b"__faust" in value
        assert purchase(b"c", value) == bought()

    def test_what_is_encoded_is_decoded(self) -> None:
        assert purchase(b"c", encode(bought())) == bought()
        assert purchase(b"c", encode({**PURCHASE, "purchased_at": datetime(2026, 3, 1, 12, tzinfo=UTC)})) == bought()

    @pytest.mark.parametrize(
        "text", ["a", "a" * MAX_ID_LENGTH, "😀" * MAX_ID_LENGTH, "a\0b", " ", "zażółć/gęślą?#%", "$a.b"]
    )
    def test_any_text_of_1_to_128_characters_is_an_id(self, text: str) -> None:
        assert bought(customer_id=text, purchase_id=text, product_id=text).customer_id == text

    def test_white_space_around_the_value_is_fine(self) -> None:
        assert purchase(b"c", b" \n" + raw() + b"\r\n") == bought()

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("2026-03-01T12:00:00Z", datetime(2026, 3, 1, 12, tzinfo=UTC)),
            ("2026-03-01t12:00:00z", datetime(2026, 3, 1, 12, tzinfo=UTC)),
            ("2026-03-01 12:00:00Z", datetime(2026, 3, 1, 12, tzinfo=UTC)),
            ("2026-03-01T12:00Z", datetime(2026, 3, 1, 12, tzinfo=UTC)),
            ("2026-03-01T14:00+02:00", datetime(2026, 3, 1, 12, tzinfo=UTC)),
            ("2026-03-01T12:00:00-00:00", datetime(2026, 3, 1, 12, tzinfo=UTC)),
            ("2026-03-01T00:30:00+01:00", datetime(2026, 2, 28, 23, 30, tzinfo=UTC)),
            ("2026-03-01T12:00:00.123456Z", datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)),
            ("2024-02-29T12:00:00Z", datetime(2024, 2, 29, 12, tzinfo=UTC)),
            ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
            ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ],
    )
    def test_iso_8601_with_an_offset_becomes_utc(self, text: str, expected: datetime) -> None:
        time = bought(purchased_at=text).purchased_at
        assert time == expected
        assert time.tzinfo is UTC

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 doesn't read these forms of ISO 8601")
    @pytest.mark.parametrize("text", ["20260301T120000Z", "2026-03-01T12Z", "2026-W09-7T12:00Z", "2026-03-01T13:00+01"])
    def test_rarer_forms_of_iso_8601_are_read_too(self, text: str) -> None:
        assert bought(purchased_at=text).purchased_at == datetime(2026, 3, 1, 12, tzinfo=UTC)

    @given(st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=st.timezones()))
    def test_any_time_that_python_writes_is_read_back(self, time: datetime) -> None:
        offset = time.utcoffset()
        assert offset is not None
        fixed = time.replace(tzinfo=timezone(offset))
        assert bought(purchased_at=fixed.isoformat()).purchased_at == fixed

    @given(
        st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31)).map(lambda time: time.replace(microsecond=0)),
        st.from_regex(r"[0-9]{1,18}", fullmatch=True, alphabet=st.characters(codec="ascii")),
        st.sampled_from(["Z", "+02:00", "-11:30"]),
    )
    @example(datetime(2026, 3, 1, 23, 59, 59), "9999999", "Z")
    def test_a_fraction_is_cut_however_it_is_written(self, time: datetime, digits: str, offset: str) -> None:
        """A point and a comma, RFC 3339 and ISO 8601, plain digits and escapes: one time, in the topic and in a form.

        Rounded, the last moment of a day would be in the next one.
        """
        expected = read_time(time.isoformat() + offset) + timedelta(microseconds=int(f"{digits[:6]:0<6}"))
        texts = [f"{time.isoformat()}{mark}{digits}{offset}" for mark in ".,"]
        texts += [texts[0].replace("T", " "), texts[0].replace("T", "t")]
        assert {bought(purchased_at=text).purchased_at for text in texts} == {expected}
        escaped = "".join(f"\\u{ord(letter):04x}" for letter in texts[0])
        assert purchase(b"c", raw(purchased_at=f'"{escaped}"')).purchased_at == expected
        form = Form(
            Purchase, id_field="purchase_id", key_field="customer_id", made={}, max_bytes=MAX_BYTES
        )  # of the web server
        for text in texts:
            ((key, value),) = form.check({**PURCHASE, "purchased_at": text}).records
            assert purchase(key, value).purchased_at == expected

    @given(st.integers(0, 253_402_300_799_999))
    def test_a_deletion_has_the_time_of_its_record_to_the_millisecond(self, milliseconds: int) -> None:
        """Milliseconds as a float of seconds would be rounded in later centuries."""
        deleted = split([FakeRecord(b"m", None, timestamp=milliseconds)], product, tombstones=True).deletions[0]
        assert (deleted.at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1) == milliseconds
        assert deleted.at.microsecond % 1000 == 0

    @given(
        quantity=st.integers(1, MAX_QUANTITY),
        price=st.none() | st.integers(0, 1000),
        id_=st.text(st.characters(codec="utf-8"), min_size=1, max_size=MAX_ID_LENGTH),
    )
    def test_any_good_purchase_is_accepted(self, quantity: int, price: int | None, id_: str) -> None:
        event = bought(quantity=quantity, price=price, customer_id=id_, purchase_id=id_, product_id=id_)
        assert (event.quantity, event.price) == (quantity, price)
        assert event.purchase_id == event.customer_id == event.product_id == id_


class TestNotJson:
    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b" ",
            b"{",
            b"purchase",
            b"\x00",
            b"\x00\x00\x00\x00\x01{}",
            b"\xef\xbb\xbf" + raw(),
            raw().decode().encode("utf-16"),
            raw().decode().encode("utf-32"),
            raw()[:-1],
            raw() + b"x",
            raw() + raw(),
            raw(quantity="NaN"),
            raw(price="NaN"),
            raw(price="Infinity"),
            raw(price="-Infinity"),
            raw(price="01"),
            raw(price="+1"),
            raw(price="0x10"),
            raw(price="1_000"),
            raw(purchase_id='"\\ud800"'),
            raw(purchase_id='"\\udc00x"'),
            raw(purchase_id='"\ud800"'),
            raw(purchase_id='"a\nb"'),
            raw(purchase_id='"\\x"'),
            raw(purchase_id="'p'"),
            raw(purchased_at='"\\ud800"'),
            raw(extra="NaN"),
            raw(extra="[}"),
            raw().replace(b'"p"', b'"\xff"'),
            raw().replace(b"{", b"{/* */", 1),
            b'{"a":' * 100_000,
            raw(extra="[" * 500_000 + "]" * 500_000),
            raw(extra="[" * 500_000 + "]" * 500_000, purchased_at='"2026-03-01T12:00Z"'),
        ],
        ids=lambda value: repr(value[:24]),
    )
    def test_what_is_not_json_in_utf_8_is_rejected(self, value: bytes) -> None:
        rejected = rejection(b"c", value)
        assert rejected.reason == "not JSON"
        assert rejected.detail

    def test_a_value_nested_too_deep_is_rejected_wherever_it_stands(self) -> None:
        assert rejection(b"c", b"[" * 100_000).reason in {"not JSON", "invalid event"}
        assert rejection(b"c", raw(price="[" * 100_000 + "]" * 100_000)).reason in {"not JSON", "invalid event"}


class TestNoEvent:
    def test_no_value_is_rejected(self) -> None:
        """The agent handles tombstones before it decodes."""
        assert rejection(b"c", None).reason == "no value"

    def test_a_value_of_several_mb_is_rejected_unread(self) -> None:
        rejected = rejection(b"c", raw(extra='"' + "x" * (3 << 20) + '"'))
        assert rejected.reason == "too large"
        assert str(MAX_BYTES) in rejected.detail

    def test_the_limit_of_the_size_is_inclusive(self) -> None:
        value = raw()
        assert Decoder(Purchase, "customer_id", len(value))(b"c", value).purchase_id == "p"
        assert rejection(b"c", value, Decoder(Purchase, "customer_id", len(value) - 1)).reason == "too large"

    @pytest.mark.parametrize("value", [b"null", b"true", b"1", b'"text"', b"[]", b"[1]", b'["p","c","m",1,1]', b"1.5"])
    def test_json_that_is_no_object_is_rejected(self, value: bytes) -> None:
        assert rejection(b"c", value).reason == "invalid event"

    @pytest.mark.parametrize(("decoder", "key", "event", "field"), FIELDS, ids=FIELD_IDS)
    def test_a_missing_field_is_rejected_by_name(
        self, decoder: Decoder[Any], key: bytes, event: dict[str, Any], field: str
    ) -> None:
        value = json.dumps({name: value for name, value in event.items() if name != field}).encode()
        if field in {"city", "price"} and decoder is not product:
            assert getattr(decoder(key, value), field) is None
        else:
            rejected = rejection(key, value, decoder)
            assert rejected.reason == "invalid event"
            assert f"`{field}`" in rejected.detail

    @pytest.mark.parametrize("wrong", [{}, [], True, 1.5, "text", 7, None], ids=repr)
    @pytest.mark.parametrize(("decoder", "key", "event", "field"), FIELDS, ids=FIELD_IDS)
    def test_a_wrong_type_is_rejected_by_name(
        self, decoder: Decoder[Any], key: bytes, event: dict[str, Any], field: str, wrong: Any
    ) -> None:
        legal = isinstance(event[field], str) and isinstance(wrong, str) and not field.endswith(("_at", "_id"))
        legal |= isinstance(event[field], int) and type(wrong) is int
        legal |= wrong is None and field in {"city", "price"} and decoder is not product
        legal |= field in {"purchase_id", "product_id"} and decoder is purchase and wrong == "text"
        value = json.dumps({**event, field: wrong}).encode()
        if legal:
            assert getattr(decoder(key, value), field) == wrong
        else:
            rejected = rejection(key, value, decoder)
            assert rejected.reason in {"invalid event", "wrong key"}
            assert rejected.detail.startswith(field)


class TestBadField:
    @pytest.mark.parametrize("field", ["purchase_id", "customer_id", "product_id"])
    @pytest.mark.parametrize(
        "text", ["", "a" * 129, "😀" * 129, "a" * 100_000], ids=["empty", "129", "129 wide", "long"]
    )
    def test_an_id_is_1_to_128_characters(self, field: str, text: str) -> None:
        rejected = rejection(text.encode(), json.dumps({**PURCHASE, field: text}).encode())
        assert rejected.reason == "invalid event"
        assert rejected.detail.startswith(f"{field}: Expected `str` of length")

    @pytest.mark.parametrize(
        "text",
        ["0", "-1", "1.0", "1e2", "1E0", "1.5", "1e400", "-0", "true", "null", '"1"', "9" * 25, "9" * 5000, "[1]"],
    )
    def test_a_quantity_is_a_whole_number_of_at_least_1(self, text: str) -> None:
        rejected = rejection(b"c", raw(quantity=text))
        assert rejected.reason == "invalid event"
        assert rejected.detail.startswith("quantity: ")

    @pytest.mark.parametrize(
        "text",
        ["-1", "10.0", "-0.0", "1e2", "3.89", "1e400", "true", '"389"', "9" * 25, "9" * 5000, "{}", str(MAX_VALUE + 1)],
    )
    @pytest.mark.parametrize("time", ['"2026-03-01T13:00:00+01:00"', '"2026-03-01T12:00Z"'], ids=["RFC", "short"])
    def test_a_price_is_a_whole_number_of_grosze_never_a_float(self, text: str, time: str) -> None:
        rejected = rejection(b"c", raw(price=text, purchased_at=time))
        assert rejected.reason == "invalid event"
        assert rejected.detail.startswith("price: ")

    @pytest.mark.parametrize("text", ["null", "-1", "10.0", "true"])
    def test_a_product_has_a_price(self, text: str) -> None:
        value = json.dumps(PRODUCT).replace("389", text).encode()
        assert rejection(b"m", value, product).detail.startswith("price: ")

    @pytest.mark.parametrize(
        "text",
        [
            '""',
            '"yesterday"',
            '"2026-03-01"',
            '"12:00:00Z"',
            '"2026-03-01T12:00:00"',
            '"2026-03-01T12:00"',
            '"2026-02-30T12:00:00Z"',
            '"2026-13-01T12:00:00Z"',
            '"2026-03-01T12:60:00Z"',
            '"2016-12-31T23:59:60Z"',
            '"0000-01-01T00:00:00Z"',
            '"0001-01-01T00:00:00+14:00"',
            '"0001-01-01T00:00+14:00"',
            '"9999-12-31T23:59:59-14:00"',
            '"10000-01-01T00:00:00Z"',
            '"+10000-01-01T00:00:00Z"',
            '"-0001-01-01T00:00:00Z"',
            '"2026-03-01T12:00:00+25:00"',
            '"2026-03-01T12:00:00 Europe/Warsaw"',
            '"2026-03-01T12:00:00Z\\u0000"',
            '"2026-03-01T12:00Z\\u0000x"',
            "1772366400",
            "1772366400.5",
            "null",
            "true",
            '"' + "2" * 10_000 + '"',
        ],
        ids=lambda text: text[:30],
    )
    def test_a_time_has_a_date_a_time_and_an_offset(self, text: str) -> None:
        """A leap second is rejected too: neither Python nor MongoDB can store it."""
        rejected = rejection(b"c", raw(purchased_at=text))
        assert rejected.reason == "invalid event"
        assert rejected.detail.startswith("purchased_at")
        assert len(rejected.detail) < 200

    def test_the_field_at_fault_is_named_not_a_time_that_is_only_unusual(self) -> None:
        short = '"2026-03-01T12:00Z"'
        assert rejection(b"c", raw(purchased_at=short, quantity="0")).detail.startswith("quantity: ")
        first = b'{"purchased_at":"2026-03-01T12:00Z",' + raw(quantity="-5").replace(b',"purchased_at":', b',"x":')[1:]
        assert rejection(b"c", first).detail.startswith("quantity: ")
        assert (
            "`quantity`"
            in rejection(
                b"c", b'{"purchased_at":"2026-03-01T12:00Z","customer_id":"c","purchase_id":"p","product_id":"m"}'
            ).detail
        )

    def test_a_purchase_whose_value_would_not_stay_exact_is_rejected(self) -> None:
        assert bought(quantity=1, price=MAX_VALUE).price == MAX_VALUE
        assert rejection(b"c", raw(quantity="2", price=str(MAX_VALUE))).reason == "invalid event"

    def test_a_price_added_later_is_held_to_the_same_limit(self) -> None:
        check_value(1, MAX_VALUE)
        check_value(MAX_QUANTITY, None)
        with pytest.raises(Rejected, match="invalid event"):
            check_value(MAX_QUANTITY, MAX_VALUE)

    def test_sums_of_values_stay_exact_in_mongodb(self) -> None:
        """MongoDB's integers hold the sum of nine million of the largest purchases."""
        assert MAX_VALUE * 9_000_000 < 2**63


class TestDuplicateNames:
    def test_the_last_one_counts(self) -> None:
        assert purchase(b"c", b'{"quantity":7,' + raw()[1:]) == bought()
        assert purchase(b"c", b'{"price":7,' + raw(purchased_at='"2026-03-01T12:00Z"')[1:]) == bought()

    def test_a_bad_one_is_rejected_wherever_it_stands(self) -> None:
        assert rejection(b"c", b'{"quantity":-1,' + raw()[1:]).detail.startswith("quantity: ")
        assert rejection(b"c", raw()[:-1] + b',"quantity":-1}').detail.startswith("quantity: ")


class TestKey:
    @pytest.mark.parametrize(
        "key", [None, b"", b"C", b"c ", b"p", b'"c"', b"c\0", b"\xff", b"\xef\xbb\xbfc", "c".encode("utf-16")]
    )
    def test_a_key_that_is_not_the_id_is_rejected(self, key: bytes | None) -> None:
        """The key decides the partition, and so the order of events and the worker that counts them."""
        rejected = rejection(key, raw())
        assert rejected.reason == "wrong key"
        assert "customer_id is 'c'" in rejected.detail

    def test_the_purchase_id_is_not_the_key(self) -> None:
        assert rejection(b"p", raw()).reason == "wrong key"

    def test_a_key_of_a_megabyte_is_not_repeated_in_the_reason(self) -> None:
        """The reason is a header of the dead letter, which also has the key itself."""
        assert len(rejection(b"\xff" * 1_000_000, raw()).detail) < 2_000

    def test_a_key_is_compared_as_utf_8(self) -> None:
        assert bought(customer_id="żółw").customer_id == "żółw"
        assert rejection("żółw".encode("iso-8859-2"), json.dumps({**PURCHASE, "customer_id": "żółw"}).encode())


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={name: st.just(value) | JSON for name, value in {**PRODUCT, **CUSTOMER, **PURCHASE}.items()},
)
BYTES = st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode())
BYTES |= NEARLY.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
BYTES |= st.tuples(st.integers(0, 150), st.binary(max_size=4)).map(
    lambda cut: raw()[: cut[0]] + cut[1] + raw()[cut[0] + 1 :]
)


@pytest.mark.parametrize(
    ("decoder", "key"), [(decoder, key) for decoder, key, _ in TYPES], ids=["product", "customer", "purchase"]
)
@given(value=st.none() | BYTES)
def test_any_bytes_are_an_event_or_rejected_and_nothing_else(
    decoder: Decoder[Any], key: bytes, value: bytes | None
) -> None:
    """Any other error would stop the partition."""
    try:
        event = decoder(key, value)
    except Rejected as rejected:
        assert rejected.reason in {"no value", "too large", "not JSON", "invalid event", "wrong key"}  # noqa: PT017
        return
    for name in ("updated_at", "registered_at", "purchased_at"):
        assert getattr(event, name, datetime.now(UTC)).utcoffset() == timedelta(0)
    assert decoder(key, encode(event)) == event


RECORDS: list[type[faust.Record]] = [Product, Customer, Purchase, PurchaseCount]


class TestOneSchema:
    @pytest.mark.parametrize("record", RECORDS)
    def test_the_struct_has_the_records_fields(self, record: type[faust.Record]) -> None:
        fields = msgspec.structs.fields(struct_of(record))  # type: ignore[arg-type]
        descriptors = record._options.descriptors
        assert [field.name for field in fields] == list(descriptors)
        for field in fields:
            assert field.required == descriptors[field.name].required
            if not field.required:
                assert field.default == descriptors[field.name].default

    @pytest.mark.parametrize("record", RECORDS)
    def test_the_struct_has_the_records_types_and_limits(self, record: type[faust.Record]) -> None:
        hints = get_type_hints(record)
        structs = get_type_hints(struct_of(record), include_extras=True)
        for name, field in record._options.descriptors.items():
            kinds = set(get_args(hints[name])) or {hints[name]}
            found, limits = taken_apart(structs[name])
            assert found == kinds
            expected = {
                "ge": getattr(field, "min_value", None),
                "le": getattr(field, "max_value", None),
                "min_length": getattr(field, "min_length", None),
                "max_length": getattr(field, "max_length", None),
                "tz": True if datetime in kinds else None,
            }
            assert limits == {limit: value for limit, value in expected.items() if value is not None}

    def test_the_contracts_fields(self) -> None:
        """Other programs rely on these names."""
        assert set(Product._options.descriptors) == {*PRODUCT, "stock", "stock_limit"}
        assert Product._options.optionalset == {"stock", "stock_limit"}
        assert set(Customer._options.descriptors) == set(CUSTOMER)
        assert set(Purchase._options.descriptors) == set(PURCHASE)
        assert Customer._options.optionalset == {"city"}
        assert Purchase._options.optionalset == {"price"}
        assert {"purchases", "items", "spent"} <= set(PurchaseCount._options.descriptors)

    def test_the_record_refuses_what_the_struct_refuses(self) -> None:
        times = {"purchased_at": datetime(2026, 3, 1, tzinfo=UTC)}
        assert Purchase(**{**PURCHASE, **times}).is_valid()
        for changes in ({"quantity": 0}, {"customer_id": ""}, {"product_id": "a" * 129}):
            with pytest.raises(faust.exceptions.ValidationError):
                Purchase(**{**PURCHASE, **times, **changes})


def taken_apart(hint: Any) -> tuple[set[Any], dict[str, Any]]:
    """The types in the hint of a struct's field, and its limits."""
    kinds: set[Any] = set()
    limits: dict[str, Any] = {}
    pending = [hint]
    while pending:
        part = pending.pop()
        if metas := getattr(part, "__metadata__", ()):
            limits |= {
                name: value
                for meta in metas
                for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern", "tz")
                if (value := getattr(meta, name)) is not None
            }
            pending.append(part.__origin__)
        elif get_origin(part) is not None:
            pending += get_args(part)
        else:
            kinds.add(NoneType if part is None else part)
    return kinds, limits


def test_a_rejected_record_is_skipped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Other applications have no dead letters. Their batch goes on."""
    good = b'{"purchase_id":"p","customer_id":"c","product_id":"m","quantity":1,"purchased_at":"2026-01-01T00:00:00Z"}'
    records = [FakeRecord(b"c", value, offset) for offset, value in enumerate([good, b"?", None, good])]
    assert [event.purchase_id for event in purchase.events(records)] == ["p", "p"]
    said = [record.getMessage().partition(" skipped: ") for record in caplog.records]
    assert [(origin, why[:8]) for origin, _, why in said] == [
        ("shop.purchases:0:1", "not JSON"),
        ("shop.purchases:0:2", "no value"),
    ]
