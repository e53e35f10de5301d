"""The lease: for how long the worker certainly owns its partitions."""

from __future__ import annotations

from faust_batches.lease import Lease


def test_a_lease_is_valid_for_its_timeout_counted_from_the_heartbeat_that_was_sent() -> None:
    """The broker counts from its arrival, so it reassigns our partitions later."""
    clock = [100.0]
    lease = Lease(30.0, lambda: clock[0])
    assert lease.valid, "nothing to lose"
    lease.renew(95.0)
    assert lease.valid
    clock[0] = 121.9
    assert lease.valid
    clock[0] = 122.0
    assert not lease.valid, "a tenth of the timeout is left for what is under way"
    lease.renew(120.0)
    lease.renew(110.0)  # an earlier heartbeat's answer, which comes late
    assert lease.valid


def test_nothing_is_sent_between_the_loss_of_partitions_and_the_next_assignment() -> None:
    """The producer was flushed. Records that an actor sends afterwards would follow its successor's."""
    lease = Lease(30.0, lambda: 100.0)
    lease.renew(100.0)
    lease.pause()
    lease.renew(100.0)  # a heartbeat during the rebalance
    assert not lease.valid
    lease.resume()
    assert lease.valid
