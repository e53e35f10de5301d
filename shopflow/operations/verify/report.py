"""The result of `verify`: differences, checks, the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

#: How many differences are named. The others are only counted.
NAMED = 10


class FirstTen:
    """Keeps the first ten of the added texts, and counts all."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, text: str) -> None:
        self.count += 1
        if self.count <= NAMED:
            self._first.append(text)

    def listed(self, separator: str = "; ") -> str:
        """The first ten texts, and the number of the others."""
        more = f", and {self.count - NAMED} more" if self.count > NAMED else ""
        return separator.join(self._first) + more

    def differ(self) -> str:
        return f"{self.count} differ: {self.listed()}"


@dataclass
class Check:
    """One condition that must hold.

    Attributes:
        good: None: it could not be checked.
    """

    name: str
    good: bool | None
    detail: str

    @classmethod
    def of(cls, name: str, wrong: FirstTen, otherwise: str) -> Check:
        """A check that fails if anything is wrong, with the differences as its detail; else a good one."""
        return cls(name, False, wrong.differ()) if wrong.count else cls(name, True, otherwise)


@dataclass
class Report:
    """The result of `verify`.

    Attributes:
        status: 0: Kafka, MongoDB and the tables agree. 1: they do not. 2: it could not be checked.
        workers: The live ones, each with its `url` and `partitions`.
        deep: With `--deep`, for products, customers and purchases: the number of events by result.
    """

    status: int = 2
    kafka: dict[str, int] = field(default_factory=dict)
    mongodb: dict[str, int] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    workers: list[dict[str, Any]] = field(default_factory=list)
    deep: dict[str, dict[str, int]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def add(self, checks: Iterable[Check]) -> None:
        """Add checks. A failed one makes the status 1, otherwise one that could not be checked makes it 2."""
        for check in checks:
            self.checks.append(check)
            if check.good is False:
                self.status = 1
            elif check.good is None and self.status == 0:
                self.status = 2
