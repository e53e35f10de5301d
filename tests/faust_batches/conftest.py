"""Servers and processes for these tests. They come from the shop's tests: they are no part of the heart."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.shop import Process, free_port, until

from .running import Kafka, Loop

__all__ = ["until"]

ROOT = Path(__file__).parents[2]
#: Starts a worker of an application, by its module; returns the process and its web port.
Spawn = Callable[..., tuple[Process, int]]


@pytest.fixture(scope="session")
def kafka(servers: Any) -> Kafka:
    """The session's Kafka."""
    return Kafka(servers.kafka)


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    """An event loop in a thread of its own, which also runs between the tests of a module."""
    with Loop() as loop:
        yield loop


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Start workers of an application; all end with the test."""
    started: list[Process] = []

    def start(application: str, name: str, **environment: str) -> tuple[Process, int]:
        port, folder = free_port(), tmp_path / name
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "faust", "-A", application, "--datadir", str(folder)]
        process = Process(
            [*command, "worker", "-l", "info", "--web-port", str(port), "--web-bind", "127.0.0.1"],
            {**os.environ, "PYTHONPATH": str(ROOT), "NODE_HOSTNAME": "127.0.0.1", **environment},
            folder,
            folder / f"worker-{len(started)}.log",
        )
        started.append(process)
        return process, port

    yield start
    for process in started:
        process.kill()
        print(f"end of {process.log}:", process.output[-3_000:], sep="\n")  # pytest shows it beside a failure


@pytest.fixture(name="until")
def wait_until() -> Callable[..., object]:
    """Poll a condition with a deadline."""
    return until
