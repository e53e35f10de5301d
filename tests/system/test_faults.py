"""A worker and a database, killed in the middle of their work. The whole of it: tests/faults, `make test-faults`."""

from __future__ import annotations

import random

import pytest

from tests.conftest import OpenShop
from tests.faults.crew import opened_crew

pytestmark = pytest.mark.servers

SIZE = 6_000


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_mongodb_lose_nothing(open_shop: OpenShop) -> None:
    """Stored once, counted once, every bad record a dead letter; also rebuilt from the changelog alone."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    with opened_crew(open_shop, random.Random(seed), SIZE) as crew:
        crew.sell(SIZE // 3)
        first, _ = crew.start_two()
        crew.busy(SIZE // 3)
        crew.kill(first)
        crew.start(first)
        with crew.killed(crew.mongodb):
            crew.sell()
        crew.check()
