"""Checks of setting values. `loading` turns their messages into errors for the user."""

from __future__ import annotations

from typing import Any


def check(good: bool, field: str, must: str) -> None:
    """Raise `ValueError` if the condition is false. The message names the field and its legal values."""
    if not good:
        raise ValueError(f"{field}: must be {must}")


def in_range(settings: Any, **ranges: tuple[float, float]) -> None:
    """Raise `ValueError` if a field is not within its limits, both included."""
    for field, (low, high) in ranges.items():
        check(low <= getattr(settings, field) <= high, field, f"{low} to {high}")
