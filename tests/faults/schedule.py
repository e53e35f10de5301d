"""A random order of all faults; a seed repeats it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from .crew import Crew

__all__ = ["run"]

#: The workers' session timeout is 6 s: some wake up in time, most do not.
FROZEN_SECONDS = (4.0, 11.0)
OUTAGE_SECONDS = (0.5, 8.0)
WORKERS = 2
#: The workers take about so many: an action falls into the middle of its share.
RECORDS_A_SECOND = 5_000


class _Schedule:
    """The possible actions. After each one, every server runs."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self.rng = crew.rng

    def kinds(self) -> list[Callable[[], None]]:
        """All actions that are possible for this crew."""
        kinds = [self.kill, self.stop, self.freeze, self.lose_data, self.rebalance, self.recovery, self.guest]
        if self.crew.proxy:
            kinds += [self.refuse_writes, self.lose_answers]
        if self.crew.mongodb:
            kinds += [self.kill_mongodb, self.freeze_mongodb]
        if self.crew.kafka:
            kinds += [self.kill_kafka, self.freeze_kafka]
        return kinds

    # -- workers

    def kill(self) -> None:
        worker = self.crew.any_worker()
        self.crew.kill(worker)
        self.pause(0, 3)
        self.crew.start(worker)

    def stop(self) -> None:
        worker = self.crew.any_worker()
        self.crew.stop(worker)
        self.crew.start(worker)

    def freeze(self) -> None:
        with self.crew.frozen(self.crew.any_worker()):
            self.pause(*FROZEN_SECONDS)

    def lose_data(self) -> None:
        worker = self.crew.any_worker()
        self.crew.lose_data(worker)
        self.crew.start(worker)

    def rebalance(self) -> None:
        self.crew.kill_in_rebalance()

    def recovery(self) -> None:
        self.crew.kill_in_recovery()

    def guest(self) -> None:
        """A third worker joins, and is stopped or killed."""
        guest = self.crew.start()
        self.pause(2, 6)
        self.rng.choice([self.crew.stop, self.crew.kill])(guest)

    # -- servers; in some outages a worker is killed or stopped too

    def refuse_writes(self) -> None:
        self.during(self.crew.refusing())

    def lose_answers(self) -> None:
        self.during(self.crew.losing_answers())

    def kill_mongodb(self) -> None:
        self.during(self.crew.killed(self.crew.mongodb))

    def freeze_mongodb(self) -> None:
        self.during(self.crew.silent(self.crew.mongodb))

    def kill_kafka(self) -> None:
        self.during(self.crew.killed(self.crew.kafka), stop=False)

    def freeze_kafka(self) -> None:
        self.during(self.crew.silent(self.crew.kafka), stop=False)

    def during(self, outage: AbstractContextManager[None], *, stop: bool = True) -> None:
        hits = [self.kill, self.lose_data, *([self.stop] if stop else [])]
        hit = self.rng.choice([None, None, *hits])
        with outage:
            self.pause(*OUTAGE_SECONDS)
            if hit:
                hit()
                self.pause(*OUTAGE_SECONDS)

    def pause(self, least: float, most: float) -> None:
        """Wait for a random time."""
        time.sleep(self.rng.uniform(least, most))


def run(crew: Crew, actions: int, kinds: Sequence[Callable[[], None]] = ()) -> None:
    """Start two workers with a backlog, then do this many random actions; every kind comes once before any comes again.

    Records are sent before each action, so that the workers are busy. `Crew.check` sends the rest.

    Arguments:
        kinds: The actions; without any, all that this crew allows.
    """
    schedule = _Schedule(crew)
    kinds = kinds or schedule.kinds()
    order: list[Callable[[], None]] = []
    while len(order) < actions:
        order += crew.rng.sample(kinds, len(kinds))
    share = crew.sale.waiting // (actions + 2)
    crew.sell(2 * share)
    crew.start_two()
    crew.busy()
    for action in order[:actions]:
        crew.sell(share)
        schedule.pause(0, share / RECORDS_A_SECOND)
        action()
        crew.replace_failed_starts()
        while len(crew.workers) < WORKERS:
            crew.start()
