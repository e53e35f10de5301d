"""What a worker stands on beside the topics: what is said of a disk, a clock and a MongoDB that are not as needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import time
from typing import Any, cast

import pytest

from faust_batches import Troubles
from shopflow.errors import Unavailable
from shopflow.kafka.security import Bootstrap
from shopflow.operations import surroundings
from shopflow.operations.surroundings import Surroundings, clocks, disk, folder
from shopflow.store import MongoStore
from shopflow.store.features import About


def test_a_disk_is_told_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder need not be there yet."""
    there = tmp_path / "data" / "worker-6066"
    assert disk(there) == []
    monkeypatch.setattr(surroundings, "LEAST_FREE_BYTES", 1 << 62)
    (found,) = disk(there)
    assert found.kind == "disk-space"
    assert "the work stands still; make space" in found.text
    assert not found.stops


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    assert folder(tmp_path / "data" / "deeper") == []
    (tmp_path / "file").write_text("no folder")
    assert folder(tmp_path / "file") == folder(tmp_path / "file" / "data")
    assert "is not a directory" in folder(tmp_path / "file")[0]


@pytest.mark.parametrize(("at", "says"), [(1_100.0, "100 s behind that of Kafka"), (900.0, "100 s ahead of that of K")])
def test_a_wrong_clock_is_told_with_the_direction(at: float, says: str) -> None:
    (found,) = clocks({"Kafka": at, "MongoDB": 1_030.0}, 1_000.0)
    assert (found.kind, found.subject, found.stops) == ("clock", "Kafka", False)
    assert says in found.text


def test_a_server_that_does_not_tell_its_time_is_not_judged() -> None:
    assert clocks({"Kafka": None}, 1_000.0) == []


def privileges(*granted: tuple[dict[str, Any], list[str]]) -> dict[str, Any]:
    """MongoDB's answer to `connectionStatus`."""
    return {
        "authenticatedUsers": [{"user": "shop", "db": "admin"}],
        "authenticatedUserPrivileges": [{"resource": where, "actions": actions} for where, actions in granted],
    }


#: As `readWrite` grants them, and more.
ALL = ["find", "insert", "update", "remove", "createIndex", "listIndexes", "dropCollection"]


@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        (privileges(({"db": "mine", "collection": ""}, ALL)), ""),
        (privileges(({"db": "", "collection": ""}, ALL)), ""),
        (privileges(({"anyResource": True}, ["anyAction"])), ""),
        ({"authenticatedUsers": []}, ""),
        (privileges(), ""),
        (
            privileges(({"db": "mine", "collection": ""}, ["find", "listIndexes"])),
            "insert, update, remove, createIndex",
        ),
        (
            privileges(({"db": "other", "collection": ""}, ALL)),
            "find, insert, update, remove, createIndex, listIndexes",
        ),
    ],
)
def test_the_rights_that_a_user_lacks_are_named(
    answer: dict[str, Any], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Admin:
        async def command(self, _: Any) -> dict[str, Any]:
            return {"authInfo": answer, "ok": 1.0}

    class Client:
        admin = Admin()

    store = MongoStore("mine")
    monkeypatch.setattr(store, "_client", Client())
    said = asyncio.run(surroundings.rights(store))
    assert said.startswith(f"MongoDB lets the user shop not {missing}: an administrator") if missing else said == ""


class Server:
    """A MongoDB as `Surroundings` asks it."""

    def __init__(self) -> None:
        self.unknown, self.off = False, 0.0
        self.missing: list[str] = []
        self.away = False

    async def about(self) -> About:
        if self.away:
            raise Unavailable("MongoDB", "away")
        return About("MongoDB at h:1 (version 1)", time() + self.off, "", 0, sharded=False)

    async def missing_rights(self) -> tuple[str, list[str]]:
        if self.away:
            raise Unavailable("MongoDB", "away")
        return "", []

    async def lacking(self) -> str:
        return "MongoDB does not know $dateTrunc" if self.unknown else ""

    async def missing_indexes(self) -> list[str]:
        return self.missing

    async def prepare(self) -> None:
        self.missing = []


def test_what_is_found_is_a_trouble_until_it_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a server is away, nobody knows: its troubles stay as they are."""

    @asynccontextmanager
    async def no_client(_: Bootstrap) -> AsyncIterator[None]:
        yield

    async def untold(_: Any) -> None:
        return None

    monkeypatch.setattr(surroundings.connection, "client", no_client)
    monkeypatch.setattr(surroundings.brokers, "time", untold)
    troubles, server = Troubles(), Server()
    watch = Surroundings(troubles, lambda: tmp_path, lambda: Bootstrap("kafka:1"), cast(MongoStore, server))

    def look() -> set[tuple[str, bool]]:
        assert asyncio.run(watch.round()) == 60.0
        return {(trouble.kind, trouble.stops) for trouble in troubles.present}

    assert look() == set()
    server.unknown, server.off, server.missing = True, 3_600.0, ["purchases(customer_id, purchased_at)"]
    monkeypatch.setattr(surroundings, "LEAST_FREE_BYTES", 1 << 62)
    found = {("mongodb-features", True), ("mongodb-indexes", False), ("clock", False), ("disk-space", False)}
    assert look() == found
    assert server.missing == [], "they were dropped while the worker ran: it creates them again"
    server.away, server.unknown, server.off = True, False, 0.0
    assert look() == found
    server.away = False
    monkeypatch.setattr(surroundings, "LEAST_FREE_BYTES", 1)
    assert look() == set()
