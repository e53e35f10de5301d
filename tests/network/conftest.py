"""The seed and the summary of the fault tests, for the tests of the network."""

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
