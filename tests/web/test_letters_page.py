"""The pages `/dead-letters/` and `/trace/`, and the requests that retry, without servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.web import HTTPSeeOther

from shopflow import topics
from shopflow.config.settings import Config, Web
from shopflow.errors import Refused, Unavailable
from shopflow.operations.letters import Became, Id, Letter, Mark, Missing
from shopflow.operations.retry import Outcome
from shopflow.operations.steps import Step
from shopflow.operations.trace import Trace
from shopflow.web.access import Refusal
from shopflow.web.page import letters as page
from shopflow.web.page import trace

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"
NOON = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)
WEB = SimpleNamespace(html=lambda body, headers: body)
FORM = "application/x-www-form-urlencoded"


def letter(value: bytes | None = HOSTILE.encode(), **fields: Any) -> Letter:
    """A dead letter of the purchases, hostile in all its texts."""
    headers = ((HOSTILE, HOSTILE.encode()), ("none", None), ("bytes", b"\xff\x00"))
    made: dict[str, Any] = {
        "id": Id(1, 7), "time": NOON, "topic": topics.LAYOUT.purchases, "partition": 1, "offset": 3,
        "reason": HOSTILE, "key": b"\xff", "headers": headers,
    }  # fmt: skip
    return Letter(value=value, **{**made, **fields})


class Shop:
    """The dead letters, and what becomes of a retry."""

    def __init__(self) -> None:
        self.found: Letter | Exception = letter()
        self.mark: tuple[datetime, Mark] | None = None
        self.became = Became("waiting", "it waits")
        self.outcome: Outcome | Exception = Outcome(retried=1)
        self.retried: list[Letter] = []

    def _letter(self) -> Letter:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    async def latest(self, *_: Any) -> list[Letter]:
        return [self._letter()]

    async def chosen(self, *_: Any) -> AsyncGenerator[Letter, None]:
        yield self._letter()

    async def read(self, bootstrap: Any, shop: Any, reason: str) -> AsyncGenerator[Letter, None]:
        assert reason == "unknown"
        yield self._letter()

    async def mark_of(self, *_: Any) -> tuple[datetime, Mark] | None:
        return self.mark

    async def tell(self, *_: Any, **__: Any) -> Became:
        return self.became

    async def retry(self, bootstrap: Any, shop: Any, found: AsyncGenerator[Letter, None]) -> Outcome:
        self.retried += [each async for each in found]
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    made = Shop()
    for name in ("latest", "chosen", "read", "mark_of"):
        monkeypatch.setattr(page.letters, name, getattr(made, name))
    monkeypatch.setattr(page.letters, "became", made.tell)
    monkeypatch.setattr(page, "retry", made.retry)
    return made


def request(content_type: str = "application/octet-stream", **query: str) -> Any:
    return SimpleNamespace(content_type=content_type, query=query)


def shown(**query: str) -> str:
    """The list."""
    html: str = asyncio.run(page.index.get(WEB, request(**query)))
    return html


def one() -> str:
    """The page of a dead letter."""
    html: str = asyncio.run(page.one.get(WEB, request(), letter_id="1:7"))
    return html


def test_a_dead_letter_is_shown_with_its_bytes_and_runs_no_script(shop: Shop) -> None:
    """Value, key, headers, reason and history are text, whatever they hold; bytes are shown in hexadecimal, too."""
    html = one()
    assert "<img" not in html
    assert "<script" not in html  # no token is needed, so no script either
    assert "&lt;/script&gt;&lt;img src=x" in html
    assert HOSTILE.encode()[:16].hex(" ") in html
    assert "\\xff" in html
    assert '<form method="post" action="/dead-letters/1:7/retry" data-retry>' in html
    assert "not retried yet" in html
    assert "Follow the purchase" not in html
    shop.found = letter(b'{"purchase_id": "b/1"}')
    assert '<a href="/trace/?purchase=b%2F1">' in one()


def test_a_large_value_is_shown_in_part() -> None:
    """The page stays small, and says how much it shows."""
    found = page.pieces(b"a" * 3_000_000)
    assert (len(found.text), found.hex.count("\n")) == (page._TEXT_BYTES, page._HEX_BYTES // 16 - 1)
    assert found.size.replace("\N{NO-BREAK SPACE}", " ") == (
        "3 000 000 bytes; in hexadecimal the first 1 024, as text the first 16 384"
    )
    assert (page.pieces(None).size, page.pieces(b"").size) == ("none", "0 bytes")
    assert page.pieces(b"\0" * 17).hex.splitlines()[1] == "00000010  00"


def test_what_became_of_a_retry_is_shown(shop: Shop) -> None:
    """While the record waits one can look again; a dead letter that was retried has no button."""
    shop.mark = NOON, Mark("1:7", topics.LAYOUT.purchases, 1, 9)
    html = one()
    assert 'It was retried: it waits. <a href="/dead-letters/1:7/">Look again</a>' in html
    assert "/dead-letters/1:7/retry" not in html
    shop.became = Became("rejected", "it was rejected again, as dead letter 1:8", Id(1, 8))
    html = one()
    assert '<a href="/dead-letters/1:8/">show it</a>' in html
    assert "Look again" not in html
    shop.mark, shop.found = None, letter(topic="")
    assert "It can’t be retried: its headers don&#39;t name its topic" in one()


def test_with_a_write_token_the_page_asks_for_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token itself is nowhere in the page."""
    monkeypatch.setattr(page, "config", Config(web=Web(write_token="w" * 20)))
    for html in (one(), shown()):
        assert '<script src="/page/static/letters.js" defer></script>' in html
        assert '<input id="token" type="password"' in html
        assert "<noscript>" in html
        assert "w" * 20 not in html


