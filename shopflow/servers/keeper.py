"""The keeper: runs one embedded server for as long as the process that started it lives.

It runs as `python -IS keeper.py SPEC`, without the application and its memory. `SPEC` is JSON: see `Spec`. Standard
input is a pipe from the starting process. The end of this pipe, however that process ended, is the order to stop.
The keeper prints the server's process id to standard output. The exit status is the server's, or 128 plus the signal's
number if a signal ended the server.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypedDict

PR_SET_PDEATHSIG = 1
LOG_CHECK_SECONDS = 30.0
LOG_BYTES = 8 << 20


class Spec(TypedDict):
    """The arguments of a keeper."""

    commands: list[list[str]]  # run one after the other; the last is the server
    log: str  # the file that gets their output; empty: standard error
    log_bytes: int  # a longer log is moved to `<log>.1`
    lock: int  # the descriptor of a locked file: locked until both the keeper and the server have ended
    stop_seconds: float  # from SIGTERM to SIGKILL


def start(
    commands: list[list[str]], log: Path | None, lock: IO[bytes], stop_seconds: float, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a keeper in its own process session, so that the terminal's Ctrl-C does not reach it.

    Arguments:
        commands, log, lock, stop_seconds: See `Spec`.
        options: For `Popen`.
    """
    spec = Spec(
        commands=commands, log=str(log or ""), log_bytes=LOG_BYTES, lock=lock.fileno(), stop_seconds=stop_seconds
    )
    return subprocess.Popen(
        [sys.executable, "-IS", str(Path(__file__)), json.dumps(spec)],
        stdin=subprocess.PIPE,
        pass_fds=(lock.fileno(),),
        start_new_session=True,
        **options,
    )


def order_stop(kept: subprocess.Popen[bytes]) -> None:
    """Order a keeper to stop its server, without waiting for it."""
    assert kept.stdin is not None  # noqa: S101 - a pipe
    with contextlib.suppress(OSError):
        kept.stdin.close()


def main(spec: Spec) -> int:
    """Run the commands until one fails, or until the order to stop. Returns the exit status."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    orders: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: orders.append(number))
    signal.signal(signal.SIGCHLD, lambda *_: None)  # so that the end of the server wakes `select`
    status = 0
    for command in spec["commands"]:
        status = _run(command, spec, woken, orders, last=command is spec["commands"][-1])
        if status or orders:
            break
    return status


def _run(command: list[str], spec: Spec, woken: int, orders: list[int], *, last: bool) -> int:
    with _output(spec["log"]) as log:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(spec["lock"],),
            preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509 - the keeper has one thread
        )
    if last:
        with contextlib.suppress(OSError):  # the starting process may have ended
            os.write(1, f"{server.pid}\n".encode())
    while server.poll() is None and not orders:
        ready, _, _ = select.select([0, woken], [], [], LOG_CHECK_SECONDS)
        if woken in ready:
            os.read(woken, 4096)
        if 0 in ready and not os.read(0, 4096):
            orders.append(0)
        if spec["log"]:
            cut(Path(spec["log"]), spec["log_bytes"])
    return _stop(server, spec["stop_seconds"])


def _output(log: str) -> IO[bytes]:
    """Where the output goes. A file is appended to, so that it can be cut while the server writes to it."""
    return Path(log).open("ab") if log else os.fdopen(2, "wb", closefd=False)


def _stop(server: subprocess.Popen[bytes], seconds: float) -> int:
    server.terminate()  # does nothing if the server has ended
    try:
        status = server.wait(seconds)
    except subprocess.TimeoutExpired:
        server.kill()
        status = server.wait()
    return status if status >= 0 else 128 - status


def _die_with(keeper: int) -> Callable[[], None] | None:
    """A function that the server's process calls before `exec`. Then Linux kills the server when the keeper ends."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:  # the keeper was killed meanwhile
            os.kill(os.getpid(), signal.SIGKILL)

    return prepare


def cut(log: Path, most: int = LOG_BYTES) -> None:
    """Move a log longer than `most` bytes to `<log>.1`. Processes that append to it continue in the emptied file."""
    with contextlib.suppress(OSError):  # a full disk is no reason to stop the server
        if log.stat().st_size > most:
            shutil.copyfile(log, log.with_name(log.name + ".1"))
            os.truncate(log, 0)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
