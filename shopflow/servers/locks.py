"""Lock files, and ports of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shopflow.errors import Refused

HOST = "127.0.0.1"
POLL_SECONDS = 0.05
#: The time limit for each step of a check whether a server answers.
PROBE_SECONDS = 2.0
#: Linux says here from which to which port outgoing connections have theirs.
_OUTGOING_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: The lowest port that is chosen, above those of well-known programs; how many are tried.
_FIRST_PORT, _PORT_ATTEMPTS = 20_000, 100


@contextmanager
def locked(path: Path, *, wait: bool = True, waiting: Callable[[], None] | None = None) -> Iterator[IO[bytes] | None]:
    """Hold the lock on this file. With `wait=False`, it gives None if another process holds the lock.

    Arguments:
        waiting: Called once, after half a second of waiting.
    """
    with path.open("ab") as file:
        patient_until = time.monotonic() + 0.5
        while not _try_lock(file, fcntl.LOCK_EX):
            if not wait:
                yield None
                return
            if waiting and time.monotonic() > patient_until:
                waiting()
                waiting = None
            time.sleep(POLL_SECONDS)
        yield file


def is_locked(path: Path) -> bool:
    """True if a process holds the lock."""
    try:
        with path.open("rb") as file:
            return not _try_lock(file, fcntl.LOCK_SH)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _try_lock(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def choose_port(field: str, wanted: int, default: int) -> int:
    """The wanted port. If that is 0: the default port if it is free, else any free port.

    Raises:
        Refused: Another program uses the wanted port; the message names the field.
    """
    if wanted and not _is_free(wanted):
        raise Refused(f"{field}: {HOST}:{wanted} is in use by another program")
    return wanted or (default if _is_free(default) else any_port())


def _is_free(port: int) -> bool:
    try:
        check_free(HOST, port)
    except OSError:
        return False
    return True


def check_free(host: str, port: int) -> None:
    """Raise `OSError` if another program listens at this port, or if the host is not this machine."""
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections don't count
        probe.bind((host, port))


def any_port(host: str = HOST) -> int:
    """A port on which no program listens, and which the system gives to no outgoing connection.

    An outgoing connection can have the very port that it is to: then it is connected to itself, and its port is taken.
    """
    first_outgoing = _first_outgoing_port()
    for _ in range(_PORT_ATTEMPTS if first_outgoing > _FIRST_PORT else 0):
        port = random.SystemRandom().randrange(_FIRST_PORT, first_outgoing)
        with contextlib.suppress(OSError):
            check_free(host, port)
            return port
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _first_outgoing_port() -> int:
    try:
        return int(_OUTGOING_PORTS.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768  # the lowest of today's systems


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
