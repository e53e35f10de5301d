"""Faust's table recovery, restarted after a timeout, and after a rebalance that Faust forgets.

Faust ends the recovery for good when one of its steps times out. The worker would then keep its partitions but process
nothing until somebody restarts it (Faust 0.15.3, `tables/recovery.py`: `_wait` raises `ServiceStopped` both for a
timeout and for the end of the worker).
"""

from __future__ import annotations

import asyncio
from typing import Any

from faust.tables import TableManager
from faust.tables.recovery import RebalanceAgain, Recovery, ServiceStopped
from faust.types import TP


class PatientRecovery(Recovery):
    """Faust's recovery, which restarts after a timeout and continues from the rows recovered so far."""

    async def _wait(self, coro: Any, timeout: Any = None) -> None:
        # Faust forgets a rebalance that begins while it reads the changelogs (it catches every error there). Its next
        # step, a seek of the standby partitions, could fail: the rebalance has replaced their offsets by None.
        if self.signal_recovery_start.is_set():
            if asyncio.iscoroutine(coro):
                coro.close()
            raise RebalanceAgain
        try:
            await super()._wait(coro, timeout)
        except ServiceStopped:
            if self.should_stop or self._crashed.is_set():
                raise
            self.log.warning("Kafka did not answer within %g s; the table recovery starts again", timeout)
            self.signal_recovery_start.set()
            raise RebalanceAgain from None

    async def _build_offsets(self, consumer: Any, tps: set[TP], destination: Any, title: str) -> None:
        await super()._build_offsets(consumer, tps, destination, title)
        if title == "active":  # of these Faust asks for the ends first
            await self._check_ends(tps, destination, self.active_highwaters)

    async def _build_highwaters(self, consumer: Any, tps: set[TP], destination: Any, title: str) -> None:
        await super()._build_highwaters(consumer, tps, destination, title)
        if title == "standby":
            await self._check_ends(tps, self.standby_offsets, destination)

    async def _check_ends(self, tps: set[TP], offsets: Any, ends: Any) -> None:
        """Look at each table that has more of its changelog than Kafka has. Faust would only crash."""
        for tp in tps:
            table = self.app.readers.get(tp.topic)  # type: ignore[attr-defined]
            if table is not None and (offsets[tp] or -1) > (-1 if ends[tp] is None else ends[tp]):
                await table.outlived_changelog(tp.partition, offsets[tp], ends[tp])
                offsets[tp] = -1


class Tables(TableManager):
    """Faust's table manager with `PatientRecovery`. It starts at once; Faust's sleeps for a second first."""

    async def on_start(self) -> None:
        try:
            await self._update_channels()
        except asyncio.InvalidStateError:
            if not self.app.should_stop:
                raise
            self.log.info("Stopped while a changelog was created")  # Faust cancels what it then wants to answer
        else:
            await self.recovery.start()

    @property
    def progress(self) -> dict[TP, tuple[int, int]]:
        """Changelog partition -> the offsets that are recovered, and all; empty while nothing is recovered."""
        recovery = self.recovery
        found = {}
        for tp in recovery.active_tps if recovery.in_recovery else ():
            done, last = recovery.active_offsets.get(tp), recovery.active_highwaters.get(tp)
            if last is not None and last >= 0:
                found[tp] = (0 if done is None else min(done, last) + 1, last + 1)
        return found

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = PatientRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery
