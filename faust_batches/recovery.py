"""Faust's recovery of the tables, begun again when Kafka does not answer for long.

Faust takes a step of the recovery that ran out of time for the end of the worker, and recovers nothing any more: the
worker would keep its partitions, and take nothing from them until somebody restarts it (Faust 0.15.3,
`tables/recovery.py`: `_wait` raises `ServiceStopped` for both).
"""

from __future__ import annotations

from typing import Any

from faust.tables import TableManager
from faust.tables.recovery import RebalanceAgain, Recovery, ServiceStopped


class PatientRecovery(Recovery):
    """Faust's recovery; it begins again, from what the tables have by then, instead of ending."""

    async def _wait(self, coro: Any, timeout: Any = None) -> None:
        try:
            await super()._wait(coro, timeout)
        except ServiceStopped:
            if self.should_stop or self._crashed.is_set():
                raise
            self.log.warning("Kafka did not answer within %g s; the recovery of the tables begins again", timeout)
            self.signal_recovery_start.set()
            raise RebalanceAgain from None


class Tables(TableManager):
    """Faust's table manager, with that recovery."""

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = PatientRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery
