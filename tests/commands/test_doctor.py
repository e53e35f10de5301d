"""What `doctor` prints: lines that fit a terminal, one line a check elsewhere, and the status."""

from __future__ import annotations

import json

import pytest

from shopflow.commands import lines
from shopflow.operations.verify.report import Check

GOOD = Check("disk", True, "75814 MiB are free")
BAD = Check("topic shop.products", False, "has cleanup.policy=delete; to mend it, run `kafka-configs.sh --alter` " * 3)
UNTOLD = Check("Kafka", None, "the embedded Kafka isn't running\x1b[2J")


@pytest.mark.parametrize("columns", [60, 80])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    """Text that goes on is indented, so that the marks stand out."""
    shown = list(lines.doctor([GOOD, BAD, UNTOLD], columns=columns, as_json=False))
    assert max(map(len, shown)) <= columns
    assert [line[:3] for line in shown if not line.startswith("    ")] == ["ok ", "NOT", "?? ", "Som"]
    assert len(shown) > 4


def test_elsewhere_each_check_is_one_line() -> None:
    shown = list(lines.doctor([GOOD, BAD, UNTOLD], columns=None, as_json=False))
    assert len(shown) == 4
    assert "\x1b" not in "".join(shown)


def test_the_status_is_that_of_the_worst_check() -> None:
    assert lines.doctor_status([GOOD]) == 0
    assert lines.doctor_status([GOOD, BAD, UNTOLD]) == 1
    assert lines.doctor_status([GOOD, UNTOLD]) == 2
    (report,) = lines.doctor([GOOD, UNTOLD], columns=60, as_json=True)
    found = json.loads(report)
    assert found["status"] == 2
    assert found["checks"][0] == {"name": "disk", "good": True, "detail": "75814 MiB are free"}
