"""Hosts on a network of their own: network namespaces on a bridge. The kernel removes them when the test ends."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

__all__ = ["DROP", "LOSE", "RESET", "Host", "network"]

_CLONE_NEWNET = 0x40000000
_BRIDGE = "br0"
_TESTS_ADDRESS = "10.77.0.1"

#: The fate of a packet, as nftables writes it.
DROP = "drop"
LOSE = "numgen random mod 100 < 20 drop"  # every fifth one
RESET = "meta l4proto tcp reject with tcp reset"


class Host:
    """A network namespace with one interface. A process holds it, which ends with the test's process.

    Arguments:
        name: At most ten letters.
        number: The last part of its address.
    """

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.address = f"10.77.0.{number}"
        self._port = f"to-{name}"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self._holder.stdin
        assert self._holder.stdout
        self._holder.stdin.write(b"\n")
        assert self._holder.stdout.readline() == b"\n"  # `cat` runs, so its namespace is there
        pid = str(self._holder.pid)
        _run("ip", "link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", pid)
        _run("ip", "link", "set", self._port, "master", _BRIDGE, "up")
        for command in ("addr add {}/24 dev eth0", "link set lo up", "link set eth0 up"):
            _run(*self.inside(["ip", *command.format(self.address).split()]))

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command that runs another command on this host, under the same process id."""
        return [shutil.which("nsenter") or "", f"--net=/proc/{self._holder.pid}/ns/net", *command]

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """Pull the host's cable while the body runs: all packets are lost, and neither end notices."""
        _run("ip", "link", "set", self._port, "down")
        try:
            yield
        finally:
            _run("ip", "link", "set", self._port, "up")

    @contextmanager
    def filtered(self, peer: Host, what: str, ways: str = "in out") -> Iterator[None]:
        """Apply a rule to packets from the peer (`in`), to it (`out`) or both, while the body runs."""
        rules = {
            "in": f"chain in {{ type filter hook input priority 0; ip saddr {peer.address} {what}; }};",
            "out": f"chain out {{ type filter hook output priority 0; ip daddr {peer.address} {what}; }};",
        }
        self._load(f"table ip faults {{ {' '.join(rules[way] for way in ways.split())} }}")
        try:
            yield
        finally:
            self._load("")

    def _load(self, rules: str) -> None:
        _run(*self.inside(["nft", f"flush ruleset; {rules}"]))

    def close(self) -> None:
        """End the holder. The namespace ends with its last process."""
        self._holder.kill()
        self._holder.communicate()


@contextmanager
def network(*names: str) -> Iterator[list[Host]]:
    """Hosts of these names on one network, on which the calling thread and its child processes are too.

    Skips the test where that is not allowed.
    """
    missing = [program for program in ("ip", "nft", "nsenter", "unshare") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"networks need {', '.join(missing)}: install iproute2, nftables and util-linux")
    if os.geteuid() != 0:
        pytest.skip("only root may make network namespaces: unshare --user --map-root-user make test-network")
    with ExitStack() as stack:
        _enter_own_namespace(stack)
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", _BRIDGE, "type", "bridge")
        _run("ip", "addr", "add", f"{_TESTS_ADDRESS}/24", "dev", _BRIDGE)
        _run("ip", "link", "set", _BRIDGE, "up")
        hosts = []
        for number, name in enumerate(names, 2):
            hosts.append(Host(name, number))
            stack.callback(hosts[-1].close)
        yield hosts


def _enter_own_namespace(stack: ExitStack) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open(Path("/proc/thread-self/ns/net"), os.O_RDONLY)
    stack.callback(os.close, before)
    if libc.unshare(_CLONE_NEWNET):
        pytest.skip(f"network namespaces can't be made: {os.strerror(ctypes.get_errno())}")
    stack.callback(libc.setns, before, _CLONE_NEWNET)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
