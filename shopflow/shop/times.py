"""Reads times that other programs and people wrote."""

from __future__ import annotations

from datetime import datetime


def read_time(text: str) -> datetime:
    """Parse a time in any ISO 8601 form that Python reads. RFC 3339 allows fewer.

    Raises:
        ValueError: The text is not a time.
    """
    if "\0" in text:  # Python 3.11 and later ignore the rest
        raise ValueError("a time with a NUL")
    # Python 3.10 doesn't know "Z".
    return datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith(("Z", "z")) else text)
