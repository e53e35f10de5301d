"""The other workers of the shop, as one worker asks them over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import aiohttp
import msgspec
from yarl import URL

from shopflow.app import app, config
from shopflow.errors import Unavailable

from . import client

T = TypeVar("T")

#: How long another worker may take for an answer.
SECONDS = 2.0
#: In the query of a request from another worker: answer from your own partitions only.
LOCAL = "local"


def me() -> URL:
    """The address by which the other workers know this one."""
    return URL(str(app.conf.canonical_url)).origin()


def others() -> list[URL]:
    """The other workers, as of the last assignment."""
    return sorted({URL(str(host)).origin() for host in app.router.tables_metadata()} - {me()}, key=str)


async def fetch(
    host: URL, path: str, kind: type[T], query: Mapping[str, str] | None = None, seconds: float = SECONDS
) -> T | None:
    """The answer of another worker from its own partitions; None if it answers 404.

    Arguments:
        path: Percent-encoded.
        kind: The type of the answer.

    Raises:
        Unavailable: The worker does not answer, or not with this type.
    """
    url = host.with_path(path, encoded=True).with_query({**(query or {}), LOCAL: "1"})
    options = {"timeout": aiohttp.ClientTimeout(total=seconds), "headers": client.bearer(config.web.read_token)}
    status, body = await client.ask(app.http_client, str(host), url, **options)
    if status == 404:
        return None
    if status != 200:
        raise Unavailable(str(host), client.reason(body, status))
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unavailable(str(host), f"not the answer of a worker: {error}") from error
