"""Checks the events of a client: every problem by its field, and the records that may be published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, get_type_hints

import faust
import msgspec

from shopflow.errors import Rejected
from shopflow.shop.decoding import Decoder, check_value, encode, struct_of
from shopflow.shop.times import read_time


@dataclass(frozen=True)
class Problem:
    """What is wrong with a field. In an array the field is named like `[3].quantity`."""

    field: str
    message: str


@dataclass
class Checked:
    """The checked events. Without problems, all records may be published."""

    ids: list[str] = field(default_factory=list)
    records: list[tuple[bytes, bytes]] = field(default_factory=list)  #: key and value of each event
    problems: list[Problem] = field(default_factory=list)


class Form:
    """Checks events of one kind.

    Arguments:
        record: The schema.
        id_field: The field that is returned to the client.
        key_field: The field that is the key in Kafka.
        made: Makes the value of a field that the client left out.
        max_bytes: The largest event that the agents accept.
    """

    def __init__(
        self,
        record: type[faust.Record],
        *,
        id_field: str,
        key_field: str,
        made: Mapping[str, Callable[[], Any]],
        max_bytes: int,
    ) -> None:
        struct: Any = struct_of(record)
        self.made = made
        self._kinds = {one.name: one for one in msgspec.structs.fields(struct)}
        self._times = {name for name, hint in get_type_hints(record).items() if hint is datetime}
        self._id, self._key = id_field, key_field
        self._accept = Decoder(record, key_field, max_bytes)

    def check(self, sent: Any) -> Checked:
        """Check an event, or an array of events, as decoded from JSON."""
        checked = Checked()
        if isinstance(sent, list):
            for number, one in enumerate(sent):
                self._check_one(one, f"[{number}]", checked)
        else:
            self._check_one(sent, "", checked)
        return checked

    def _check_one(self, sent: Any, at: str, checked: Checked) -> None:
        if not isinstance(sent, dict):
            checked.problems.append(Problem(at, "must be an object with the fields of an event"))
            return
        values: dict[str, Any] = {}
        problems: dict[str, str] = {}
        for name, kind in self._kinds.items():
            try:
                self._take(name, kind, sent, values)
            except (msgspec.ValidationError, ValueError) as error:
                problems[name] = str(error)
        if not problems:
            try:
                checked.records.append(self._record(values))
                checked.ids.append(values[self._id])
            except Rejected as error:
                name = "price" if "quantity times price" in error.detail else "(the event)"
                problems[name] = error.detail or error.reason
        dot = f"{at}." if at else ""
        checked.problems += [Problem(dot + name, message) for name, message in problems.items()]

    def _take(self, name: str, kind: Any, sent: dict[str, Any], values: dict[str, Any]) -> None:
        if name in sent:
            value = self._time(sent[name], kind.type) if name in self._times else _whole(sent[name])
            values[name] = msgspec.convert(value, kind.type)
        elif name in self.made:
            values[name] = self.made[name]()
        elif kind.required:
            raise ValueError("is missing")

    @staticmethod
    def _time(sent: Any, kind: Any) -> Any:
        """A time in UTC; anything else is returned as it is."""
        try:
            time = msgspec.convert(read_time(sent), kind) if isinstance(sent, str) else sent
        except ValueError:  # msgspec names the error
            return sent
        try:
            return time.astimezone(timezone.utc) if isinstance(time, datetime) else time
        except OverflowError:
            raise ValueError("is out of range in UTC") from None

    def _record(self, values: dict[str, Any]) -> tuple[bytes, bytes]:
        """Raises:
        Rejected: The agents would not accept it.
        """
        if "quantity" in values:
            check_value(values["quantity"], values.get("price"))
        value = encode({name: one for name, one in values.items() if one is not None})
        key = values[self._key].encode()
        self._accept(key, value)  # as the agents check it: an accepted event is never a dead letter for its form
        return key, value


def _whole(sent: Any) -> Any:
    """2.0 as 2: for JSON Schema both are integers."""
    return int(sent) if isinstance(sent, float) and sent.is_integer() else sent
