"""What a server must know: tried without a trace, and named if it lacks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest
from pymongo.database import Database
from pymongo.errors import AutoReconnect, ConfigurationError, OperationFailure

from shopflow.errors import Refused, Unavailable
from shopflow.store import MongoStore
from shopflow.store.errors import is_unable
from shopflow.store.types import Document
from tests.conftest import Run
from tests.support.documents import kafka, product
from tests.support.proxy import Proxy


@pytest.fixture
def proxy(mongodb_uri: str) -> Iterator[Proxy]:
    with Proxy(mongodb_uri) as made:
        yield made


@pytest.fixture
def behind(proxy: Proxy, database: Database[Document], run: Run) -> Iterator[MongoStore]:
    """A store whose server is behind the proxy."""
    made = MongoStore(database.name)
    made.connect(proxy.uri)
    yield made
    run(made.close())


def test_a_server_that_knows_all_is_left_as_it_was(store: MongoStore, run: Run, database: Database[Document]) -> None:
    """It is tried at each start and again every minute, beside a running shop."""
    run(store.upsert_products([product(399, source=kafka(1))]))
    before = {name: list(database[name].find()) for name in database.list_collection_names()}
    assert run(store.lacking()) == ""
    run(store.check_features())
    assert {name: list(database[name].find()) for name in database.list_collection_names()} == before


def test_a_large_collection_is_not_read(store: MongoStore, run: Run, database: Database[Document]) -> None:
    """SecantusDB lets all writes wait while it reads a collection: at each start and every minute that was a second."""
    database["purchases"].insert_many([{"_id": f"b-{number}", "quantity": 1} for number in range(20_000)])

    def seconds(work: Callable[[], Any]) -> float:
        began = monotonic()
        work()
        return monotonic() - began

    whole = min(seconds(lambda: list(database["purchases"].find({"quantity": 2}))) for _ in range(3))
    assert min(seconds(lambda: run(store.lacking())) for _ in range(3)) < whole / 2


@pytest.mark.parametrize(
    ("operator", "named"),
    [
        ("replaceWith", "updates with a pipeline"),
        ("objectToArray", r"\$map and \$objectToArray in updates"),
        ("dateTrunc", r"\$dateTrunc"),
        ("sum", r".*\$group with two sums"),
    ],
)
def test_a_server_that_lacks_something_is_refused_with_its_name(
    behind: MongoStore, proxy: Proxy, run: Run, operator: str, named: str
) -> None:
    """Such a server would be "away" for ever: each write fails, and is tried again."""
    proxy.lack(operator)
    says = rf"mongodb.uri: MongoDB at 127\.0\.0\.1:{proxy.port} \(version .+\) does not know {named}.*: shopflow needs"
    with pytest.raises(Refused, match=says) as refused:
        run(behind.check_features())
    assert f"(Unrecognized expression '${operator}')" in str(refused.value)
    proxy.heal()
    run(behind.check_features())


def test_a_server_that_is_away_or_refuses_the_user_is_not_called_too_old(
    behind: MongoStore, proxy: Proxy, run: Run
) -> None:
    """The worker starts, and waits for it; what it can do is tried again when it is back."""
    proxy.refuse(13)
    run(behind.check_features())
    with pytest.raises(Unavailable):
        run(behind.lacking())
    proxy.close()
    run(behind.check_features())


def test_only_what_does_not_pass_counts() -> None:
    assert is_unable(OperationFailure("Command is not implemented", 238))
    assert is_unable(ConfigurationError("Server at h:1 reports wire version 6, but this version requires at least 8"))
    assert not is_unable(ConfigurationError("The DNS query name does not exist"))
    assert not is_unable(OperationFailure("not authorized", 13))
    assert not is_unable(OperationFailure("node is shutting down", 91))
    assert not is_unable(AutoReconnect("connection closed"))
    assert not is_unable(None)
