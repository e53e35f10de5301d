"""The events and the table's value: `faust.Record`s, the one schema, and the fast decoders made from them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from operator import attrgetter
from types import NoneType
from typing import Annotated, Any, Generic, Optional, TypeVar, cast, get_args, get_type_hints

import faust
import msgspec
from faust.models.fields import DatetimeField, IntegerField, StringField

from .errors import Rejected

__all__ = [
    "MAX_VALUE",
    "Customer",
    "CustomerActivity",
    "Decoder",
    "Event",
    "PartitionTotals",
    "Product",
    "Purchase",
    "PurchaseCount",
    "check_value",
    "encode",
    "read_time",
    "struct_of",
]

log = logging.getLogger(__name__)

#: Largest price and value in grosze (ten billion zł). MongoDB and JSON readers keep sums of such values exact.
MAX_VALUE = 10**12
MAX_QUANTITY = 10**9
MAX_ID_LENGTH = 128

R = TypeVar("R", bound=faust.Record)


def _identifier() -> Any:
    return StringField(min_length=1, max_length=MAX_ID_LENGTH)


def _price() -> Any:
    return IntegerField(min_value=0, max_value=MAX_VALUE)


def _units() -> Any:
    return IntegerField(min_value=0, max_value=MAX_QUANTITY, required=False, default=None)


class Product(faust.Record, serializer="json", validation=True, coerce=True):
    """A product as offered from `updated_at` on. Topic `products`, key `product_id`.

    `stock` is what was there at `updated_at`; without it the product carries none. When no more than `stock_limit` is
    left, an alert is sent; without it, when nothing is.
    """

    product_id: str = _identifier()
    name: str
    type: str
    price: int = _price()  # grosze
    updated_at: datetime
    stock: Optional[int] = _units()  # noqa: UP045 - Faust's fields don't know `str | None` on Python 3.10
    stock_limit: Optional[int] = _units()  # noqa: UP045


class Customer(faust.Record, serializer="json", validation=True, coerce=True):
    """A customer. Topic `customers`, key `customer_id`."""

    customer_id: str = _identifier()
    first_name: str
    last_name: str
    address: str
    registered_at: datetime
    city: Optional[str] = None  # noqa: UP045


class Purchase(faust.Record, serializer="json", validation=True, coerce=True):
    """A customer bought a product. Topic `purchases`, key `customer_id`.

    Without `price` (grosze, for one) the product's price in force at `purchased_at` counts.
    """

    purchase_id: str = _identifier()
    customer_id: str = _identifier()
    product_id: str = _identifier()
    quantity: int = IntegerField(min_value=1, max_value=MAX_QUANTITY)
    purchased_at: datetime
    price: Optional[int] = IntegerField(  # noqa: UP045
        min_value=0, max_value=MAX_VALUE, required=False, default=None
    )


class PurchaseCount(faust.Record, serializer="json"):
    """What one customer bought so far: the value of table `purchase_counts`.

    `offset` is that of the last purchase counted: one at or below it is a redelivery. `first` is that of the first.
    `era` says how often the tables were rebuilt from the purchases: a count of an earlier era than its partition's sums
    counts no more.
    """

    purchases: int = 0
    items: int = 0
    spent: int = 0  # grosze
    first: int = -1
    offset: int = -1
    era: int = 0


class PartitionTotals(faust.Record, serializer="json"):
    """The sums over one partition of the purchases, up to and including `offset`.

    Every record of the topic is one of `purchases`, `duplicates` (the same purchase sent again) and `rejected`.
    `settled` is the end of the batch that these sums came with. It is before `offset` when a batch that was cut off is
    done again in smaller ones: the sums then reach further than the customers that stand beside them in the changelog.
    """

    customers: int = 0
    purchases: int = 0
    items: int = 0
    spent: int = 0  # grosze
    duplicates: int = 0
    rejected: int = 0
    offset: int = -1
    settled: int = -1
    era: int = 0


class CustomerActivity(faust.Record, serializer="json"):
    """What one customer bought so far, for other systems. Topic `customer-activity`, key `customer_id`.

    `offset` is that of the last purchase counted, in the partition of the purchases with this record's number: of two
    records of a customer the one with the larger offset is the later. After a `replay` offsets begin anew.
    """

    customer_id: str
    purchases: int
    items: int
    spent: int  # grosze
    offset: int


Event = Product | Customer | Purchase

encode = msgspec.json.Encoder().encode


def struct_of(record: type[R]) -> type[R]:
    """A `msgspec.Struct` with the fields, limits and defaults of the Record; decoding one takes 0.4 us, the Record 24.

    Typed as the Record itself, since it has the same attributes.
    """
    return _struct(record, {})


def _struct(record: type[R], instead: dict[str, Any]) -> type[R]:
    hints = get_type_hints(record)
    fields = []
    for name, field in record._options.descriptors.items():
        hint = instead.get(name) or _limited(hints[name], field)
        fields.append((name, hint) if field.required else (name, hint, field.default))
    return cast("type[R]", msgspec.defstruct(record.__name__, fields, kw_only=True, gc=False))


def _limited(hint: Any, field: Any) -> Any:
    """The type with the field's limits; those of an optional one are the limits of what it may hold."""
    limits = _limits(field)
    if limits is None:
        return hint
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    return Optional[Annotated[kinds[0], limits]] if kinds else Annotated[hint, limits]  # noqa: UP045


