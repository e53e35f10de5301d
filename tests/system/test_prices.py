"""Price history: the same after late and repeated events and a replay, and as `price-history` shows it."""

from __future__ import annotations

import os
import pty
import random
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.commands.test_plots import BLOCKS
from tests.conftest import OpenShop
from tests.support.shop import FAUST, Json, Record, Shop, product, purchase

pytestmark = pytest.mark.servers

#: The prices of bread: the day in January 2025, and grosze.
CHANGES = ((2, 500), (5, 700), (9, 650), (12, 900))


@pytest.fixture
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop of the test's own."""
    with open_shop(batching_product_wait_seconds=0.5, batching_max_records=20) as shop:
        yield shop


def day(number: int, hour: int = 0) -> str:
    """A time in January 2025."""
    return f"2025-01-{number:02}T{hour:02}:00:00Z"


def bread(number: int, price: int) -> Json:
    """A product event: this price of bread from this day on."""
    return product("bread", price=price, updated_at=day(number))


def unpriced(name: str, number: int, product_id: str = "bread", quantity: int = 1) -> Json:
    """A purchase without a price on that day at noon."""
    bought = purchase(f"c-{name}", purchase_id=name, product_id=product_id, quantity=quantity)
    return {**{name: value for name, value in bought.items() if name != "price"}, "purchased_at": day(number, 12)}


def right(number: int) -> int:
    """The price of bread at noon of that day."""
    return next((price for since, price in reversed(CHANGES) if since <= number), CHANGES[0][1])


def bought(shop: Shop) -> dict[str, int]:
    """The price of each purchase."""
    return {one["_id"]: one["price"] for one in shop.db.purchases.find()}


def history(shop: Shop, *arguments: str) -> Any:
    """What `price-history --json` prints of bread."""
    return shop.run("price-history", "bread", "--json", *arguments).json()


def shown(units: dict[int, int]) -> list[Json]:
    """The prices of `CHANGES` as JSON; `units` has the units sold at the price that began on a day."""
    times = [day(number) for number, _ in CHANGES]
    return [
        {"since": since, "until": until, "price": price, "units": units[number], "revenue": units[number] * price}
        for since, until, (number, price) in zip(times, [*times[1:], None], CHANGES, strict=True)
    ]


@pytest.mark.slow
def test_late_and_repeated_product_events_leave_the_right_prices_also_after_a_replay(shop: Shop) -> None:
    """Product events come in any order, some twice. Purchases get the price of their day, also if MongoDB was lost."""
    seed = random.randrange(1_000_000)
    print("seed", seed)
    some = random.Random(seed)
    worker = shop.start_worker().ready()
    events = [bread(*change) for change in some.sample([*CHANGES, *some.choices(CHANGES, k=6)], 10)]
    shop.offer(*events)
    shop.drain()
    days = list(range(2, 20)) * 3
    shop.sell(*(unpriced(f"p{number}-{at}", at) for number, at in enumerate(some.sample(days, len(days)))))
    shop.drain()
    prices = bought(shop)
    assert prices == {name: right(int(name.partition("-")[2])) for name in prices}
    assert len(prices) == len(days)

    shop.offer(*some.choices(events, k=5))  # repeated events, after the purchases
    shop.drain()
    units = {since: 3 * sum(right(at) == price for at in range(2, 20)) for since, price in CHANGES}
    assert history(shop) == {"product_id": "bread", "name": "Mleko", "prices": shown(units), "other_prices": []}

    before = sorted(shop.db.prices.find(), key=lambda one: one["_id"])
    shop.db.client.drop_database(shop.name)
    assert shop.run("replay").status == 0
    shop.drain()
    after = sorted(shop.db.prices.find(), key=lambda one: one["_id"])
    assert [{**one, "source": None} for one in after] == [{**one, "source": None} for one in before]
    assert bought(shop) == prices
    assert history(shop)["prices"] == shown(units)
    shop.agrees()
    assert worker.stop() == 0


@pytest.mark.slow
def test_a_price_that_comes_too_late_changes_the_history_not_what_was_paid(shop: Shop) -> None:
    """A decided price stays, also in a replay. Purchases that come later get the late price."""
    worker = shop.start_worker().ready()
    shop.offer(bread(2, 500), bread(9, 650))
    shop.drain()
    shop.sell(unpriced("early", 6))
    shop.drain()
    shop.offer(bread(5, 700))
    shop.drain()
    shop.sell(unpriced("later", 6, quantity=2), unpriced("before-all", 1))
    shop.drain()
    paid = {"early": 500, "later": 700, "before-all": 500}
    for _ in range(2):
        assert bought(shop) == paid
        said = history(shop)
        assert [(one["since"], one["price"], one["units"], one["revenue"]) for one in said["prices"]] == [
            (None, 500, 1, 500),
            (day(2), 500, 0, 0),
            (day(5), 700, 2, 2 * 700),
            (day(9), 650, 0, 0),
        ]
        (other,) = said["other_prices"]
        assert (other["since"], other["price"], other["units"], other["revenue"]) == (day(5), 500, 1, 500)
        shop.db.client.drop_database(shop.name)
        assert shop.run("replay").status == 0
        shop.drain()
    assert worker.stop() == 0


