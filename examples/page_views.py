"""An application on `faust_batches` alone: it stores page views from Kafka in MongoDB, and counts each once.

    faust -A examples.page_views worker

`KAFKA` and `MONGODB` in the environment are the servers' addresses. A view is a record of the topic `page-views`, with
the page as its key. Any worker returns a page's number of views under `/views/PAGE/`.
"""

from __future__ import annotations

import os
from typing import Any

import faust
import msgspec
from faust.web import View
from pymongo import AsyncMongoClient
from pymongo.errors import BulkWriteError, PyMongoError

from faust_batches import App, Batch, Outage, Unavailable, retrying

DUPLICATE_KEY = 11000

app = App(
    "page-views",
    broker=os.environ.get("KAFKA", "kafka://localhost"),
    store="rocksdb://?driver=rocksdict",
    topic_partitions=4,  # as many as the topic has
)
mongodb = Outage("MongoDB")
clients: list[AsyncMongoClient[dict[str, Any]]] = []


class Views(faust.Record, serializer="json"):
    """The number of a page's views, up to and including the record at `offset`."""

    views: int = 0
    era: int = 0
    offset: int = -1


table = app.exactly_once_table("views", value=Views, source="page-views")
encode, decode = msgspec.json.encode, msgspec.json.Decoder(dict[str, int]).decode


@app.batch_agent("page-views")
async def page_views(batch: Batch) -> None:
    """Store each view under its own id, then count it unless it was counted before."""
    documents = [
        {"_id": f"{batch.tp.partition}:{record.offset}", "page": record.key.decode()} for record in batch.records
    ]
    await retrying(mongodb, batch.check_owned, lambda: store(documents))

    get, counts = table.reader(batch.tp.partition), dict[bytes, dict[str, int]]()
    for record in batch.records:
        if record.key not in counts:
            counts[record.key] = decode(get(record.key) or b'{"views":0,"offset":-1}')
        count = counts[record.key]
        if record.offset > count["offset"]:  # else it was counted before
            count["views"] += 1
            count["offset"] = record.offset
    await table.write(batch, [(page, encode(count)) for page, count in counts.items()])


async def store(documents: list[dict[str, Any]]) -> None:
    """Insert documents. Duplicates of an earlier attempt are not errors.

    Raises:
        Unavailable: MongoDB did not confirm all documents.
    """
    if not clients:  # made here, in the worker's event loop
        clients.append(AsyncMongoClient(os.environ.get("MONGODB", "mongodb://localhost"), w="majority", journal=True))
    try:
        await clients[0]["page-views"]["views"].insert_many(documents, ordered=False)
    except BulkWriteError as error:
        if any(one["code"] != DUPLICATE_KEY for one in error.details["writeErrors"]):
            raise Unavailable("MongoDB", error) from error
    except PyMongoError as error:
        raise Unavailable("MongoDB", error) from error


@app.page("/views/{page}/")
@app.table_route(table=table, match_info="page")
async def views(web: View, request: Any, page: str) -> Any:
    """Return the number of the page's views."""
    count = table.get(page)
    return web.json({"page": page, "views": count.views if count else 0})