def _limits(field: Any) -> msgspec.Meta | None:
    if isinstance(field, StringField) and field.max_length:
        return msgspec.Meta(min_length=field.min_length, max_length=field.max_length)
    if isinstance(field, IntegerField):
        return msgspec.Meta(ge=field.min_value, le=field.max_value)
    if isinstance(field, DatetimeField):
        return msgspec.Meta(tz=True)
    return None


class Decoder(Generic[R]):
    """Decodes and checks the events of one topic: what it returns can be stored, what it raises is dead-lettered.

    Arguments:
        record: The schema.
        key: The field that must equal the record's key.
        max_bytes: The largest value that is accepted.
    """

    def __init__(self, record: type[R], key: str, max_bytes: int) -> None:
        self._times = [name for name, hint in get_type_hints(record).items() if hint is datetime]
        self._struct = struct_of(record)
        self._decode = msgspec.json.Decoder(self._struct).decode
        self._decode_loosely = msgspec.json.Decoder(_struct(record, dict.fromkeys(self._times, str))).decode
        self._key = key
        self._id = attrgetter(key)
        self._has_value = record is Purchase
        self._max_bytes = max_bytes

    def __call__(self, key: bytes | None, value: bytes | None) -> R:
        """The event in these bytes, its times in UTC.

        Raises:
            Rejected: It is not one; says what is wrong with which field.
        """
        if value is None:
            raise Rejected("no value", "the record has a key only")
        if len(value) > self._max_bytes:
            raise Rejected("too large", f"{len(value)} bytes, {self._max_bytes} are accepted")
        try:
            event = self._decode(value)
        except msgspec.ValidationError as error:
            event = self._decode_leniently(value, error)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Rejected("not JSON", str(error)) from error
        for field in self._times:
            if getattr(event, field).tzinfo is not timezone.utc:
                self._to_utc(event, field)
        name: str = self._id(event)
        if key != name.encode():
            raise Rejected("wrong key", f"{self._key} is {name!r}, the key is {_short(key)}")
        if self._has_value:
            check_value(event.quantity, event.price)
        return event

    def events(self, records: Iterable[Any]) -> Iterator[R]:
        """The events among Kafka's records. What is none is left out, and logged: shopflow's worker dead-letters it."""
        for record in records:
            try:
                yield self(record.key, record.value)
            except Rejected as error:
                log.warning("%s:%d:%d left out: %s", record.topic, record.partition, record.offset, error)

    def _to_utc(self, event: R, field: str) -> None:
        time: datetime = getattr(event, field)
        try:
            setattr(event, field, time.astimezone(timezone.utc))
        except OverflowError as error:
            raise Rejected("invalid event", f"{field} is out of range: {time.isoformat()}") from error

    def _decode_leniently(self, value: bytes, error: msgspec.ValidationError) -> R:
        """Once more, with ISO 8601 as Python reads it: times without seconds, for instance, are not RFC 3339."""
        try:
            loose = self._decode_loosely(value)
        except msgspec.ValidationError as other:  # not the time is at fault, or not only
            raise Rejected("invalid event", _plain(error if _place(other) in self._times else other)) from other
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as other:
            raise Rejected("not JSON", str(other)) from other
        fields = msgspec.structs.asdict(loose)
        try:
            for name in self._times:
                fields[name] = read_time(fields[name])
            return msgspec.convert(fields, self._struct)
        except (msgspec.ValidationError, ValueError):
            raise Rejected("invalid event", _plain(error)) from error


def check_id(key: bytes | None) -> str:
    """The id that a record's key is.

    Raises:
        Rejected: It is none.
    """
    try:
        name = (key or b"").decode()
    except UnicodeDecodeError as error:
        raise Rejected("wrong key", f"not UTF-8: {key!r}") from error
    if not 1 <= len(name) <= MAX_ID_LENGTH:
        raise Rejected("wrong key", f"an id has 1 to {MAX_ID_LENGTH} characters, the key has {len(name)}")
    return name


def check_value(quantity: int, price: int | None) -> None:
    """Refuse a purchase whose value would not stay exact in sums.

    Raises:
        Rejected: It is worth more than `MAX_VALUE`.
    """
    if price is not None and quantity * price > MAX_VALUE:
        raise Rejected("invalid event", f"quantity times price is over {MAX_VALUE} grosze")


def read_time(text: str) -> datetime:
    """A time in ISO 8601 as Python reads it, which is more than RFC 3339 allows.

    Raises:
        ValueError: It is none.
    """
    if "\0" in text:  # where Python from 3.11 on stops reading
        raise ValueError("a time with a NUL")
    # Python 3.10 doesn't know "Z".
    return datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith(("Z", "z")) else text)


def _short(key: bytes | None) -> str:
    """The key for an error, cut: the reason of a dead letter travels in a header."""
    return repr(key) if key is None or len(key) <= 2 * MAX_ID_LENGTH else f"{key[: 2 * MAX_ID_LENGTH]!r}..."


def _place(error: msgspec.ValidationError) -> str:
    return str(error).partition(" - at `$.")[2].rstrip("`")


def _plain(error: msgspec.ValidationError) -> str:
    message, place = str(error).partition(" - at `$.")[0], _place(error)
    return f"{place}: {message}" if place else message