def test_the_list_has_a_button_for_each_reason(shop: Shop) -> None:
    shop.found = letter(reason="unknown product: x")
    html = shown()
    assert 'action="/dead-letters/retry?reason=unknown%20product"' in html
    assert "1 of these: unknown product" in html
    assert '<a href="/dead-letters/1:7/">1:7</a>' in html
    assert 'role="status">3 retried, 1 had been retried before, 2 could not be retried.<' in shown(
        retried="3", already="1", refused="2"
    )
    assert 'role="status"' not in shown(retried="<b>", already="1", refused="2")


@pytest.mark.parametrize("error", [Unavailable("Kafka", "no answer"), Refused("kafka.password: is wrong")])
def test_kafka_away_is_one_line(shop: Shop, error: Exception) -> None:
    """The page does not say that there are none."""
    shop.found = error
    for html in (shown(), one()):
        assert str(error) in html
        assert "There are none" not in html


def test_a_program_gets_the_outcome_and_a_form_the_page(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asyncio.run(page.retry_one(request(), "1:7")) == (200, {"retried": 1, "already": 0, "refused": []})
    with pytest.raises(HTTPSeeOther) as led:
        asyncio.run(page.retry_one(request(FORM), "1:7"))
    assert led.value.location == "/dead-letters/1:7/"
    assert len(shop.retried) == 2
    shop.mark = NOON, Mark("1:7", topics.LAYOUT.purchases, 1, 9)
    monkeypatch.setattr(page, "_LOOK_SECONDS", 0)
    with pytest.raises(HTTPSeeOther):  # it waits, but not for ever
        asyncio.run(page.retry_one(request(FORM), "1:7"))
    shop.outcome = Outcome(3, 1, [(Id(0, 1), "why")])
    status, body = asyncio.run(page.retry_reason(request(reason="unknown")))
    assert (status, body) == (200, {"retried": 3, "already": 1, "refused": [{"id": "0:1", "reason": "why"}]})
    with pytest.raises(HTTPSeeOther) as led:
        asyncio.run(page.retry_reason(request(FORM, reason="unknown")))
    assert led.value.location == "/dead-letters/?retried=3&already=1&refused=1"


def test_what_is_not_retried_is_an_error(shop: Shop) -> None:
    """404: there is none; 409: it can't be; 400: no reason, which would mean all; 503: Kafka."""

    def refused(work: Any) -> Refusal:
        with pytest.raises(Refusal) as raised:
            asyncio.run(work)
        return raised.value

    shop.outcome = Outcome(refused=[(Id(1, 7), "its headers don't name its topic")])
    assert str(refused(page.retry_one(request(FORM), "1:7"))) == "its headers don't name its topic"
    assert refused(page.retry_one(request(), "1:7")).status == 409
    for reason in ({}, {"reason": ""}, {"reason": "un"}):
        assert refused(page.retry_reason(request(**reason))).status == 400
    shop.outcome = Unavailable("dead-letters retry", "another retry has taken over")
    with pytest.raises(Unavailable, match="another retry has taken over"):
        asyncio.run(page.retry_one(request(), "1:7"))
    shop.outcome = Refused("kafka.password: Kafka refuses the login")
    assert refused(page.retry_one(request(), "1:7")).status == 503
    shop.found = Missing("there is no dead letter 1:7 in topic dead-letters")
    assert refused(page.retry_one(request(), "1:7")).status == 404


def test_the_page_follows_a_purchase(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step has its time and a link to its dead letter; what comes from events is text. An outage is one line."""
    step = Step(name="rejected", text=HOSTILE, time=NOON, seconds=0.25, letter="1:7")
    found: Trace | Exception = Trace(HOSTILE, "rejected", HOSTILE, HOSTILE, HOSTILE, [step], ["all"])

    async def made(wanted: str) -> Trace:
        assert wanted == HOSTILE
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(trace, "_trace", made)

    def html(**query: str) -> str:
        page: str = asyncio.run(trace.page.get(WEB, request(**query)))
        return page

    text = html(purchase=HOSTILE)
    assert "<img" not in text
    assert "+0.250 s" in text
    assert '<a href="/dead-letters/1:7/">show dead letter 1:7</a>' in text
    assert 'data-state="rejected"' in text
    assert "Searched: all." in text
    assert "verdict" not in html()
    found = Unavailable("MongoDB", "no answer within 5 s")
    assert "The purchase can&#39;t be followed now: MongoDB: no answer within 5 s." in html(purchase=HOSTILE)
