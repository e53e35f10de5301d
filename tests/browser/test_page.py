"""The page at `/`: it moves while the shop sells, says what is wrong, and runs no script from an event."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest
from playwright.sync_api import Error, Locator

from shopflow.servers.servers import Addresses
from tests.conftest import OpenShop
from tests.support.proxy import Proxy
from tests.support.shop import Json, Record, Shop, Worker, becomes, customer, product, purchase, until
from tests.support.text import plain, solid

from .conftest import OpenTab, Tab, check_for_everybody

pytestmark = pytest.mark.servers

#: Starts a worker as if the extra `page` were not installed.
WITHOUT_EXTRA = (
    sys.executable,
    "-c",
    "import sys; sys.modules['bokeh'] = None; from shopflow.__main__ import main; main()",
)
HOSTILE = "<img src=x onerror=document.title='owned'><script>self.owned=1</script>"
#: Seconds in which the page must show a change.
SOON = 20.0


def cut(name: str) -> str:
    """A name as a table shows it."""
    return name if len(name) <= 60 else f"{name[:60]}..."


def now() -> str:
    """The present time, for an event."""
    return datetime.now(timezone.utc).isoformat()


@pytest.fixture(scope="module")
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop with products and customers."""
    with open_shop() as opened:
        opened.start_worker().ready()
        opened.offer(product("milk", name="Mleko"), product("evil", name=HOSTILE))
        opened.register(customer("anna", first_name="Anna", last_name="Nowak"))
        opened.register(customer("zofia", first_name="Zofia", last_name="Nowak"))
        opened.sell(purchase("anna", product_id="milk", quantity=3, price=450, purchased_at=now()))
        opened.sell(purchase("zofia", product_id="milk", quantity=3, price=450, purchased_at=now()))
        opened.drain()
        yield opened


@pytest.fixture
def worker(shop: Shop) -> Worker:
    """The shop's worker."""
    found = next(one for one in shop._processes if isinstance(one, Worker))
    assert found.status is None
    return found


def quiet(tab: Tab) -> None:
    """The page had no error, and requested nothing from others than its worker."""
    assert tab.errors == []
    assert tab.foreign == []


def test_the_numbers_and_the_charts_move_while_the_shop_sells(shop: Shop, worker: Worker, open_tab: OpenTab) -> None:
    """An open page shows new purchases by itself, in numbers, tables and charts."""
    tab = open_tab(worker)
    tab.open()
    until(lambda: len(tab.column("purchases")) == 300, "the charts have data")
    before, sold = int(tab.number("Purchases so far")), sum(tab.column("purchases"))
    shop.sell(
        *(purchase("anna", product_id="milk", quantity=1, price=1250, purchased_at=now()) for _ in range(40)),
    )
    until(lambda: tab.number("Purchases so far") == str(before + 40), "the sum has moved", SOON)
    until(lambda: sum(tab.column("purchases")) == sold + 40, "the chart of purchases has moved", SOON)
    until(lambda: max(tab.column("money")) >= 500.0, "the chart of money has moved", SOON)
    until(lambda: tab.table("latest")[0][1:] == ["Anna Nowak", "Mleko", "1", "12,50 zł"], "the latest are shown", SOON)
    until(lambda: "Mleko" in [row[0] for row in tab.table("hour")], "the best sellers of this hour are shown", SOON)
    becomes(lambda: tab.number("Events waiting"), "0", SOON)
    assert tab.page.locator("#charts canvas").count() >= 2
    partitions = tab.table("partitions")
    assert [row[0] for row in partitions] == ["0", "1", "2", "3"]
    assert {(row[1], row[2]) for row in partitions} == {(f"127.0.0.1:{worker.port}", "running")}
    assert tab.page.locator('[data-service="Kafka"]').inner_text() == "Kafka up"
    assert tab.page.locator('[data-service="MongoDB"]').inner_text() == "MongoDB up"
    quiet(tab)
    tab.keep("page")


