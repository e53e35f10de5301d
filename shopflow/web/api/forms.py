"""Checks what a client sends: every problem by its field, and the records that may go to Kafka."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, get_type_hints

import faust
import msgspec

from shopflow.errors import Rejected
from shopflow.shop.decoding import Decoder, check_value, encode, read_time, struct_of


@dataclass(frozen=True)
class Problem:
    """What is wrong with a field; of an array's entry as `[3].quantity`."""

    field: str
    message: str


@dataclass
class Checked:
    """What was sent. Without problems, all of it may go to Kafka."""

    ids: list[str] = field(default_factory=list)
    records: list[tuple[bytes, bytes]] = field(default_factory=list)  #: key and value of each event
    problems: list[Problem] = field(default_factory=list)


class Form:
    """Checks events of one kind.

    Arguments:
        record: The schema.
        id_field: The field that the client gets back.
        key_field: The field that is the key in Kafka.
        made: What makes a field that the client left out.
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
        """Check what was decoded from JSON: an object, or an array of objects."""
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
                place = "price" if "quantity times price" in error.detail else "(the event)"
                problems[place] = error.detail or error.reason
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
        """A time in UTC; what is no time as it came."""
        try:
            time = msgspec.convert(sent, kind)
        except msgspec.ValidationError:
            try:
                time = msgspec.convert(read_time(sent), kind) if isinstance(sent, str) else sent
            except ValueError:  # say what is wrong with it as RFC 3339
                return sent
        try:
            return time.astimezone(timezone.utc) if isinstance(time, datetime) else time
        except OverflowError:
            raise ValueError("is out of range in UTC") from None

    def _record(self, values: dict[str, Any]) -> tuple[bytes, bytes]:
        """Raises:
        Rejected: The agents would not take it.
        """
        if "quantity" in values:
            check_value(values["quantity"], values.get("price"))
        value = encode({name: one for name, one in values.items() if one is not None})
        key = values[self._key].encode()
        self._accept(key, value)  # the very check of the agents: what was accepted here is never a dead letter
        return key, value


def _whole(sent: Any) -> Any:
    """2.0 as 2: JSON Schema calls both an integer."""
    return int(sent) if isinstance(sent, float) and sent.is_integer() else sent
