"""A worker with a disk of its own that can be filled: a tmpfs in a mount namespace, which ends with the worker."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.shop import FAUST, Worker

__all__ = ["filled", "on_small_disk"]

_MOUNT = 'mount -t tmpfs -o size="$0" tmpfs "$1" && shift && exec "$@"'
_BLOCK = b"\0" * (64 << 10)


def on_small_disk(folder: Path, megabytes: int) -> Sequence[str]:
    """The program that runs a worker with this folder on a small disk. Skips the test where that is not allowed.

    Root may mount. Other users may in a user namespace of their own, if the system allows one.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("a small disk needs `unshare`, of util-linux")
    alone = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    folder.mkdir(parents=True, exist_ok=True)
    prefix = [unshare, *alone, "sh", "-c", _MOUNT, f"{megabytes}m", str(folder)]
    probe = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"a small disk can't be mounted: {probe.stderr.strip()}")
    return (*prefix, *FAUST)


@contextmanager
def filled(worker: Worker, folder: Path) -> Iterator[None]:
    """Fill the worker's disk to the last byte while the body runs."""
    filler = Path(f"/proc/{worker.pid}/root{folder}") / "filler"  # as the worker sees it
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(_BLOCK)
        except OSError:
            pass  # full
    try:
        yield
    finally:
        filler.unlink()