def test_nothing_that_an_event_brings_runs_as_a_script(shop: Shop, worker: Worker, open_tab: OpenTab) -> None:
    """Markup in names, ids and the reasons of dead letters is shown as text."""
    shop.register(customer(HOSTILE, first_name=HOSTILE, last_name="</td>", city=HOSTILE))
    tab = open_tab(worker)
    tab.open()
    shop.sell(*(purchase(HOSTILE, product_id="evil", quantity=9, price=100, purchased_at=now()) for _ in range(30)))
    shop.send("purchases", Record(b"anna", f'{{"purchase_id": "{HOSTILE[:9]}", "quantity": 0}}'.encode()))
    until(lambda: tab.table("ever")[0][0] == cut(HOSTILE), "the best seller has its name", SOON)
    until(
        lambda: tab.table("latest")[0][1:3] == [cut(f"{HOSTILE} </td>"), cut(HOSTILE)],
        "the latest have their names",
        SOON,
    )
    until(lambda: len(tab.table("letters")) >= 1, "the dead letter is there", SOON)
    until(lambda: "rejected" in tab.sentences(), "the page says so", SOON)
    tab.page.locator(
        '[data-table="latest"] a[href*="customer"]'
    ).first.click()  # the page of the customer, from the server
    assert tab.page.locator("#customer h3").inner_text() == cut(f"{HOSTILE} </td>")
    assert tab.page.locator("#customer dd").first.inner_text() == HOSTILE
    assert tab.table("customer")[0][1] == cut(HOSTILE)
    tab.page.locator('[data-table="customer"] a[href*="product"]').first.click()
    assert tab.page.locator("#product h3").inner_text() == cut(HOSTILE)
    assert tab.table("prices")[0][2] == "3,99 zł"
    until(lambda: len(tab.column("units", "course")) >= 1, "its chart is drawn", SOON)
    assert tab.page.locator("img, main script").count() == 0
    assert "owned" not in tab.page.title()
    assert tab.page.evaluate("self.owned") is None
    quiet(tab)
    tab.keep("hostile")


