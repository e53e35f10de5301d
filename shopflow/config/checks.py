"""Checks of setting values. `loading` turns their messages into errors for the user."""

from __future__ import annotations

from typing import Any


def check(good: bool, field: str, must: str) -> None:
    """Check a condition on a field.

    Raises:
        ValueError: The condition is false. The message names the field and its legal values.
    """
    if not good:
        raise ValueError(f"{field}: must be {must}")


def in_range(settings: Any, **ranges: tuple[float, float]) -> None:
    """Check that fields are in ranges.

    Raises:
        ValueError: A field is not within its limits, both included.
    """
    for field, (low, high) in ranges.items():
        check(low <= getattr(settings, field) <= high, field, f"{low} to {high}")
