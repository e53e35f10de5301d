"""What a MongoDB server must be able to do, and whether one can. Every request here changes and leaves nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pymongo
from pymongo.errors import OperationFailure, PyMongoError

from shopflow.errors import Refused, Unavailable

from .connection import INDEXES, Connection
from .errors import is_unable, one_line, translated
from .rules import replacement
from .sales import sale_update
from .types import PRODUCTS, PURCHASES, SALES, TIME, Document, PartitionSales

#: The lowest version of MongoDB with all that is tried here: `$dateTrunc` came last.
LOWEST = "5.0"
#: How long all trials may take at a start.
_TRIAL_SECONDS = 3.0
#: No document has it: all ids are texts. It is a plain value, which is looked up in the index. For a document,
#: SecantusDB would read the whole collection, and hold up all writes meanwhile.
_NOBODY = -1
_AT = datetime(2026, 1, 1, tzinfo=timezone.utc)
_SUMS: Document = {"units": {"$sum": "$quantity"}, "revenue": {"$sum": "$value"}}
#: What `readWrite` grants and is needed.
_ACTIONS = ("find", "insert", "update", "remove", "createIndex", "listIndexes")


@dataclass(frozen=True)
class About:
    """A server, as it describes itself.

    Attributes:
        named: Its hosts and its version, as the beginning of a sentence.
        time: Its clock's Unix time in seconds; None: it does not tell.
        replica_set: Its name; empty: the server is alone, or part of a sharded cluster.
        members: Of the replica set, that hold data and can be elected.
    """

    named: str
    time: float | None
    replica_set: str
    members: int
    sharded: bool


class Features(Connection):
    """Tries what the other collections' requests need."""

    async def check_features(self) -> None:
        """Return if the server can do all that is needed, or if it is away or refuses the user: that shows later.

        Raises:
            Refused: It can't; the message names what.
        """
        with suppress(Unavailable), pymongo.timeout(_TRIAL_SECONDS):
            if lacking := await self.lacking():
                raise Refused(f"mongodb.uri: {lacking}")

    async def lacking(self) -> str:
        """A sentence about all that the server does not know; empty if it knows everything.

        Raises:
            Unavailable: The server does not answer, or the user lacks the rights for a trial.
        """
        unknown = {}
        for name, trial in self._trials():
            try:
                await trial
            except Unavailable as error:
                if not is_unable(error.__cause__):
                    raise
                unknown[name] = str(error).removeprefix("MongoDB: ")
        if not unknown:
            return ""
        names, words = ", ".join(unknown), one_line("; ".join(dict.fromkeys(unknown.values())))
        return (
            f"{await self.named()} does not know {names}: shopflow needs MongoDB {LOWEST} or later, or a server that "
            f"can do the same ({words})"
        )

    def _trials(self) -> Iterator[tuple[str, Awaitable[Any]]]:
        """What is tried, by its name. As the requests of the other modules, but for documents that nobody has."""
        product: Document = {"_id": _NOBODY, TIME[PRODUCTS]: _AT, "source": {"topic": "", "partition": 0, "offset": 0}}
        sale = sale_update(0, PartitionSales("hour", _AT, "", 0, 0, 0, (0, 0)))
        by_hour = {"$dateTrunc": {"date": "$purchased_at", "unit": "hour"}}
        yield "w: majority with j: true", self._update(PRODUCTS, {"$set": {"name": ""}})
        yield "updates with a pipeline", self._update(PRODUCTS, replacement(product, TIME[PRODUCTS])["u"])
        yield "$map and $objectToArray in updates", self._update(SALES, sale["u"])
        yield "$group with two sums", self._grouped({"_id": "$product_id", **_SUMS})
        yield "$dateTrunc", self._grouped({"_id": by_hour, **_SUMS})

    async def _update(self, name: str, update: Document | Sequence[Document]) -> None:
        await self._tried({"update": name, "updates": [{"q": {"_id": _NOBODY}, "u": update}], **self._how_to_write()})

    async def missing_indexes(self) -> list[str]:
        """The indexes that are missing on collections with documents. A worker creates them before its first write.

        Raises:
            Unavailable: The server does not answer, or the user may not see them.
        """
        missing = []
        for name, keys in INDEXES:
            collection = self._collection(name)
            with translated():
                found = [index["key"] for index in (await collection.index_information()).values()]
            if keys not in found and await self._read(name, {}, {"_id": 1}, limit=1):
                missing.append(f"{name}({', '.join(field for field, _ in keys)})")
        return missing

    async def missing_rights(self) -> tuple[str, list[str]]:
        """The user, and the actions on the database that the user may not do. "" and none: no login, or not told.

        Raises:
            Unavailable: The server does not answer, or refuses the login.
        """
        with translated():
            reply = await self._connected.admin.command({"connectionStatus": 1, "showPrivileges": True})
        users = reply["authInfo"].get("authenticatedUsers") or []
        privileges = reply["authInfo"].get("authenticatedUserPrivileges")
        if not users or not privileges:  # some servers tell the roles only
            return "", []
        granted = {
            action
            for one in privileges
            if one["resource"].get("anyResource") or one["resource"].get("db") in {"", self._database}
            for action in one["actions"]
        }
        missing = [action for action in _ACTIONS if action not in granted and "anyAction" not in granted]
        return str(users[0].get("user", "")), missing

    async def about(self) -> About:
        """The server as it describes itself.

        Raises:
            Unavailable: The server does not answer, or refuses the login.
        """
        with translated():
            hello = await self._connected.admin.command("hello")
        at = hello.get("localTime")
        return About(
            named=await self.named(),
            time=at.replace(tzinfo=timezone.utc).timestamp() if isinstance(at, datetime) else None,
            replica_set=str(hello.get("setName", "")),
            members=len(hello.get("hosts") or []),
            sharded=hello.get("msg") == "isdbgrid",
        )

    async def _grouped(self, group: Document) -> None:
        stages = [{"$match": {"_id": _NOBODY}}, {"$group": group}, {"$sort": {"_id": 1}}]
        options = {"cursor": {}, "allowDiskUse": True, "readConcern": {"level": "majority"}}
        await self._tried({"aggregate": PURCHASES, "pipeline": stages, **options})

    async def _tried(self, command: Document) -> None:
        """Send a command. An error of its statement is raised as one of the command."""
        with translated():
            reply = await self._connected.get_database(self._database).command(command)
            for error in reply.get("writeErrors") or [reply.get("writeConcernError")]:
                if error:
                    raise OperationFailure(str(error.get("errmsg", "")), error.get("code"))

    async def named(self) -> str:
        """The server, its hosts and its version, for a message."""
        at = ",".join(sorted(f"{host}:{port}" for host, port in self._connected.nodes))
        try:
            about = await self._connected.admin.command("buildInfo")
        except PyMongoError:
            about = {}
        version = about.get("version", "unknown")
        # Other servers give their own version beside the one that they imitate, like `ferretdbVersion`.
        names = [name for name in about if name.endswith("Version") and name != "gitVersion"]
        others = [f", {name.removesuffix('Version')} {about[name]}" for name in names]
        return f"MongoDB at {at or 'no host'} (version {version}{''.join(others)})"