def test_the_chart_of_a_product_moves(shop: Shop, worker: Worker, open_tab: OpenTab) -> None:
    """The keyboard leads from the best sellers to the product. Its chart and table show a new price and its sales."""
    began = datetime.now(timezone.utc) - timedelta(minutes=30)
    prices = ((0, 700), (8, 550), (14, 820), (22, 610))
    shop.offer(
        *(product("tea", name="Herbata", price=price, updated_at=(began + timedelta(minutes=minute)).isoformat())
          for minute, price in prices),
    )  # fmt: skip
    shop.sell(*(bought(began, minute, 2 + (1000 - price) // 100, price) for minute in range(30)
                for price in [next(price for since, price in reversed(prices) if since <= minute)]))  # fmt: skip
    shop.drain()
    tab = open_tab(worker)
    page = tab.open()
    for name in ("today", "ever"):
        until(lambda name=name: "Herbata" in [row[0] for row in tab.table(name)], f"{name} have it", SOON)
    link = page.locator('[data-table="ever"] a', has_text="Herbata")
    tabbed_to(tab, link)
    page.keyboard.press("Enter")
    page.wait_for_url("**/?product=tea*")
    assert page.locator("#product h3").inner_text() == "Herbata"
    assert page.locator("#product-id").input_value() == "tea"
    rows = tab.table("prices")
    assert [row[2] for row in rows] == ["6,10 zł", "8,20 zł", "5,50 zł", "7,00 zł"]
    assert [row[3] for row in rows] == ["40", "24", "36", "40"]
    until(lambda: page.locator("#product-chart canvas").count() >= 1, "the chart is drawn")
    until(lambda: tab.column("y0", "course")[:4] == [7.0, 5.5, 8.2, 6.1], "it has the prices", SOON)
    assert sum(tab.column("units", "course")[:30]) == 140
    shop.offer(product("tea", name="Herbata", price=399, updated_at=now()))
    shop.sell(bought(began, 15, 60, 820))
    until(lambda: tab.column("y0", "course")[4:5] == [3.99], "the chart has the new price", SOON)
    until(lambda: max(tab.column("units", "course")) >= 60, "the chart has what was sold", SOON)
    until(lambda: tab.table("prices")[0][2] == "3,99 zł", "the table has the new price", SOON)
    until(lambda: tab.table("prices")[2][3] == "84", "the table has what was sold", SOON)
    assert plain(page.locator('[data-fact="Price now"]').inner_text()) == "3,99 zł"
    quiet(tab)
    tab.keep("product")


def bought(began: datetime, minute: int, quantity: int, price: int) -> Json:
    """A purchase of tea, this many minutes after the beginning."""
    at = began + timedelta(minutes=minute, seconds=5)
    return purchase("anna", product_id="tea", quantity=quantity, price=price, purchased_at=at.isoformat())


def tabbed_to(tab: Tab, wanted: Locator) -> None:
    """Press Tab until this element has the focus. Each focused element is visibly marked."""
    element = wanted.element_handle()
    for _ in range(150):
        tab.page.keyboard.press("Tab")
        outline = tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline not in {"none", ""}, tab.page.evaluate("document.activeElement.outerHTML")
        if tab.page.evaluate("wanted => document.activeElement === wanted", element):
            return
    pytest.fail("the keyboard does not get there")


def test_vouchers_are_shown_and_a_customers_own(open_shop: OpenShop, open_tab: OpenTab) -> None:
    """The page shows the latest vouchers, with links to their customers, who have theirs listed too."""
    gift = {"amount": 1000, "text": HOSTILE[:40], "valid_days": 7}
    rule = {"name": "welcome", "kind": "city", "cities": ["Kraków"], "voucher": gift}
    with open_shop(promotions=json.dumps([rule])) as shop:
        tab = open_tab(shop.start_worker().ready())
        page = tab.open()
        shop.register(customer("ola", first_name="Ola", last_name="Lis", city="Kraków", registered_at=now()))
        until(lambda: len(tab.table("vouchers")) == 1, "the voucher is shown", SOON)
        until(lambda: tab.table("vouchers")[0][1] == "Ola Lis", "the customer has a name", SOON)
        assert tab.table("vouchers")[0][2:4] == ["welcome", f"10,00 zł off {HOSTILE[:40]}"]
        tab.keep("vouchers")
        page.locator('[data-table="vouchers"] a').click()
        page.wait_for_url("**/?customer=ola*")
        tab.keep("given")
        assert tab.table("given")[0][1:3] == ["welcome", f"10,00 zł off {HOSTILE[:40]}"]
        quiet(tab)


def test_a_stock_that_falls_to_its_limit_is_told(shop: Shop, worker: Worker, open_tab: OpenTab) -> None:
    """An open page shows the alert by itself. Its link leads to the product, which shows what is left."""
    tab = open_tab(worker)
    page = tab.open()
    assert tab.table("alerts") == []
    stocked = (datetime.now(timezone.utc) - timedelta(minutes=2)).isoformat()
    shop.offer(product("salt", name="Sól", updated_at=stocked, stock=10, stock_limit=3))
    shop.sell(*(purchase("anna", product_id="salt", quantity=2, price=100, purchased_at=now()) for _ in range(4)))
    until(lambda: [row[1:] for row in tab.table("alerts")] == [["Sól", "2", "10"]], "the alert is shown", SOON)
    page.locator('[data-table="alerts"] a').click()
    page.wait_for_url("**/?product=salt*")
    until(lambda: page.locator('[data-fact="In stock"]').inner_text() == "2 of 10", "what is left is shown", SOON)
    quiet(tab)
    tab.keep("stock")


def test_a_policy_forbids_what_is_not_the_workers(shop: Shop, worker: Worker, open_tab: OpenTab) -> None:
    """Even if markup got into the HTML, the browser's policy would run only scripts that the worker serves."""
    tab = open_tab(worker)
    page = tab.open()
    page.evaluate(
        "const made = document.createElement('script'); made.textContent = 'document.title = \"owned\"';"
        "document.body.append(made); document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"eval(1)\">')"
    )
    until(lambda: sum("Content Security Policy" in error for error in tab.errors) >= 2, "the browser refuses both")
    assert "owned" not in page.title()


def test_a_customer_is_found_by_id_with_the_keyboard_alone(shop: Shop, worker: Worker, open_tab: OpenTab) -> None:
    """Tab leads past the header to the form, each stop is visible, and Enter searches. An unknown id is reported."""
    tab = open_tab(worker)
    page = tab.open()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the shop"
    page.keyboard.press("Enter")
    tabbed_to(tab, page.locator("#customer-id"))
    page.keyboard.type("zofia")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?customer=zofia*")
    assert page.locator("#customer h3").inner_text() == "Zofia Nowak"
    facts = page.locator("#customer .facts").inner_text()
    assert "Purchases" in facts
    assert tab.table("customer")[-1][1:] == ["Mleko", "3", "4,50 zł", "13,50 zł"]
    page.fill("#customer-id", "nobody")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?customer=nobody*")
    assert page.locator("#customer .problem").inner_text() == "There is no customer with this name or id."
    quiet(tab)


def test_a_name_is_enough(shop: Shop, worker: Worker, open_tab: OpenTab) -> None:
    """While a name is typed, those who have it are shown, whatever the accents; the keyboard alone leads to them."""
    shop.register(customer("lukasz", first_name="Łukasz", last_name="Żak", city="Łódź"))
    shop.drain()
    tab = open_tab(worker)
    page = tab.open()
    page.focus("#customer-id")
    page.keyboard.type("zak lu")
    link = page.get_by_role("link", name="Łukasz Żak, Łódź")
    link.wait_for()
    page.keyboard.press("ArrowDown")
    assert link.evaluate("link => link === document.activeElement")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?customer=lukasz#customer")
    assert page.locator("#customer h3").inner_text() == "Łukasz Żak"
    page.fill("#product-id", "mlek")
    page.locator("#product-matches a", has_text="Mleko").click()
    page.wait_for_url("**/?product=milk#product")
    quiet(tab)
    tab = open_tab(worker, java_script_enabled=False)
    page = tab.open()
    page.fill("#customer-id", "nowak")
    page.keyboard.press("Enter")
    page.locator("#customer-matches a", has_text="Zofia Nowak").click()
    assert page.locator("#customer h3").inner_text() == "Zofia Nowak"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_everybody_can_use_it(worker: Worker, open_tab: OpenTab, width: int, scheme: str) -> None:
    """axe finds nothing, with everything unfolded; nothing is to be scrolled sideways."""
    tab = open_tab(worker, viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = tab.open("/?customer=anna&product=milk")
    until(lambda: page.locator("#product-chart canvas").count() >= 1, "the charts are drawn")
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    check_for_everybody(page)
    assert tab.width() == width
    assert not page.evaluate(
        "[...document.querySelectorAll('td, th, dd, a')].filter(one => one.checkVisibility() "
        "&& one.getBoundingClientRect().right > innerWidth).map(one => one.textContent)"
    )
    tab.keep(f"unfolded-{width}-{scheme}")


def test_a_phone_shows_what_matters_first(worker: Worker, open_tab: OpenTab) -> None:
    """The state, what waits and what is sold are on the first screen; the rest is folded, also without a script."""
    for script in (True, False):
        tab = open_tab(worker, viewport={"width": 390, "height": 844}, is_mobile=True, java_script_enabled=script)
        page = tab.open()
        for first in ("#condition", '[data-number="Events waiting"]', '[data-number="Money so far"]'):
            box = page.locator(first).bounding_box()
            assert box
            assert box["y"] + box["height"] < 600, first
        height = page.locator("html").bounding_box()
        assert height
        assert height["height"] < 2_000
        assert not page.locator('[data-table="letters"]').is_visible()
        page.locator("#letters summary").click()
        page.locator('[data-table="letters"]').wait_for(state="attached")
        assert page.locator("#letters .hint").is_visible()
    tab = open_tab(worker, viewport={"width": 1400, "height": 900}, java_script_enabled=False)
    assert tab.open().locator("#letters .hint").is_visible()  # a wide screen folds nothing


def test_the_tiles_keep_their_size_at_millions(worker: Worker, open_tab: OpenTab) -> None:
    """Large sums stay on one line, in tiles of the same size."""
    for width in (1400, 390):
        page = open_tab(worker, viewport={"width": width, "height": 844}).open()
        measure = "[...document.querySelectorAll('.numbers')].map(one => [one.offsetWidth, one.offsetHeight])"
        before = page.evaluate(measure)
        for name, text in (("Purchases so far", "22 986 114"), ("Money so far", "123 456 789,00 zł")):
            page.eval_on_selector(f'[data-number="{name}"]', "(one, text) => one.textContent = text", solid(text))
        assert page.evaluate(measure) == before
        assert page.evaluate("document.querySelector('.tiles').scrollWidth") <= width


def test_the_first_load_is_light_and_quick(worker: Worker, open_tab: OpenTab) -> None:
    """A browser that has nothing gets less than 500 KB, and shows the page before Bokeh's script is there."""
    tab = open_tab(worker)
    page = tab.page
    sizes = page.context.new_cdp_session(page)
    sizes.send("Network.enable")
    loaded: list[float] = []
    sizes.on("Network.loadingFinished", lambda event: loaded.append(event["encodedDataLength"]))
    tab.open()
    until(lambda: len(tab.column("purchases")) == 300, "the charts have data")
    assert sum(loaded[:8]) > 300_000  # Bokeh is among them
    assert sum(loaded) < 500_000
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < 3_000  # a machine with nothing else to do takes less than one second


def test_it_has_names_for_those_who_do_not_see_it(worker: Worker, open_tab: OpenTab) -> None:
    """Screen readers find landmarks, one main heading, captions, column headings and labels."""
    tab = open_tab(worker)
    page = tab.open()
    for landmark in ("header", "main", "footer", "html[lang=en]", "h1"):
        assert page.locator(landmark).count() == 1, landmark
    assert page.locator("table").count() == page.locator("table > caption").count() == 9
    assert page.locator("table:not(:has(thead th[scope=col]))").count() == 0
    assert page.get_by_label("Customer’s name or id").count() == 1
    assert page.locator("#charts").get_attribute("role") == "img"
    quiet(tab)


def test_it_fits_a_narrow_phone(worker: Worker, open_tab: OpenTab) -> None:
    """At 320 pixels the page doesn't scroll sideways. Only wide tables do, each in its frame."""
    tab = open_tab(worker, viewport={"width": 320, "height": 640}, is_mobile=True, has_touch=True)
    page = tab.open("/?customer=anna&product=milk")
    until(lambda: page.locator("#charts canvas").count() >= 2, "the charts are drawn")
    until(lambda: len(tab.column("money")) == 300, "the charts have data")
    until(lambda: len(tab.column("units", "course")) >= 1, "the product's chart has data")
    assert tab.width() == 320
    assert page.evaluate("document.querySelector('#product-chart').getBoundingClientRect().right") <= 320
    assert page.evaluate("document.querySelector('#charts').getBoundingClientRect().right") <= 320
    quiet(tab)
    tab.keep("phone")


def test_it_is_dark_where_people_want_it_dark(worker: Worker, open_tab: OpenTab) -> None:
    """The page and its charts follow the browser's colour scheme."""

    def colours(scheme: str) -> tuple[int, int]:
        tab = open_tab(worker, color_scheme=scheme)
        page = tab.open("/?product=milk")
        until(lambda: len(tab.column("money")) == 300, "the charts have data")
        until(lambda: len(tab.column("units", "course")) >= 1, "the product's chart has data")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
        chart = page.evaluate("Bokeh.documents[0].get_model_by_name('money').background_fill_color.slice(1)")
        quiet(tab)
        tab.keep(scheme)
        return sum(ground), sum(bytes.fromhex(chart))

    assert min(colours("light")) > 3 * 200
    assert max(colours("dark")) < 3 * 60


def test_without_javascript_it_shows_the_same_and_comes_anew(worker: Worker, open_tab: OpenTab) -> None:
    """The server writes the whole page, which reloads itself."""
    tab = open_tab(worker, java_script_enabled=False)
    page = tab.open()
    html = page.content()
    assert 'http-equiv="refresh"' in html
    assert int(tab.page.locator('[data-number="Purchases so far"]').inner_text()) >= 1
    assert "Mleko" in page.locator('[data-table="ever"]').inner_text()


def test_a_worker_that_is_gone_is_said_to_be_gone(open_shop: OpenShop, open_tab: OpenTab) -> None:
    """A page shows the purchases of all workers, says which worker does not answer, and when its own does not."""
    with open_shop() as shop:
        first = shop.start_worker().ready()
        second = shop.start_worker()
        until(lambda: first.partitions() and second.partitions() and
              sorted(first.partitions() + second.partitions()) == [0, 1, 2, 3], "both have partitions", 60)  # fmt: skip
        tab = open_tab(first)
        tab.open()
        becomes(lambda: tab.page.locator('[data-service="Workers"] strong').inner_text(), "2 up", SOON)
        until(lambda: {row[2] for row in tab.table("partitions")} == {"running"}, "all run", SOON)
        names = {f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}"}
        assert {row[1] for row in tab.table("partitions")} == names
        assert {row[3] for row in tab.table("partitions")} == names, "each has the copies of the other's"
        links = tab.page.locator('[data-table="partitions"] a').all()
        assert {link.get_attribute("href") for link in links} == {f"http://{name}/" for name in names}
        shop.sell(*(purchase(f"c{number}", purchased_at=now()) for number in range(40)))
        becomes(lambda: tab.number("Purchases so far"), "40", SOON)
        becomes(lambda: sum(tab.column("purchases")), 40, SOON)
        second.kill()
        until(lambda: f"127.0.0.1:{second.port} does not answer" in tab.sentences(), "the page says so", SOON)
        becomes(tab.sentences, "All is well", 60)  # the first has taken its partitions
        becomes(lambda: sum(tab.column("purchases")), 40, SOON)  # and has learned from MongoDB what they sold
        becomes(lambda: tab.note("workers"), "", SOON)
        first.kill()
        until(lambda: "Connection lost" in tab.page.locator("#lost").inner_text(), "the page says so", SOON)
        assert tab.page.title() == "shopflow: connection lost"
        tab.keep("lost")
        shop.start_worker(port=first.port)
        until(lambda: not tab.page.locator("#lost").is_visible(), "the page goes on by itself", 60)
        becomes(lambda: sum(tab.column("purchases")), 40, SOON)  # the charts are kept
        becomes(lambda: len(tab.table("latest")), 12, SOON)


def test_it_says_when_mongodb_is_away(servers: Addresses, open_shop: OpenShop, open_tab: OpenTab) -> None:
    """During an outage the page says that no purchase is lost; afterwards that all is well."""
    with Proxy(servers.mongodb) as proxy, open_shop(mongodb=proxy.uri) as shop:
        worker = shop.start_worker().ready()
        tab = open_tab(worker)
        tab.open()
        shop.sell(purchase("anna", purchased_at=now()))
        until(lambda: tab.number("Purchases so far") == "1", "it is counted", SOON)
        until(lambda: tab.note("mongodb").startswith("As of"), "MongoDB was asked", SOON)
        becomes(tab.sentences, "All is well", SOON)
        proxy.freeze()
        proxy.cut()
        until(lambda: "MongoDB does not answer" in tab.sentences() or "MongoDB has not" in tab.sentences(),
              "the page says so", SOON)  # fmt: skip
        assert "nothing is lost" in tab.sentences()
        assert tab.page.locator('[data-service="MongoDB"]').inner_text() == "MongoDB down"
        until(lambda: tab.note("bestsellers").startswith("Not known now: MongoDB does not answer. Its last"),
              "the best sellers are not known", SOON)  # fmt: skip
        for name in ("hour", "today", "ever", "vouchers", "alerts"):
            assert tab.empty(name) == "Not known.", name
        assert tab.table("latest") != []
        tab.open("/?product=p&customer=anna")
        becomes(lambda: tab.note("product"), "Not known: MongoDB does not answer.", SOON)
        tab.keep("mongodb-away")
        page = open_tab(worker, java_script_enabled=False).open()
        assert "No sales" not in page.locator("main").inner_text()
        proxy.heal()
        becomes(tab.sentences, "All is well", 60)


def test_while_kafka_is_frozen_nothing_is_said_to_be_none(open_embedded_shop: OpenShop, open_tab: OpenTab) -> None:
    """Numbers of Kafka are not known then, also for who opens the page now. The counts of the workers are."""
    with open_embedded_shop(batching_session_timeout_seconds=60) as shop:
        worker = shop.start_worker().ready()
        tab = open_tab(worker)
        tab.open()
        becomes(lambda: tab.number("Dead letters"), "0", SOON)
        kafka = shop.server_pid("kafka")
        os.kill(kafka, signal.SIGSTOP)
        try:
            for name in ("Dead letters", "Events waiting"):
                becomes(lambda name=name: tab.number(name), "not known", SOON)
                assert tab.note(name).startswith("0 at ")
            assert tab.empty("letters") == "Not known."
            assert tab.number("Purchases so far") == "0"
            assert "Kafka does not answer" in tab.note("kafka")
            tab.keep("kafka-frozen")
            page = open_tab(worker, java_script_enabled=False).open()
            assert "No dead letters" not in page.locator("main").inner_text()
        finally:
            os.kill(kafka, signal.SIGCONT)
        becomes(lambda: tab.number("Dead letters"), "0", 60)
        becomes(lambda: tab.empty("letters"), "No dead letters.", SOON)


def test_without_the_extra_it_says_so_and_shows_tables(open_shop: OpenShop, open_tab: OpenTab) -> None:
    """Without Bokeh the page has all but the charts, and shows their numbers in a table."""
    with open_shop() as shop:
        tab = open_tab(shop.start_worker(program=WITHOUT_EXTRA).ready())
        page = tab.open()
        assert "pip install 'shopflow[page]'" in page.locator("#no-charts").inner_text()
        shop.sell(*(purchase("anna", quantity=1, price=100, purchased_at=now()) for _ in range(5)))
        until(lambda: "5" in [row[1] for row in tab.table("minutes")[:2]], "the table moves", SOON)
        assert page.locator('[data-table="minutes"]').is_visible()
        assert page.locator('[data-table="latest"]').is_visible()
        shop.offer(product("mleko", price=100, updated_at=now()))
        shop.drain()
        tab.open("/?product=mleko")
        assert tab.table("prices")[0][2] == "1,00 zł"
        shop.offer(product("mleko", price=90, updated_at=now()))
        until(lambda: tab.table("prices")[0][2] == "0,90 zł", "the table of prices moves", SOON)
        assert page.locator("#product-chart").count() == 0
        quiet(tab)
        tab.keep("without-extra")


def test_the_page_answers_what_it_does_not_have(worker: Worker) -> None:
    """The page serves only its own files, has its security headers, and refuses a too long id."""
    assert worker.get("/page/static/..%2Fpage.py")[0] == 404
    assert worker.get("/page/static/page.html")[0] == 404
    assert "at most 128 characters" in worker.get(f"/?customer={'x' * 129}")[1]
    connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=10)
    connection.request("GET", "/", headers={"Authorization": "Basic " + base64.b64encode(b"any:one").decode()})
    response = connection.getresponse()
    policy = response.getheader("Content-Security-Policy", "")
    assert "default-src 'none'; script-src 'self';" in policy
    assert "unsafe-eval" not in policy
    assert response.getheader("X-Content-Type-Options") == "nosniff"
    connection.close()


def test_it_works_with_a_token_for_reading(open_shop: OpenShop, open_tab: OpenTab) -> None:
    """The browser asks for the token as a password, and sends it with all requests of the page. Workers use it too."""
    with open_shop(web_read_token="let-me-in") as shop:  # noqa: S106 - of this test
        first, second = shop.start_worker(), shop.start_worker()
        tab = open_tab(first, http_credentials={"username": "anybody", "password": "let-me-in"})
        until(lambda: _answers(tab, first) and _answers(tab, second), "both workers answer", 60)
        tab.open("/?customer=nobody")
        becomes(lambda: tab.page.locator('[data-service="Workers"] strong').inner_text(), "2 up", 60)
        assert tab.page.locator("#customer .problem").inner_text() == "There is no customer with this name or id."
        until(lambda: len(tab.column("purchases")) == 300, "the charts have data", SOON)
        assert "let-me-in" not in tab.page.content()


def _answers(tab: Tab, worker: Worker) -> bool:
    try:
        return bool(tab.page.request.get(f"http://127.0.0.1:{worker.port}/counts/").status == 200)
    except Error:  # the worker does not listen yet
        return False
