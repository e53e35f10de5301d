"""`workers`: several workers as one program, which share the partitions and end together."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.conftest import OpenShop
from tests.support.shop import PARTITIONS, Shop, free_port, until

pytestmark = pytest.mark.servers


def two_ports() -> int:
    """The first of two free ports that follow each other."""
    while True:
        port = free_port()
        try:
            with socket.create_server(("127.0.0.1", port + 1)):
                return port
        except OSError:
            continue


def counts(port: int) -> dict[str, Any]:
    """The sums of the worker at this port; empty if it does not answer."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/counts/") as response:
            found: dict[str, Any] = json.load(response)
            return found
    except OSError:
        return {}


def complete(port: int) -> bool:
    """True if two workers, the first at this port, each have partitions, and together all."""
    owned = [counts(one).get("partitions", []) for one in (port, port + 1)]
    return all(owned) and sorted(number for each in owned for number in each) == list(range(PARTITIONS))


def worker_pids(shop: Shop, port: int) -> list[int]:
    """The worker with this port, without its keeper."""
    found = []
    for pid in shop.leftovers():
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if str(port).encode() in command:
            found.append(pid)
    return found


@pytest.mark.slow
def test_workers_share_the_partitions_come_back_and_end_together(open_shop: OpenShop) -> None:
    """A killed worker is started again. SIGTERM ends all, with status 0; a kill of the command ends them too."""
    with open_shop() as shop:
        port = two_ports()
        program = shop.spawn("workers", "--count", "2", "--web-port", str(port), "-l", "info")
        until(lambda: complete(port), "two workers have all partitions", 60)
        assert f"The shop: http://127.0.0.1:{port}/ (2 workers)" in program.output
        assert shop.run("seed-products").status == 0
        assert shop.run("seed-customers", "--count", "20").status == 0
        assert shop.run("seed-purchases", "--count", "400", "--rate", "0").status == 0
        (killed,) = worker_pids(shop, port + 1)
        os.kill(killed, signal.SIGKILL)
        told = f"The worker at http://127.0.0.1:{port + 1} has ended with status 137; it starts again in 1 s."
        until(lambda: told in program.output, "the end is told", 20)
        until(lambda: worker_pids(shop, port + 1) not in ([], [killed]), "another one is started", 20)
        until(lambda: complete(port), "two workers have all partitions again", 60)
        until(lambda: sum(counts(one).get("purchases", 0) for one in (port, port + 1)) == 400, "all are counted", 60)
        shop.agrees()
        assert program.stop() == 0, program.output
        assert "Traceback" not in program.output
        assert "Warning" not in program.output
        assert shop.leftovers() == []
        assert shop.locked() == []
        program = shop.spawn("workers", "--count", "2", "--web-port", str(port))
        until(lambda: complete(port), "two workers have all partitions", 60)
        program.kill()
        until(lambda: shop.leftovers() == [], "no worker is left", 40)


def test_a_port_in_use_is_refused_before_a_worker_starts(open_shop: OpenShop) -> None:
    """The line names the port, also if only the second worker's is taken. So are ports that there are not."""
    port = two_ports()
    with open_shop() as shop, socket.create_server(("127.0.0.1", port + 1)):
        done = shop.run("workers", "--count", "2", "--web-port", str(port))
        assert (done.status, shop.leftovers()) == (2, [])
        assert f"Error: web.port: 127.0.0.1:{port + 1}: Address already in use" in done.stderr
        done = shop.run("workers", "--count", "2", "--web-port", "65535")
        assert (done.status, done.stderr) == (2, "Error: --count: there are no 2 ports from 65535 to 65535\n")


def test_a_worker_that_can_not_start_ends_all(open_shop: OpenShop) -> None:
    """What can not work is not tried again and again: the command ends with status 2."""
    port = two_ports()
    with open_shop() as shop:
        shop.data.mkdir(exist_ok=True)
        (shop.data / f"worker-{port + 1}").touch()
        program = shop.spawn("workers", "--count", "2", "--web-port", str(port))
        assert program.wait() == 2
        assert f"worker-{port + 1}: File exists" in program.output
        assert f"Error: the worker at http://127.0.0.1:{port + 1} has ended with status 2" in program.output
        assert "Traceback" not in program.output
        assert shop.leftovers() == []
