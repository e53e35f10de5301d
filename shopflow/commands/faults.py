"""The faults of `demo --faults`: what is broken at a button, what happens then, and what `verify` says afterwards.

Only processes that this demo started are broken. Two workers sell, so that partitions can change hands.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from signal import SIGCONT, SIGSTOP
from time import monotonic
from typing import NamedTuple, NoReturn

import aiohttp

from shopflow import topics
from shopflow.app import config, store
from shopflow.errors import Refused, Unavailable
from shopflow.kafka import offsets
from shopflow.kafka.security import Bootstrap
from shopflow.operations.verify.report import Report
from shopflow.servers.servers import Servers
from shopflow.servers.worker import Worker
from shopflow.shop.text import grouped
from shopflow.web.client import bearer, counts

from .base import cancel, now
from .trading import Trading

_LOOK_SECONDS = 0.5
_ANSWER_SECONDS = 2.0
#: How long a killed worker is down: shorter than its session. A frozen one sleeps for longer than its session.
_KILLED_SECONDS = 3.0
_SLEEP_SECONDS = config.batching.session_timeout_seconds + 4.0
_SERVER_AWAY_SECONDS = 6.0
#: How long the events may take to be handled after a fault, and Kafka, MongoDB and the tables to agree.
_DRAIN_SECONDS, _AGREE_SECONDS = 120.0, 45.0
_KEPT_LINES = 40
#: Fewer waiting events come and go in normal work.
_MANY = 20


class Fault(NamedTuple):
    """A button: what it says, and what is to be seen."""

    label: str
    shows: str


FAULTS = {
    "kill-worker": Fault("Kill the worker", "kill -9; started again, it has the same partitions, and its events wait."),
    "freeze-worker": Fault("Freeze the worker", "Longer than its session: its partitions go to the other worker."),
    "stop-mongodb": Fault("Stop MongoDB", "Events wait in Kafka, not in memory; the workers try again."),
    "stop-kafka": Fault("Stop Kafka", "Nothing can be sold; the workers go on when it is back."),
    "bad-event": Fault("Send a bad event", "It becomes a dead letter with its reason."),
    "twice": Fault("Send one twice", "It is stored once and counted once."),
}
#: The server that a fault stops: its key, and its name.
_SERVERS = {"stop-mongodb": ("mongodb", "MongoDB"), "stop-kafka": ("kafka", "Kafka")}


@dataclass
class State:
    """What is known at this moment. None: it is not known, because the server or worker does not answer.

    Attributes:
        partitions: Of the purchases, by worker.
        waiting: Events that no worker has finished.
    """

    partitions: list[list[int] | None] = field(default_factory=list)
    waiting: int | None = None


class Faults:
    """Sells, breaks, and watches.

    Arguments:
        say: Gets a line about everything that happens.
    """

    def __init__(
        self,
        bootstrap: Bootstrap,
        workers: Sequence[Worker],
        servers: Servers,
        trading: Trading,
        say: Callable[[str], None],
    ) -> None:
        self.workers, self.servers = workers, servers
        self.state = State([None] * len(workers))
        self.doing = ""  #: the fault that is under way, or ""
        self.doings = ["running"] * len(workers)
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.verdict = "Nothing was compared yet."
        self.status = 0  #: the worst of all verdicts
        self._bootstrap, self._trading, self._say = bootstrap, trading, say
        self._pressed: asyncio.Task[None] | None = None
        self._ending = threading.Event()
        self._most_waiting = 0

    def refusal(self, name: str) -> str:
        """Why this fault can't be done here; "" if it can."""
        key, server = _SERVERS.get(name, ("", ""))
        return f"this demo did not start {server}, so it does not stop it" if key not in {"", *self.servers.own} else ""

    def press(self, name: str) -> bool:
        """Begin a fault. False: another one is under way, or it can't be done."""
        if self.doing or self.refusal(name):
            return False
        self.doing = name
        self._pressed = asyncio.create_task(self._told(name))
        return True

    async def run(self) -> NoReturn:
        """Sell and watch until it is cancelled. A fault that is under way is ended."""
        trade, watch = asyncio.create_task(self._trading.run()), asyncio.create_task(self._watch())
        try:
            await asyncio.wait({trade, watch}, return_when=asyncio.FIRST_COMPLETED)
            await (trade if trade.done() else watch)
        finally:
            self._ending.set()
            for task in filter(None, (trade, watch, self._pressed)):
                await cancel(task)
        raise AssertionError("selling does not end")

    async def round(self) -> None:
        """Do every fault, one after the other.

        Raises:
            Unavailable: The events are not handled in time, or Kafka or MongoDB can't be compared.
        """
        selling = asyncio.create_task(self.run())
        try:
            for name, fault in FAULTS.items():
                if refusal := self.refusal(name):
                    self._tell(f"{fault.label}: {refusal}.")
                    continue
                work = asyncio.create_task(self._do(name))
                try:
                    await asyncio.wait({work, selling}, return_when=asyncio.FIRST_COMPLETED)
                    await (work if work.done() else selling)
                finally:
                    await cancel(work)
        finally:
            await cancel(selling)

    # -- faults

    async def _told(self, name: str) -> None:
        try:
            await self._do(name)
        except (Refused, Unavailable) as error:
            self._tell(f"{error}.")

    async def _do(self, name: str) -> None:
        self.doing = name
        deeds: Mapping[str, Callable[[], Awaitable[None]]] = {
            "kill-worker": self._kill,
            "freeze-worker": self._freeze,
            **{fault: partial(self._stop, *server) for fault, server in _SERVERS.items()},
            "bad-event": self._send_bad,
            "twice": self._send_twice,
        }
        try:
            await deeds[name]()
            await self._drained()
            await self._judge()
        finally:
            self.doing = ""

    async def _kill(self) -> None:
        worker = self.workers[0]
        worker.kill()
        self.doings[0] = "killed"
        self._tell("Worker 1 is killed (kill -9).")
        try:
            await asyncio.sleep(_KILLED_SECONDS)
        finally:
            await asyncio.to_thread(worker.start)
            self.doings[0] = "running"
        self._tell("Worker 1 is started again.")

    async def _freeze(self) -> None:
        worker = self.workers[0]
        worker.send(SIGSTOP)
        self.doings[0] = "frozen"
        self._tell(f"Worker 1 is frozen for {_SLEEP_SECONDS:g} seconds, longer than its session in Kafka.")
        try:
            await asyncio.sleep(_SLEEP_SECONDS)
        finally:
            worker.send(SIGCONT)
            self.doings[0] = "running"
        self._tell("Worker 1 wakes up. It sends nothing for the partitions that it has lost.")

    async def _stop(self, key: str, name: str) -> None:
        self._tell(f"{name} is being stopped.")
        outage = asyncio.to_thread(self.servers.outage, key, _SERVER_AWAY_SECONDS, self._ending)
        await asyncio.shield(asyncio.ensure_future(outage))  # begun, it is ended: else the server stays away
        self._tell(f"{name} is back.")

    async def _send_bad(self) -> None:
        await self._trading.send_bad_event()
        self._tell("A bad purchase was sent: it becomes a dead letter.")

    async def _send_twice(self) -> None:
        await self._trading.buy_twice()
        self._tell("A purchase was sent twice: it is stored and counted once.")

    # -- what follows

    async def _drained(self) -> None:
        """Wait until the workers answer and no event waits that was sent before now.

        Raises:
            Unavailable: It takes too long.
        """
        deadline = monotonic() + _DRAIN_SECONDS
        while not self._calm():
            if monotonic() > deadline:
                raise Unavailable("demo", f"after {_DRAIN_SECONDS:g} s events still wait; see the workers' logs")
            await asyncio.sleep(_LOOK_SECONDS)

    def _calm(self) -> bool:
        owned = [set(found) for found in self.state.partitions if found is not None]
        every = len(owned) == len(self.workers) and sum(map(len, owned)) == config.topics.partitions
        return every and self.state.waiting is not None and self.state.waiting < _MANY

    async def _judge(self) -> None:
        """Close the shop for a moment, and let `verify` compare. It is asked again while its answer is not yes.

        Raises:
            Unavailable: Kafka or MongoDB does not answer.
        """
        from shopflow.operations.verify.totals import verify

        self._trading.open.clear()
        deadline = monotonic() + _AGREE_SECONDS
        try:
            while True:
                report = await verify(self._bootstrap, store, topics.LAYOUT, token=config.web.read_token)
                if report.status == 0 or monotonic() > deadline:
                    break
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self._trading.open.set()
        self.status = max(self.status, report.status)
        self.verdict = f"{now().astimezone():%H:%M:%S}  {sentence(report)}"
        self._tell(sentence(report))

    # -- watching

    async def _watch(self) -> NoReturn:
        async with aiohttp.ClientSession(
            headers=bearer(config.web.read_token), timeout=aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        ) as http:
            while True:
                before = self.state
                owned = await asyncio.gather(*(_partitions(http, worker) for worker in self.workers))
                self.state = State(list(owned), await self._waiting())
                self._compare(before)
                await asyncio.sleep(_LOOK_SECONDS)

    async def _waiting(self) -> int | None:
        try:
            asked = offsets.lags(self._bootstrap, config.app_id, topics.LAYOUT.events)
            lags = await asyncio.wait_for(asked, _ANSWER_SECONDS)
        except (Unavailable, asyncio.TimeoutError):
            return None
        return sum(lag.all_waiting for lag in lags.values())

    def _compare(self, before: State) -> None:
        """Say what has changed: whose the partitions are, and that the events that waited are handled."""
        for number, (old, new) in enumerate(zip(before.partitions, self.state.partitions, strict=True), 1):
            if new is not None and new != old and (old is not None or new):
                self._tell(f"Worker {number} has {listed(new)}.")
        if self.state.waiting is None:
            return
        self._most_waiting = max(self._most_waiting, self.state.waiting)
        if self._most_waiting >= _MANY and self.state.waiting < _MANY:
            self._tell(f"The events that waited are handled; at most {grouped(self._most_waiting)} did.")
            self._most_waiting = 0

    def _tell(self, line: str) -> None:
        line = f"{now().astimezone():%H:%M:%S}  {line}"
        self.lines.append(line)
        self._say(line)


