"""What a worker stands on beside the topics: its disk, its clock, and MongoDB. Each check gives what is wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import time

from faust_batches import Troubles
from shopflow.errors import Refused, Unavailable
from shopflow.kafka import brokers, connection
from shopflow.kafka.needs import Finding
from shopflow.kafka.security import Bootstrap
from shopflow.store import MongoStore

from .watch import record

#: Seconds between two looks.
LOOK_SECONDS = 60.0
#: The kinds of troubles about MongoDB.
_OF_MONGODB = ("mongodb-features", "mongodb-rights", "mongodb-indexes")
#: The kinds that say nothing about what is stored.
HARMLESS = frozenset({"disk-space", "clock", "mongodb-indexes"})
#: Less free space on the disk of the tables is told.
LEAST_FREE_BYTES = 1 << 30
#: A clock that is more wrong is told. Kafka 4 refuses records from more than an hour ahead, and dead letters are looked
#: up from ten minutes before a batch.
MOST_SECONDS_OFF = 60.0


def free(folder: Path) -> int:
    """The free bytes on the disk that has this folder, or will have it."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def disk(folder: Path) -> list[Finding]:
    """The disk of this folder, if it is nearly full."""
    left = free(folder)
    if left >= LEAST_FREE_BYTES:
        return []
    text = (
        f"data_dir: {left >> 20} MiB are free at {folder}, less than {LEAST_FREE_BYTES >> 20}: when the disk is full, "
        "the work stands still; make space, or take another data_dir"
    )
    return [Finding("disk-space", "data_dir", text)]


def folder(path: Path) -> list[str]:
    """Why nothing can be written into this folder, or it can't be made."""
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir():
        return [f"data_dir: {there} is not a directory; set data_dir to another folder"]
    if not os.access(there, os.W_OK | os.X_OK):
        uid = there.stat().st_uid
        return [f"data_dir: {there} belongs to the user with the id {uid}, and this user can't write to it"]
    return []


def clocks(times: Mapping[str, float | None], now: float) -> list[Finding]:
    """The servers whose clocks differ from this machine's.

    Arguments:
        times: Unix time in seconds at each server; None: it does not tell.
    """
    return [
        Finding(
            "clock",
            server,
            f"The clock of this machine is {abs(off):.0f} s {'behind' if off > 0 else 'ahead of'} that of {server}: "
            "the times of events and of dead letters are wrong; set both clocks, by NTP for example",
        )
        for server, at in times.items()
        if at is not None and abs(off := at - now) > MOST_SECONDS_OFF
    ]


async def mongodb(store: MongoStore) -> list[Finding]:
    """What MongoDB lacks.

    Raises:
        Unavailable: It does not answer, or refuses the login.
    """
    if text := await rights(store):
        return [Finding("mongodb-rights", "MongoDB", text, stops=True)]
    found = []
    if text := await store.lacking():
        found.append(Finding("mongodb-features", "MongoDB", text, stops=True))
    if text := await indexes(store):
        found.append(Finding("mongodb-indexes", "MongoDB", text))
    return found


async def rights(store: MongoStore) -> str:
    user, missing = await store.missing_rights()
    if not missing:
        return ""
    return (
        f"MongoDB lets the user {user} not {', '.join(missing)}: an administrator grants the role readWrite on the "
        "database that mongodb.database names, with db.grantRolesToUser"
    )


async def indexes(store: MongoStore) -> str:
    missing = await store.missing_indexes()
    if not missing:
        return ""
    return (
        f"MongoDB lacks the indexes {', '.join(missing)}: requests that need them read whole collections, until a "
        "running worker has created them again"
    )


class Surroundings:
    """Looks every minute while a worker runs, and records what is wrong as troubles.

    Arguments:
        folder: Returns the folder of the tables; it is known when the worker starts, as is Kafka's address.
    """

    def __init__(
        self, troubles: Troubles, folder: Callable[[], Path], bootstrap: Callable[[], Bootstrap], store: MongoStore
    ) -> None:
        self._troubles, self._folder, self._bootstrap, self._store = troubles, folder, bootstrap, store

    async def round(self) -> float:
        """Look once. Returns the seconds until the next look. While a server is away, its troubles stay as they are."""
        record(self._troubles, disk(self._folder()), "disk-space")
        with suppress(Unavailable, Refused):
            times = {"MongoDB": (await self._store.about()).time}
            async with connection.client(self._bootstrap()) as client:
                times["Kafka"] = await brokers.time(client)
            record(self._troubles, clocks(times, time()), "clock")
        with suppress(Unavailable):
            findings = await mongodb(self._store)
            record(self._troubles, findings, *_OF_MONGODB)
            if any(one.kind == "mongodb-indexes" for one in findings):
                await self._create_indexes()
        return LOOK_SECONDS

    async def _create_indexes(self) -> None:
        """Create the missing ones: they were dropped, maybe with their collections, after the worker's start."""
        try:
            await self._store.prepare()
        except Refused as refused:
            self._troubles.begin("mongodb-indexes", "MongoDB", str(refused), stops=False)
