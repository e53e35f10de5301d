"""What a verification found: differences named and counted, checks, the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

#: Differences that are named; the rest is counted.
NAMED = 10


class FirstTen:
    """The first ten of what is added, and how many there were."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, text: str) -> None:
        self.count += 1
        if self.count <= NAMED:
            self._first.append(text)

    def listed(self, separator: str = "; ") -> str:
        """Those that are named, and how many more."""
        more = f", and {self.count - NAMED} more" if self.count > NAMED else ""
        return separator.join(self._first) + more

    def differ(self) -> str:
        return f"{self.count} differ: {self.listed()}"


@dataclass
class Check:
    """One thing that must hold.

    Attributes:
        good: None: it could not be told.
    """

    name: str
    good: bool | None
    detail: str

    @classmethod
    def of(cls, name: str, wrong: FirstTen, otherwise: str) -> Check:
        """Not good if anything is wrong, and tells what; else good, with this detail."""
        return cls(name, False, wrong.differ()) if wrong.count else cls(name, True, otherwise)


@dataclass
class Report:
    """What was found.

    Attributes:
        status: 0 they agree, 1 they do not, 2 it could not be told.
        workers: The live ones, each with its `url` and `partitions`.
        deep: With `--deep`, for products, customers and purchases: how many events became what.
    """

    status: int = 2
    kafka: dict[str, int] = field(default_factory=dict)
    mongodb: dict[str, int] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    workers: list[dict[str, Any]] = field(default_factory=list)
    deep: dict[str, dict[str, int]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def add(self, checks: Iterable[Check]) -> None:
        """Add checks: one that fails makes the status 1, else one that can't be told makes it 2."""
        for check in checks:
            self.checks.append(check)
            if check.good is False:
                self.status = 1
            elif check.good is None and self.status == 0:
                self.status = 2