async def _partitions(http: aiohttp.ClientSession, worker: Worker) -> list[int] | None:
    """The partitions that a worker owns; None if it does not answer."""
    sums = await counts(http, worker.url)
    return None if sums is None else sums["partitions"]


def listed(partitions: Sequence[int]) -> str:
    """The partitions of a worker, in words."""
    if not partitions:
        return "no partition"
    return f"partition{'s' if len(partitions) > 1 else ''} {', '.join(map(str, partitions))}"


def sentence(report: Report) -> str:
    """The sum of a report: sent = stored + repeated + rejected, and counted = stored."""
    sent, stored = report.kafka.get("purchases", 0), report.mongodb.get("purchases", 0)
    counted, twice, rejected = (report.tables.get(name, 0) for name in ("purchases", "duplicates", "rejected"))
    sums = (
        f"{grouped(sent)} sent = {grouped(counted)} counted + {grouped(twice)} repeated + {grouped(rejected)} rejected;"
        f" {grouped(stored)} stored."
    )
    wrong = "; ".join(f"{check.name}: {check.detail}" for check in report.checks if not check.good)
    return {0: f"{sums} verify: all agree.", 1: f"{sums} verify: they differ. {wrong}"}.get(
        report.status, f"{sums} verify could not tell. {wrong}"
    )
