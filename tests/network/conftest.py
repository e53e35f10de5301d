"""The seed, and what is told at the end, are those of the fault tests."""

from __future__ import annotations

from tests.faults.conftest import (
    pytest_configure,
    pytest_report_header,
    pytest_runtest_makereport,
    pytest_terminal_summary,
    rng,
    told,
)

__all__ = [
    "pytest_configure",
    "pytest_report_header",
    "pytest_runtest_makereport",
    "pytest_terminal_summary",
    "rng",
    "told",
]
