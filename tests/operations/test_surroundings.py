"""What a worker stands on beside the topics: what is said of a disk, a clock and a MongoDB that are not as needed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shopflow.operations import surroundings
from shopflow.operations.surroundings import clocks, disk, folder
from shopflow.store import MongoStore


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
