"""The recovery of tables starts again after a silence of Kafka, and ends with the worker."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from faust.tables.recovery import RebalanceAgain, ServiceStopped
from faust.types import TP

from faust_batches import App
from faust_batches.recovery import PatientRecovery


def recovery() -> PatientRecovery:
    """The recovery of an application that is never started."""
    app = App("test", broker="kafka://127.0.0.1:1", store="memory://")
    found = app.tables.recovery  # type: ignore[attr-defined]
    assert isinstance(found, PatientRecovery)
    return found


def test_a_step_that_ran_out_of_time_begins_the_recovery_again(caplog: pytest.LogCaptureFixture) -> None:
    """Faust would take the timeout for the end of the worker, and never recover again."""

    async def step() -> None:
        ours = recovery()
        with pytest.raises(RebalanceAgain):
            await ours._wait(asyncio.sleep(60), timeout=0.01)
        assert ours.signal_recovery_start.is_set()

    with caplog.at_level(logging.WARNING):
        asyncio.run(step())
    assert "Kafka did not answer within 0.01 s; the table recovery starts again" in caplog.text


def test_a_step_that_is_done_goes_on() -> None:
    """A step during which a rebalance came starts the recovery again, as in Faust."""

    async def steps() -> None:
        ours = recovery()
        await ours._wait(asyncio.sleep(0), timeout=10)
        assert not ours.signal_recovery_start.is_set()
        ours.signal_recovery_start.set()
        with pytest.raises(RebalanceAgain):
            await ours._wait(asyncio.sleep(60), timeout=10)

    asyncio.run(steps())


def test_no_step_begins_when_a_rebalance_waits() -> None:
    """Faust forgets a rebalance that began while it read the changelogs, and would seek to offsets that are None."""

    async def seek() -> None:
        raise ValueError("Offset must be a positive integer")

    async def step() -> None:
        ours = recovery()
        ours.signal_recovery_start.set()
        with pytest.raises(RebalanceAgain):
            await ours._wait(seek(), timeout=10)
        assert ours.signal_recovery_start.is_set()

    asyncio.run(step())


@pytest.mark.parametrize("end", ["_stopped", "_crashed"])
def test_the_end_of_the_worker_is_the_end(end: str) -> None:
    """A recovery ends when the worker is stopped or has crashed."""

    async def step() -> None:
        ours = recovery()
        getattr(ours, end).set()
        with pytest.raises(ServiceStopped):
            await ours._wait(asyncio.sleep(60), timeout=10)
        assert not ours.signal_recovery_start.is_set()

    asyncio.run(step())


def test_the_progress_of_a_recovery_is_known() -> None:
    """It counts offsets of the changelogs. Empty partitions, and those whose end is not known yet, are left out."""

    async def progress() -> None:
        ours = recovery()
        begun, none, empty, unasked, complete = (TP("changelog", number) for number in range(5))
        ours.active_tps |= {begun, none, empty, unasked, complete}
        ours.active_offsets.update({begun: 61, none: None, empty: -1, unasked: 3, complete: 99})
        ours.active_highwaters.update({begun: 99, none: 99, empty: -1, complete: 99})
        assert ours.app.recovering == {}  # type: ignore[attr-defined]
        ours.in_recovery = True
        assert ours.app.recovering == {begun: (62, 100), none: (0, 100), complete: (100, 100)}  # type: ignore[attr-defined]

    asyncio.run(progress())


def test_a_stop_while_a_changelog_is_created_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust's own answer to what it has cancelled fails. In a start that goes on, such an error is one."""

    async def cancelled(tables: Any) -> None:
        raise asyncio.InvalidStateError("invalid state")

    async def start(*, stopping: bool) -> None:
        tables: Any = recovery().tables
        monkeypatch.setattr(type(tables), "_update_channels", cancelled)
        if stopping:
            tables.app._stopped.set()
        await tables.on_start()

    asyncio.run(start(stopping=True))
    with pytest.raises(asyncio.InvalidStateError):
        asyncio.run(start(stopping=False))
