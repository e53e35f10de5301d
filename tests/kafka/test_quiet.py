"""Log lines that are left out: those beside a command's one line about an error, and those of a fenced producer."""

from __future__ import annotations

import asyncio
import gc
import logging
import ssl
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import ProducerFenced

from shopflow.kafka import connection, transactions


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


def test_a_transaction_in_a_worker_leaves_its_handler_of_errors_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page retries in a worker, whose own handler gets all other errors, however often it was retried before."""
    told: list[Any] = []

    class Client:
        """A producer that does nothing."""

        client = SimpleNamespace(_metadata_update=None)

        def __init__(self, **options: Any) -> None: ...

        async def start(self) -> None: ...

        async def stop(self) -> None: ...

    async def retry_three_times() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: told.append(context["exception"]))
        for _ in range(3):
            bootstrap: Any = type("Bootstrap", (), {"options": {}})
            async with transactions.transactions(bootstrap, "id"):
                pass
        for error in (ProducerFenced(), bug):
            loop.call_exception_handler({"message": "", "exception": error})

    bug = ValueError("a bug")
    monkeypatch.setattr(transactions, "AIOKafkaProducer", Client)
    asyncio.run(retry_three_times())
    assert told == [bug]
