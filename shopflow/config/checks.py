"""The checks of a setting's value, in the words that `loading` tells them in."""

from __future__ import annotations

from typing import Any


def check(good: bool, field: str, must: str) -> None:
    """Raises:
    ValueError: It is not good; says what the field must be.
    """
    if not good:
        raise ValueError(f"{field}: must be {must}")


def in_range(settings: Any, **ranges: tuple[float, float]) -> None:
    """Raises:
    ValueError: A field is not between its limits, both of which are allowed.
    """
    for field, (low, high) in ranges.items():
        check(low <= getattr(settings, field) <= high, field, f"{low} to {high}")
