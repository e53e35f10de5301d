"""A seed for the run, a random generator for each test, and a summary of the faults of each test."""

from __future__ import annotations

import os
import random
from collections.abc import Generator
from typing import Any

import pytest

from .crew import Crew

_SEED = "SHOPFLOW_TEST_SEED"
_TOLD = "faults"


def pytest_configure() -> None:
    """Choose one seed for all processes of the run."""
    os.environ.setdefault(_SEED, str(random.SystemRandom().randrange(2**32)))


def pytest_report_header() -> str:
    """Show the seed at the start, so that it is known if the run hangs."""
    return f"seed: {os.environ[_SEED]}"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """A generator of the test's own, so that other tests don't change its course."""
    return random.Random(f"{os.environ[_SEED]} {request.node.name}")


@pytest.fixture
def told() -> list[Crew]:
    """The crews whose faults are in the summary, also if the test fails."""
    return []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show beside a failure the faults, and the command that repeats the test."""
    crews: list[Crew] = getattr(item, "funcargs", {}).get("told", [])
    if call.when == "call":
        item.user_properties += [(_TOLD, crew.told()) for crew in crews]
    report = yield
    if report.failed:
        suite = item.path.parent.name
        again = f"{_SEED}={os.environ[_SEED]} make test-{suite} {suite.upper()}_ARGS='-k {item.name}'"
        report.sections.append(("again", "\n".join([again, *(crew.told() for crew in crews)])))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show the faults of each test, and how often each came."""
    terminalreporter.section(f"faults, seed {os.environ[_SEED]}")
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, text in report.user_properties if report.when == "call" else []:
                if name == _TOLD:
                    test = report.nodeid.rpartition("::")[2]
                    terminalreporter.line(f"{outcome}  {report.duration:4.0f} s  {test}: {text}")