def test_a_deleted_product_keeps_its_prices_and_is_not_for_sale(shop: Shop) -> None:
    """After the deletion there is a period without a price, until the product is offered again."""
    worker = shop.start_worker().ready()
    shop.offer(bread(2, 500))
    shop.send("products", Record(b"bread", None))
    shop.drain()
    said = history(shop)
    assert said["name"] is None
    assert [one["price"] for one in said["prices"]] == [500, None]
    assert said["prices"][0]["until"] == said["prices"][1]["since"]
    assert said["prices"][1]["until"] is None
    assert [one["price"] for one in history(shop, "--since", said["prices"][1]["since"])["prices"]] == [None]
    plain = shop.run("price-history", "bread")
    assert "not for sale" in plain.stdout.splitlines()[-1]
    shop.offer(product("bread", price=800, updated_at="2099-01-01T00:00:00Z"))
    shop.drain()
    said = history(shop)
    assert (said["name"], [one["price"] for one in said["prices"]]) == ("Mleko", [500, None, 800])
    assert worker.stop() == 0


@pytest.fixture(scope="module")
def seeded(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop with products, customers and purchases, all written with `--direct`."""
    with open_shop() as shop:
        for arguments in (["seed-products"], ["seed-customers"], ["seed-purchases", "--count", "60", "--rate", "0"]):
            assert shop.run(*arguments, "--direct").status == 0
        yield shop


def on_a_terminal(shop: Shop, *arguments: str, columns: int = 100, **environment: str) -> list[str]:
    """The lines that a command writes to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*FAUST, *arguments],
        env={**shop.environment, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40", **environment},
        cwd=shop.folder,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    shown = b""
    try:
        while part := _read(ours):
            shown += part
        assert process.wait(30) == 0, process.communicate()[1]
    finally:
        os.close(ours)
        process.kill()
        process.communicate()
    return shown.decode().splitlines()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux: the other end is closed
        return b""


def test_a_terminal_shows_a_plot_and_other_outputs_plain_lines(seeded: Shop) -> None:
    """The plot has colors unless NO_COLOR is set. A narrow terminal gets no plot, and no end of a price."""
    plain = seeded.run("price-history", "chleb-zytni").stdout.splitlines()
    assert plain[0] == "Chleb żytni 500 g  (chleb-zytni)"
    assert len(plain) == 3
    colored = on_a_terminal(seeded, "price-history", "chleb-zytni", NO_COLOR="")
    assert colored[: len(plain)] == plain
    assert any("\x1b[" in line for line in colored)
    drawn = on_a_terminal(seeded, "price-history", "chleb-zytni", NO_COLOR="1")
    assert drawn[: len(plain)] == plain
    assert {"Price, zł", "Units sold per minute"} <= set(drawn)
    # If none of the purchases is one of this product, only its new price is drawn: a dot at the right edge.
    assert BLOCKS & set("".join(drawn)), "\n".join(drawn)
    assert not any("\x1b" in line for line in drawn)
    assert max(map(len, drawn)) <= 100
    narrow = on_a_terminal(seeded, "price-history", "chleb-zytni", columns=59)
    assert len(narrow) == len(plain)
    assert max(map(len, narrow)) <= 59
    assert len(on_a_terminal(seeded, "price-history", "chleb-zytni", "--json")) == 1


def test_an_error_is_one_line(seeded: Shop) -> None:
    """An unknown product and a wrong time end with status 2 and name the argument."""
    unknown, timeless, nothing = seeded.run_all(
        [["price-history", "no-such"], ["price-history", "chleb-zytni", "--since", "soon"], ["price-history"]]
    )
    assert (unknown.status, unknown.stdout) == (2, "")
    assert unknown.errors == ["Error: product_id: there is no product 'no-such' in MongoDB, and never was"]
    assert timeless.status == nothing.status == 2
    assert "--since" in timeless.errors[-1]
    assert "ISO 8601" in timeless.errors[-1]
    assert "PRODUCT_ID" in nothing.errors[-1]


def test_since_takes_what_people_write(seeded: Shop) -> None:
    """`--since` takes a day, and a time with or without an offset."""
    times = ["2020-01-01", "2020-01-01T12:00", "2020-01-01T12:00:00Z", "2020-01-01 12:00:00+02:00", "2090-01-01"]
    for done in seeded.run_all([["price-history", "chleb-zytni", "--json", "--since", time] for time in times]):
        assert len(done.json()["prices"]) == 1
