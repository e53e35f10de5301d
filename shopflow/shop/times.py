"""Reads times that other programs and people wrote: one rule for all of them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FRACTION = re.compile(r"[.,]([0-9]+)")


def read_time(text: str) -> datetime:
    """Parse a time in any ISO 8601 form that Python reads. RFC 3339 allows fewer.

    The fraction of a second may follow a point or a comma. It is cut to microseconds, never rounded: a time before
    midnight stays before midnight.

    Raises:
        ValueError: The text is not a time.
    """
    if "\0" in text:  # Python 3.11 and later ignore the rest
        raise ValueError("a time with a NUL")
    # Python 3.10 knows neither "Z" nor a fraction of other than three or six digits.
    text = f"{text[:-1]}+00:00" if text.endswith(("Z", "z")) else text
    return datetime.fromisoformat(_FRACTION.sub(lambda found: f".{found[1][:6]:0<6}", text))


def time_of_milliseconds(milliseconds: int) -> datetime:
    """The time of a record's timestamp, exactly: a `float` of seconds would be rounded.

    Raises:
        OverflowError: It is after the year 9999 or before the year 1.
    """
    return _EPOCH + timedelta(milliseconds=milliseconds)
