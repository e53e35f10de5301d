"""The pages of dead letters and of a purchase: looked at, retried with and without a token and JavaScript, followed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from playwright.sync_api import Error

from tests.conftest import OpenShop
from tests.support.shop import Json, Shop, Worker, product, purchase, until

from .conftest import OpenTab, Tab, check_for_everybody
from .test_page import HOSTILE, SOON, now, quiet

pytestmark = pytest.mark.servers

WRITE = "the-write-token-of-this-test"


@pytest.fixture(scope="module")
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop that needs a token for writing, and where purchases hardly wait for their product."""
    with open_shop(batching_product_wait_seconds=0.1, web_write_token=WRITE) as opened:
        yield opened


@pytest.fixture(scope="module")
def worker(shop: Shop) -> Worker:
    return shop.start_worker().ready()


def rejected(shop: Shop, product_id: str) -> Json:
    """A purchase of a product that nobody has offered yet, once it is a dead letter."""
    event = {name: value for name, value in purchase(product_id=product_id).items() if name != "price"}
    before = len(shop.read("dead-letters"))
    shop.sell({**event, "purchased_at": now()})
    until(lambda: len(shop.read("dead-letters")) > before, "it is a dead letter")
    return event


def offer(shop: Shop, product_id: str) -> None:
    shop.offer(product(product_id))
    until(lambda: shop.db.products.find_one({"_id": product_id}), "the product is stored")


def became(tab: Tab, state: str) -> str:
    """The text of what became of the dead letter, once it is this."""
    place = tab.page.locator("#became")

    def there() -> bool:
        with suppress(Error):  # the page is being left
            if (again := tab.page.get_by_role("link", name="Look again")).count():
                again.click()
            return place.get_attribute("data-state") == state
        return False

    until(there, f"it became {state}", SOON)
    return place.inner_text()


def test_a_dead_letter_is_looked_at_and_retried_from_the_page(shop: Shop, worker: Worker, open_tab: OpenTab) -> None:
    """From the warning to the dead letter, to the retry with the token, to what became of it, to the purchase."""
    event = rejected(shop, HOSTILE)
    tab = open_tab(worker)
    page = tab.open()
    warning = page.locator("#sentences a")
    until(lambda: warning.count() == 1, "the page warns", SOON)
    warning.click()
    assert page.url.endswith("/dead-letters/")
    page.locator('[data-table="letters"] a').first.click()
    assert HOSTILE[:20] in page.get_by_label("Value as text").inner_text()
    assert "not retried yet" in became(tab, "none")
    check_for_everybody(page)
    tab.keep("dead-letter")
    page.locator("#token").fill("wrong")
    page.get_by_role("button", name="Retry it").click()
    until(lambda: "the token is wrong" in page.locator("#said").inner_text(), "the worker refuses", SOON)
    tab.errors.clear()  # Chromium logs the 401
    offer(shop, HOSTILE)
    page.locator("#token").fill(WRITE)
    page.get_by_role("button", name="Retry it").click()
    assert "it is stored" in became(tab, "stored")
    assert page.get_by_role("button", name="Retry it").count() == 0
    tab.keep("dead-letter-stored")
    page.get_by_role("link", name="Follow the purchase").click()
    counted = "It is stored once and counted once."
    until(lambda: page.reload() and page.locator("#verdict").inner_text() == counted, "it is counted", SOON)
    steps = {row[0]: row[3] for row in tab.table("steps")}
    assert event["customer_id"] in steps["bought"]
    assert "which is stored" in steps["retried"]
    assert "purchases 0 → 1" in steps["count"]
    check_for_everybody(page)
    tab.keep("trace")
    quiet(tab)


def test_all_of_a_reason_are_retried_with_the_token_kept(shop: Shop, worker: Worker, open_tab: OpenTab) -> None:
    """The token stays in the tab, so that it is typed once. On a phone nothing scrolls sideways."""
    events = [rejected(shop, "later") for _ in range(2)]
    offer(shop, "later")
    tab = open_tab(worker, viewport={"width": 390, "height": 844})
    page = tab.open("/dead-letters/")
    page.locator("#token").fill(WRITE)
    page.get_by_role("button", name="Retry all whose reason contains this").first.click()
    page.locator('[role="status"]').wait_for()
    assert page.locator('[role="status"]').inner_text().startswith("2 retried, ")
    assert page.locator("#token").input_value() == WRITE
    until(lambda: all(shop.stored(event) for event in events), "they are stored")
    assert tab.width() <= 390
    check_for_everybody(page)
    tab.keep("dead-letters-phone")
    tab.open(f"/trace/?purchase={events[0]['purchase_id']}")
    assert tab.width() <= 390
    check_for_everybody(page)
    tab.keep("trace-phone")
    quiet(tab)


def test_without_javascript_a_shop_without_tokens_is_served(open_shop: OpenShop, open_tab: OpenTab) -> None:
    """Forms and links are enough to retry and to follow, if no token is needed."""
    with open_shop(batching_product_wait_seconds=0.1) as shop:
        worker = shop.start_worker().ready()
        event = rejected(shop, "plain")
        tab = open_tab(worker, java_script_enabled=False, color_scheme="dark")
        page = tab.open("/dead-letters/")
        page.locator('[data-table="letters"] a').first.click()
        offer(shop, "plain")
        page.get_by_role("button", name="Retry it").click()
        assert "it is stored" in became(tab, "stored")
        tab.keep("dead-letter-dark")
        page.get_by_role("link", name="A purchase").click()
        page.locator("#purchase-id").fill(event["purchase_id"])
        page.get_by_role("button", name="Follow").click()
        assert "It is stored once" in page.locator("#verdict").inner_text()
        tab.keep("trace-dark")
