"""The embedded MongoDB: SecantusDB, a process of its own that speaks MongoDB's protocol."""

from __future__ import annotations

import importlib.metadata
import re
import socket
import struct
import sys
from collections.abc import Callable

from shopflow.config.settings import Config

from .locks import HOST, PROBE_SECONDS, receive
from .server import Server

MONGODB_PORT = 27117


class MongoDBServer(Server):
    key = "mongodb"
    name = "MongoDB"
    field = "mongodb.uri"
    default_port = MONGODB_PORT
    modules = ("secantus",)

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.embedded.mongodb_port)

    @property
    def title(self) -> str:
        return f"MongoDB (SecantusDB {importlib.metadata.version('SecantusDB')})"

    @property
    def address(self) -> str:
        return f"mongodb://{HOST}:{self.port}/?directConnection=true"

    def commands(self, say: Callable[[str], None]) -> list[list[str]]:
        settings = self.folder / "secantusd.toml"
        settings.write_text("# Empty, so that no other file of this name is found.\n", encoding="ascii")
        options = {
            "config": settings.name,
            "host": HOST,
            "port": self.port,
            "storage-path": "data",
            "log-level": "WARNING",
            "cache-size": "256M",
        }
        command = [sys.executable, "-m", "secantus", "--standalone"]
        return [[*command, *(f"--{name}={value}" for name, value in options.items())]]

    def answers(self, port: int, pid: int | None) -> bool:
        return pid is not None and _mongodb_pid(port) == pid


def _mongodb_pid(port: int) -> int | None:
    """The process id of the MongoDB there; None if there is none."""
    fields = b"\x10serverStatus\x00" + struct.pack("<i", 1) + b"\x02$db\x00" + struct.pack("<i", 6) + b"admin\x00\x00"
    body = struct.pack("<iB", 0, 0) + struct.pack("<i", len(fields) + 4) + fields
    try:
        with socket.create_connection((HOST, port), PROBE_SECONDS) as link:
            link.sendall(struct.pack("<iiii", len(body) + 16, 1, 0, 2013) + body)
            (length,) = struct.unpack("<i", receive(link, 4))
            answer = receive(link, min(length - 4, 1 << 20))
    except (OSError, struct.error):
        return None
    found = re.search(rb"\x10pid\x00(.{4})|\x12pid\x00(.{8})", answer, re.DOTALL)
    return int.from_bytes(found[1] or found[2], "little") if found else None
