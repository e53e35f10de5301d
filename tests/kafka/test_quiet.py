"""Log lines that a command leaves out, beside its one line about an error."""

from __future__ import annotations

import asyncio
import gc
import logging
import ssl

import pytest

from shopflow.kafka import connection


@pytest.mark.parametrize(
    ("error", "printed"),
    [(ssl.SSLError(1, "certificate unknown"), False), (ConnectionResetError(), False), (ValueError("a bug"), True)],
)
def test_the_error_of_a_connection_that_was_given_up_is_no_news(
    error: Exception, printed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio would log the refusal again, with a traceback, when aiokafka's connection is collected."""

    async def lost() -> None:
        asyncio.get_running_loop().create_future().set_exception(error)
        gc.collect()

    logger = logging.getLogger("asyncio")
    filters, level = logger.filters[:], logging.getLogger("aiokafka").level
    try:
        connection.quiet()
        asyncio.run(lost())
    finally:
        logger.filters = filters
        logging.getLogger("aiokafka").setLevel(level)
    assert any("never retrieved" in record.getMessage() for record in caplog.records) == printed
