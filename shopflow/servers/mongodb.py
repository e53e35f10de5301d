"""The embedded MongoDB: SecantusDB, which speaks MongoDB's protocol, as a separate process."""

from __future__ import annotations

import importlib.metadata
import socket
import sys
from collections.abc import Callable
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from .locks import HOST, PROBE_SECONDS
from .server import Server


class MongoDBServer(Server):
    """SecantusDB, with its data in `mongodb/data`."""

    key = "mongodb"
    name = "MongoDB"
    field = "mongodb.uri"
    default_port = 27117
    modules = ("secantus",)

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
        return pid is not None and _process_id(port) == pid


def _process_id(port: int) -> int | None:
    """The process id of the MongoDB server at this port; None if there is none."""
    limit = int(PROBE_SECONDS * 1000)
    client: MongoClient[dict[str, Any]] = MongoClient(
        HOST,
        port,
        directConnection=True,
        connect=False,
        serverSelectionTimeoutMS=limit,
        connectTimeoutMS=limit,
        socketTimeoutMS=limit,
    )
    try:
        socket.create_connection((HOST, port), PROBE_SECONDS).close()  # pymongo would wait for a server that isn't up
        with client:
            pid: int = client.admin.command("serverStatus")["pid"]
    except (OSError, PyMongoError):
        return None
    return pid
