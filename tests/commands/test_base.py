"""Ctrl-C ends a command, whatever its coroutine awaits."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from shopflow.commands import base


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Python's own handler of SIGINT. A shell ignores the signal for tests that run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_one_ctrl_c_is_enough_also_when_a_cancellation_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """pymongo sometimes swallows a cancellation. The command is cancelled again until it ends."""
    monkeypatch.setattr(base, "_CANCEL_AGAIN_SECONDS", 0.01)
    lost = 0

    async def main() -> None:
        nonlocal lost
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                lost += 1
        await asyncio.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        base.run(main())
    assert lost == 2


@pytest.mark.usefixtures("_interruptible")
def test_what_a_command_raises_or_returns_is_passed_on() -> None:
    """If a command is interrupted and fails in its cleanup, the user is told of the interruption."""

    async def failing(interrupted: bool) -> int:
        if interrupted:
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
            try:
                await asyncio.sleep(60)
            finally:
                raise ValueError("while it cleans up")
        raise ValueError("by itself")

    async def returning() -> int:
        return 2

    assert base.run(returning()) == 2
    with pytest.raises(ValueError, match="by itself"):
        base.run(failing(interrupted=False))
    with pytest.raises(KeyboardInterrupt):
        base.run(failing(interrupted=True))


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["faust"], 130, "Stopped.\n"),
        (["/bin/shopflow", "demo"], 130, "Stopped.\n"),
        (["my.py"], -2, "KeyboardInterrupt\n"),
    ],
)
def test_ctrl_c_while_the_program_is_imported_is_one_sentence(arguments: list[str], status: int, says: str) -> None:
    """Importing all takes a second. Where shopflow is a library, Ctrl-C is the program's own matter."""
    program = f"import os, sys; sys.argv = {arguments!r}; import shopflow; os.kill(os.getpid(), 2)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[-len(says) :]) == (status, says)
    assert (done.stderr == says) == (status == 130)
