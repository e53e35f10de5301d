"""The report of a verification: differences, checks and the status."""

from __future__ import annotations

import pytest

from shopflow.operations.verify.report import Check, FirstTen, Report


@pytest.mark.parametrize(
    ("count", "listed"), [(0, ""), (2, "0; 1"), (10, "0; 1; 2; 3; 4; 5; 6; 7; 8; 9"), (13, "8; 9, and 3 more")]
)
def test_ten_are_named_and_the_rest_is_counted(count: int, listed: str) -> None:
    """A million differences must neither fill the memory nor the screen."""
    named = FirstTen()
    for number in range(count):
        named.add(str(number))
    assert named.count == count
    assert named.listed().endswith(listed)
    assert named.listed().count("; ") == max(0, min(count, 10) - 1)


@pytest.mark.parametrize(
    ("before", "verdicts", "status"),
    [
        (0, [True, True], 0),
        (0, [True, None], 2),
        (0, [False, None], 1),
        (0, [None, False, True], 1),
        (2, [True], 2),
        (2, [False], 1),
        (1, [None], 1),
    ],
)
def test_a_failed_check_outweighs_one_that_could_not_be_checked(
    before: int, verdicts: list[bool | None], status: int
) -> None:
    """A check that could not be made outweighs good ones."""
    report = Report(status=before)
    report.add(Check(str(number), good, "") for number, good in enumerate(verdicts))
    assert report.status == status
    assert [check.good for check in report.checks] == verdicts
