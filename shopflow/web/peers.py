"""The other workers of the shop, as one worker asks them over HTTP."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp
from yarl import URL

from shopflow.app import app, config

from . import client

#: How long another worker may take for an answer.
SECONDS = 2.0
#: In the query of a request from another worker: answer from your own partitions, ask nobody.
LOCAL = "local"


def headers() -> dict[str, str]:
    """The headers of a request to a worker, with the token for reading if there is one."""
    return client.bearer(config.web.read_token)


def me() -> URL:
    """The address by which the other workers know this one."""
    return URL(str(app.conf.canonical_url)).origin()


def others() -> list[URL]:
    """The other workers, as of the last assignment."""
    return sorted({URL(str(host)).origin() for host in app.router.tables_metadata()} - {me()}, key=str)


async def ask(
    host: URL, path: str, query: Mapping[str, str] | None = None, seconds: float = SECONDS
) -> tuple[int, bytes]:
    """Status and body of a view of a worker.

    Arguments:
        path: Percent-encoded.

    Raises:
        Unavailable: It does not answer.
    """
    url = host.with_path(path, encoded=True).with_query(query or {})
    timeout = aiohttp.ClientTimeout(total=seconds)
    return await client.ask(app.http_client, str(host), url, timeout=timeout, headers=headers())
