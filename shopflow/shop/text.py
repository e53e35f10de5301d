"""Formats values for people: amounts, numbers, times, and untrusted text.

Numbers have one form on the page and in the commands: "1 234,5". Its spaces are such that no line is broken there.

Other programs may have changed documents in MongoDB. A missing value is `-`, a value of another type is shown as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

#: Characters shown of a value of an unexpected type, and of a voucher's text.
_SHORT, _LONG = 60, 200
#: Before "zł" and between thousands: no line is broken there.
_SPACE = "\N{NO-BREAK SPACE}"
_POLISH = str.maketrans({",": _SPACE, ".": ","})


def visible(text: str, most: int | None = None) -> str:
    """Untrusted text with control characters escaped, cut to `most` characters."""
    if most is not None and len(text) > most:
        text = f"{text[:most]}..."
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def whole(value: Any) -> int | None:
    """The value as a whole number; 5.0, which some programs write, is 5. None: it is not a whole number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def money(grosze: Any) -> str:
    """Format an amount as in Poland: 123456 -> "1 234,56 zł"."""
    number = whole(grosze)
    if number is None:
        return _as_it_is(grosze)
    return f"{'-' if number < 0 else ''}{grouped(abs(number) // 100)},{abs(number) % 100:02}{_SPACE}zł"


def grouped(number: Any) -> str:
    """Format a whole number, with spaces between thousands."""
    known = whole(number)
    return _as_it_is(number) if known is None else f"{known:,}".replace(",", _SPACE)


def decimal(number: float) -> str:
    """Format a number with one decimal, after a comma as in amounts."""
    return f"{number:,.1f}".translate(_POLISH)


def day_and_time(at: Any) -> str:
    """Format a time in the local time zone."""
    if not isinstance(at, datetime):
        return _as_it_is(at)
    local: datetime = at
    with suppress(OverflowError, ValueError):  # in the years 1 and 9999 the local time may be out of range
        local = at.astimezone()
    return local.strftime("%Y-%m-%d %H:%M:%S")


def clock(at: datetime) -> str:
    """Format a time in the local time zone, with milliseconds."""
    return f"{day_and_time(at)}.{at.microsecond // 1000:03}"


def later(seconds: float) -> str:
    """Format the time between two steps: in milliseconds, or coarse if it is long."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:+.0f} {unit}"
    return f"{seconds:+.3f} s"


def day(at: Any) -> str:
    return day_and_time(at)[: len("2026-01-31")] if isinstance(at, datetime) else _as_it_is(at)


def text_of(document: Mapping[str, Any], field: str) -> str:
    """A document's field as text, whatever its type; `-` if it is missing or empty."""
    value = document.get(field)
    return "-" if value in (None, "") else visible(str(value))


def gift(voucher: Mapping[str, Any]) -> str:
    """The discount of a voucher, and the products it is for."""
    less = f"{text_of(voucher, 'percent')}%" if "percent" in voucher else money(voucher.get("amount"))
    what = ", ".join(visible(str(voucher[name]), _LONG) for name in ("product_type", "text") if name in voucher)
    return f"{less} off {what or '-'}"


def _as_it_is(value: Any) -> str:
    return "-" if value is None else visible(str(value), _SHORT)
