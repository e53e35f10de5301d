"""Faust's table recovery, restarted after a timeout.

Faust ends the recovery for good when one of its steps times out. The worker would then keep its partitions but process
nothing until somebody restarts it (Faust 0.15.3, `tables/recovery.py`: `_wait` raises `ServiceStopped` both for a
timeout and for the end of the worker).
"""

from __future__ import annotations

from typing import Any

from faust.tables import TableManager
from faust.tables.recovery import RebalanceAgain, Recovery, ServiceStopped


class PatientRecovery(Recovery):
    """Faust's recovery, which restarts after a timeout and continues from the rows recovered so far."""

    async def _wait(self, coro: Any, timeout: Any = None) -> None:
        try:
            await super()._wait(coro, timeout)
        except ServiceStopped:
            if self.should_stop or self._crashed.is_set():
                raise
            self.log.warning("Kafka did not answer within %g s; the table recovery starts again", timeout)
            self.signal_recovery_start.set()
            raise RebalanceAgain from None


class Tables(TableManager):
    """Faust's table manager with `PatientRecovery`."""

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = PatientRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery
