"""The pages at `/dead-letters/`: the latest dead letters, and one with its bytes and history; and their retry."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from aiohttp.web import HTTPSeeOther

from shopflow import topics
from shopflow.app import app, config, connected_kafka, store
from shopflow.errors import Refused, Unavailable
from shopflow.operations import letters
from shopflow.operations.letters import Id, Letter
from shopflow.operations.retry import Outcome, fault, retry
from shopflow.shop.text import clock, day_and_time, grouped, visible
from shopflow.web.access import Refusal
from shopflow.web.answers import route, whole, within, wrong_field

from .trace import SEARCH
from .views import html_page

#: Dead letters in the list.
_LISTED = 100
#: Bytes of a key or a value that are shown as text and in hexadecimal, and characters of a header.
_TEXT_BYTES, _HEX_BYTES, _HEADER = 16_384, 1_024, 1_000
_REASON = 300
#: Characters of the reason of those that are retried.
_LEAST_REASON = 3
_READ_SECONDS = 10.0
#: How long a retry may take. What is retried by then stays so.
RETRY_SECONDS = 60.0

#: How often the page looks whether a retried record was handled, before it is shown, and the pause in between.
_LOOKS, _LOOK_SECONDS = 8, 0.25

_one_at_a_time = asyncio.Lock()  # a second retry would end the first


class Bytes(msgspec.Struct):
    """A key or a value."""

    size: str
    text: str = ""
    hex: str = ""


class Shown(msgspec.Struct):
    """A dead letter as the page shows it."""

    id: str
    reason: str
    facts: dict[str, str]
    key: Bytes
    value: Bytes
    headers: list[tuple[str, str]]
    history: list[tuple[str, str, str, str]]
    fault: str = ""  #: why it can't be retried
    purchase: str = ""  #: the id of the purchase that it is, if it is one


@app.page("/dead-letters")
@app.page("/dead-letters/")
async def index(web: Any, request: Any) -> Any:
    found: Sequence[Letter] = ()
    problems = []
    try:
        found = await within(_READ_SECONDS, "Kafka", letters.latest(connected_kafka(), topics.LAYOUT, _LISTED))
    except (Unavailable, Refused) as error:
        problems.append(f"The dead letters are not known now: {error}.")
    rows = [
        {
            "id": str(letter.id),
            "time": day_and_time(letter.time),
            "origin": origin(letter.topic, letter.partition, letter.offset),
            "reason": visible(letter.reason, _REASON) or "none given",
        }
        for letter in found
    ]
    return html_page(
        web, "letters.html", title="dead letters", problems=problems,
        token=bool(config.web.write_token), letters=rows, said=_said(request.query),
        reasons=Counter(letter.label for letter in found if letter.label).most_common(),
    )  # fmt: skip


@app.page("/dead-letters/{letter_id:[0-9]+:[0-9]+}")
@app.page("/dead-letters/{letter_id:[0-9]+:[0-9]+}/")
async def one(web: Any, request: Any, letter_id: str) -> Any:
    letter, became, problems = None, None, []
    try:
        letter = await within(_READ_SECONDS, "Kafka", _letter(letter_id))
        became = await within(_READ_SECONDS, "Kafka or MongoDB", _became(letter))
    except Refused as error:
        problems.append(f"{error}.")
    except Unavailable as error:
        what = "The dead letter" if letter is None else "What became of its retry"
        problems.append(f"{what} is not known now: {error}.")
    return html_page(
        web, "letters.html", title=f"dead letter {letter_id}", problems=problems, token=bool(config.web.write_token),
        letter=letter and shown(letter), became=became,
    )  # fmt: skip


@route("post", "/dead-letters/{letter_id:[0-9]+:[0-9]+}/retry")
async def retry_one(request: Any, letter_id: str) -> tuple[int, Any]:
    """Retry a dead letter, once and for all. A form is led to the dead letter's page."""
    try:
        letter = await within(_READ_SECONDS, "Kafka", _letter(letter_id))
    except Refused as error:
        raise Refusal(404 if isinstance(error, letters.Missing) else 503, str(error)) from error
    outcome = await _retry(_each(letter))
    if outcome.refused:
        raise Refusal(409, outcome.refused[0][1])
    if _is_form(request):
        with suppress(Unavailable):  # the page says what is not known
            await within(_READ_SECONDS, "Kafka or MongoDB", _handled(letter))
        raise HTTPSeeOther(f"/dead-letters/{letter.id}/")
    return 200, _as_json(outcome)


@route("post", "/dead-letters/retry")
async def retry_reason(request: Any) -> tuple[int, Any]:
    """Retry all dead letters whose reason contains `?reason=`. A form is led to the list."""
    reason = str(request.query.get("reason", ""))
    if len(reason) < _LEAST_REASON:
        raise wrong_field("reason", f"must have {_LEAST_REASON} characters or more: nearly every reason contains fewer")
    outcome = await _retry(letters.read(connected_kafka(), topics.LAYOUT, reason))
    if _is_form(request):
        done = f"retried={outcome.retried}&already={outcome.already}&refused={len(outcome.refused)}"
        raise HTTPSeeOther(f"/dead-letters/?{done}")
    return 200, _as_json(outcome)


async def _letter(letter_id: str) -> Letter:
    (found,) = [each async for each in letters.chosen(connected_kafka(), topics.LAYOUT, [Id.parse(letter_id)])]
    return found


async def _became(letter: Letter) -> letters.Became | None:
    bootstrap, shop = connected_kafka(), topics.LAYOUT
    mark = await letters.mark_of(bootstrap, shop, letter.id)
    if mark is None:
        return None
    return await letters.became(bootstrap, store, shop, letter, retry=mark, search=SEARCH)


async def _handled(letter: Letter) -> None:
    """Wait a moment until a worker has handled the retried record, so that the page can show it."""
    for _ in range(_LOOKS):
        became = await _became(letter)
        if became is None or became.state != "waiting":
            return
        await asyncio.sleep(_LOOK_SECONDS)


async def _retry(found: AsyncGenerator[Letter, None]) -> Outcome:
    async def work() -> Outcome:
        async with _one_at_a_time:
            try:
                return await retry(connected_kafka(), topics.LAYOUT, found)
            except Refused as error:  # a login, for example
                raise Refusal(503, str(error)) from error

    return await within(RETRY_SECONDS, "The retry, which may be repeated", work())


async def _each(letter: Letter) -> AsyncGenerator[Letter, None]:
    yield letter


def _as_json(outcome: Outcome) -> dict[str, Any]:
    refused = [{"id": str(name), "reason": why} for name, why in outcome.refused]
    return {"retried": outcome.retried, "already": outcome.already, "refused": refused}


def _is_form(request: Any) -> bool:
    return bool(request.content_type == "application/x-www-form-urlencoded")


def _said(query: Any) -> str:
    """What a retry of the list has done, from the address that its form was led to."""
    numbers = [whole(query.get(name, "")) for name in ("retried", "already", "refused")]
    if min(numbers) < 0:
        return ""
    retried, already, refused = map(grouped, numbers)
    more = f", {refused} could not be retried" if numbers[2] else ""
    return f"{retried} retried, {already} had been retried before{more}."


# -- texts


def shown(letter: Letter) -> Shown:
    """A dead letter as texts, each of bounded length."""
    return Shown(
        id=str(letter.id),
        reason=visible(letter.reason, _REASON) or "No reason given",
        facts={
            "Time": clock(letter.time),
            "From topic:partition:offset": origin(letter.topic, letter.partition, letter.offset),
            "Failed before": f"{grouped(letter.retries)} times",
        },
        key=pieces(letter.key),
        value=pieces(letter.value),
        headers=[(visible(name, _REASON), visible(_text(value or b""), _HEADER)) for name, value in letter.headers],
        history=[
            (
                visible(failure.time, _REASON),
                visible(failure.dead_letter, _REASON),
                origin(failure.topic, failure.partition, failure.offset),
                visible(failure.reason, _REASON),
            )
            for failure in letter.history
        ],
        fault=visible(fault(letter, topics.LAYOUT), _REASON),
        purchase=letters.purchase_id_of(letter) if letter.topic == topics.LAYOUT.purchases else "",
    )


def origin(topic: str, partition: int, offset: int) -> str:
    return f"{visible(topic, _REASON)}:{partition}:{offset}" if topic else "unknown"


def pieces(data: bytes | None) -> Bytes:
    """Bytes as text and in hexadecimal, the first ones if there are many."""
    if data is None:
        return Bytes("none")
    size = f"{grouped(len(data))} bytes"
    if len(data) > _HEX_BYTES:
        size += f"; in hexadecimal the first {grouped(_HEX_BYTES)}"
    if len(data) > _TEXT_BYTES:
        size += f", as text the first {grouped(_TEXT_BYTES)}"
    lines = [f"{at:08x}  {data[at : at + 16].hex(' ')}" for at in range(0, min(len(data), _HEX_BYTES), 16)]
    return Bytes(size, visible(_text(data[:_TEXT_BYTES])), "\n".join(lines))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
