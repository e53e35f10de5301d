"""A worker and a MongoDB, killed in the middle of their work. `make test-faults` runs many more such tests."""

from __future__ import annotations

import random

import pytest

from tests.conftest import OpenShop
from tests.faults.crew import opened_crew

pytestmark = pytest.mark.servers

SIZE = 6_000


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_mongodb_lose_nothing(open_shop: OpenShop) -> None:
    """Each purchase is stored and counted once, each bad record is a dead letter. The changelog has the same counts."""
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
