"""The workers and servers of a fault test, and the faults, which are counted for the summary."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.faults import oracle
from tests.support.proxy import REFUSALS, Proxy
from tests.support.shop import Process, Shop, Worker, free_port, own_servers, shared, until

from .disks import filled, on_small_disk
from .oracle import PARTITIONS, Sale

__all__ = ["Crew", "Server", "opened_crew"]

START_SECONDS = 90.0
_RECOVERING = "Restoring state from changelog topics"
_RECOVERED = "Recovery complete"
_KILLS_IN_RECOVERY = 6


class Server:
    """A Kafka or MongoDB of the shop's own, with a fixed port, so that it comes back at its address.

    Arguments:
        kind: `kafka` or `mongodb`.
    """

    def __init__(self, shop: Shop, kind: str) -> None:
        self.kind = kind
        self._shop = shop
        self.restart()

    def restart(self) -> None:
        """Start the server, with the data that it had."""
        field = {"kafka": "broker", "mongodb": "mongodb_uri"}[self.kind]
        self.process: Process = self._shop.spawn("servers", **{field: "embedded"})
        until(self._runs, f"{self.kind} runs", START_SECONDS)

    def _runs(self) -> bool:
        runs = "Ctrl-C stops them." in self.process.output
        assert runs or self.process.status is None, f"{self.kind} did not start:\n{self.process.output}"
        return runs

    def kill(self) -> None:
        """Kill the server with SIGKILL. The command that started it reports it and ends."""
        os.kill(self._shop.server_pid(self.kind), signal.SIGKILL)
        assert self.process.wait() == 1
        assert "has died, killed by SIGKILL" in self.process.output

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze the server (SIGSTOP) while the body runs."""
        pid = self._shop.server_pid(self.kind)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


class Crew:
    """The workers of a shop, the servers of its own, and the sale.

    Arguments:
        rng: Chooses which worker is hit, and when.
        kafka, mongodb: The shop's own servers.
        proxy: The proxy between the workers and MongoDB.
    """

    def __init__(
        self,
        shop: Shop,
        sale: Sale,
        rng: random.Random,
        *,
        kafka: Server | None = None,
        mongodb: Server | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        self.shop = shop
        self.sale = sale
        self.rng = rng
        self.kafka = kafka
        self.mongodb = mongodb
        self.proxy = proxy
        self.workers: list[Worker] = []
        self.done: Counter[str] = Counter()
        self.peak_mb = 0

    def told(self) -> str:
        """The faults with their counts, and the most memory that a worker had."""
        faults = ", ".join(f"{what} {times} x" for what, times in self.done.items())
        return f"{len(self.sale.places)} records; {faults or 'no fault'}; workers at most {self.peak_mb} MB"

    # -- purchases

    def sell(self, count: int | None = None) -> None:
        """Send the next `count` records of the sale, or all that are left."""
        self.sale.sell(self.shop, count)

    def stored(self) -> int:
        """The number of purchases in MongoDB."""
        count: int = self.shop.db.purchases.estimated_document_count()
        return count

    def busy(self, count: int = 0) -> None:
        """Send the next records, and return when the workers store purchases."""
        before = self.stored()
        self.sell(count)
        until(lambda: self.stored() > before, "purchases are stored", 120)

    # -- workers

    def start(self, like: Worker | None = None, **settings: Any) -> Worker:
        """Start a worker, with the tables of `like` or without any."""
        worker = self.shop.start_worker(port=like.port if like else None, **settings)
        self.workers.append(worker)
        return worker

    def start_on_small_disk(self, megabytes: int) -> tuple[Worker, Path]:
        """Start a worker whose tables are on a small disk; returns the worker and its folder."""
        port = free_port()
        folder = self.shop.data / f"worker-{port}"
        worker = self.shop.start_worker(port=port, program=on_small_disk(folder, megabytes))
        self.workers.append(worker)
        return worker, folder

    @contextmanager
    def disk_full(self, worker: Worker, folder: Path) -> Iterator[None]:
        """Fill the worker's disk to the last byte while the body runs."""
        self.done["filled a worker's disk"] += 1
        with filled(worker, folder):
            yield

    def start_two(self) -> tuple[Worker, Worker]:
        """Start two workers at the same time."""
        return self.start(), self.start()

    def any_worker(self) -> Worker:
        """A random worker."""
        return self.rng.choice(self.workers)

    def kill(self, worker: Worker, when: str = "in mid-batch") -> None:
        """Kill the worker with SIGKILL."""
        self._gone(worker, f"killed a worker {when}")
        worker.kill()

    def stop(self, worker: Worker) -> None:
        """Stop the worker with SIGTERM. It must end with status 0, also in an outage, unless it has just started."""
        good = {0} if "Starting..." in worker.output else {0, -signal.SIGTERM}
        self._gone(worker, "stopped a worker")
        status = worker.stop(seconds=60)
        assert status in good, f"a stopped worker ends with status {status}: {worker.log.name}"

    def lose_data(self, worker: Worker) -> None:
        """Kill the worker, and delete its data directory."""
        self._gone(worker, "deleted a worker's data")
        worker.kill()
        if (folder := self.data_of(worker)).exists():  # a worker that had just started has none yet
            shutil.rmtree(folder)

    def data_of(self, worker: Worker) -> Path:
        """The folder of the worker's tables."""
        return self.shop.data / f"worker-{worker.port}"

    @contextmanager
    def frozen(self, worker: Worker) -> Iterator[None]:
        """Freeze the worker (SIGSTOP) while the body runs."""
        self.done["froze a worker"] += 1
        worker.send(signal.SIGSTOP)
        try:
            yield
        finally:
            worker.send(signal.SIGCONT)

    def kill_in_rebalance(self) -> None:
        """A worker joins; up to a second after partitions begin to move, one of the workers is killed."""
        self.share()
        before = list(self.workers)
        self.start()
        until(lambda: not all(worker.serves() for worker in before), "partitions move", 60, poll=0.01)
        time.sleep(self.rng.uniform(0, 1.0))
        self.kill(self.any_worker(), "in a rebalance")

    def kill_in_recovery(self) -> None:
        """A worker with an empty directory joins, and is killed while it reads the changelog, after some tries."""
        for _ in range(_KILLS_IN_RECOVERY):
            worker = self.start()
            until(lambda: _RECOVERING in worker.output, "its recovery begins", START_SECONDS, poll=0.005)  # noqa: B023
            recovering = not worker.serves()
            worker.kill()
            hit = recovering and _RECOVERED not in worker.output.rpartition(_RECOVERING)[2]
            self._gone(worker, f"killed a worker {'in' if hit else 'right after'} its recovery", alive=False)
            if hit:
                return
        raise AssertionError(f"no kill in {_KILLS_IN_RECOVERY} fell into a recovery: the changelog is too small")

    def _gone(self, worker: Worker, what: str, *, alive: bool = True) -> None:
        if alive:
            self.note_memory(worker)
        self.workers.remove(worker)
        self.done[what] += 1

    def note_memory(self, worker: Worker) -> int:
        """The most memory that the worker had so far, in MB."""
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{worker.pid}/status").read_text(), re.MULTILINE)
        peak = int(found[1]) // 1024 if found else 0  # a worker that has ended has none
        self.peak_mb = max(self.peak_mb, peak)
        return peak

    def replace_failed_starts(self) -> None:
        """Start workers again that ended because Kafka was away while they started, as a service manager would."""
        for worker in [each for each in self.workers if each.status is not None and not self._began(each)]:
            self._gone(worker, "started a worker again that had not begun", alive=False)
            self.start(worker)

    @staticmethod
    def _began(worker: Worker) -> bool:
        return "[^Worker]: Ready" in worker.output

    # -- servers

    @contextmanager
    def killed(self, server: Server | None) -> Iterator[None]:
        """Kill Kafka or MongoDB with SIGKILL, and start it again after the body."""
        assert server
        self.done[f"killed {server.kind}"] += 1
        server.kill()
        yield
        server.restart()

    @contextmanager
    def silent(self, server: Server | None) -> Iterator[None]:
        """Freeze Kafka or MongoDB (SIGSTOP) while the body runs."""
        assert server
        self.done[f"froze {server.kind}"] += 1
        with server.frozen():
            yield

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """MongoDB answers writes with an error that does not depend on the documents while the body runs."""
        assert self.proxy
        code, before = self.rng.choice(sorted(REFUSALS)), self.proxy.refused
        self.proxy.refuse(code)
        yield
        until(lambda: self.proxy and self.proxy.refused > before, "a write is refused", 60)
        self.proxy.heal()
        self.done[f"mongodb refused writes ({REFUSALS[code]})"] += 1

    @contextmanager
    def losing_answers(self) -> Iterator[None]:
        """MongoDB does the writes, and its answers are lost, while the body runs."""
        assert self.proxy
        before = self.proxy.lost
        self.proxy.lose_answers()
        yield
        until(lambda: self.proxy and self.proxy.lost > before, "an answer is lost", 60)
        self.proxy.heal()
        self.done["mongodb's answers were lost"] += 1

    # -- the end

    def wait(self, seconds: float) -> None:
        """Let a fault last for this time."""
        time.sleep(seconds)

    def check_outages(self, server: str, most: int) -> None:
        """Each worker logged each outage of the server once at its beginning and once at its end."""
        for worker in self.workers:
            away, back = (worker.output.count(f"{server} is {what}") for what in ("away; ", "back after "))
            assert away == back <= most, f"{worker.log.name}: {away} times away, {back} times back"

    def share(self) -> None:
        """Wait until each worker has partitions, and each partition has a worker."""
        until(lambda: shared(self.workers, PARTITIONS), "the workers share the partitions", 90)

    def takes_over(self, worker: Worker) -> None:
        """Wait until this worker has all partitions."""
        until(lambda: len(worker.partitions()) == PARTITIONS, "it has all partitions", 90)

    def check(self) -> None:
        """Documents and counts are those of the sale, on the workers and on a new one that has only the changelog."""
        self.sell()
        oracle.check(self.shop, self.workers, self.sale)
        for worker in list(self.workers):
            self.note_memory(worker)
            assert worker.stop(seconds=60) == 0
        self.note_memory(oracle.check_rebuilt(self.shop, self.sale))
        logs = [log.read_text(errors="replace") for log in self.shop.folder.glob("worker-*.log")]
        noisy = [log for log in logs if "Traceback" in log and "[^Worker]: Ready" in log]
        assert len(noisy) == 0, "no fault is worth a traceback:\n" + noisy[0][noisy[0].index("Traceback") :][:4_000]


@contextmanager
def opened_crew(
    open_shop: Callable[..., AbstractContextManager[Shop]],
    rng: random.Random,
    size: int,
    *,
    own_kafka: bool = False,
    proxied: bool = False,
    **settings: Any,
) -> Iterator[Crew]:
    """A shop with its topics, its products and a sale, without a worker.

    MongoDB is always the shop's own: the load of other tests could make a shared one silent for a minute.

    Arguments:
        size: Records of the sale.
        own_kafka: Kafka is the shop's own too, so that it can be killed.
        proxied: The workers reach MongoDB through a proxy.
        settings: Settings of the shop.
    """
    own = ("kafka", "mongodb") if own_kafka else ("mongodb",)
    wanted = {
        "topics_partitions": PARTITIONS,
        "batching_max_records": rng.choice([200, 1000, 4000]),
        "promotions": json.dumps(oracle.PROMOTIONS),
        **own_servers(*own),
        **settings,
    }
    if version := os.environ.get("SHOPFLOW_TEST_KAFKA_VERSION"):
        wanted["embedded_kafka_version"] = version
    with open_shop(**wanted) as shop, ExitStack() as stack:
        servers = {kind: Server(shop, kind) for kind in own}
        assert shop.run("seed-products").status == 0  # makes the topics
        crew = Crew(shop, Sale(rng, size), rng, kafka=servers.get("kafka"), mongodb=servers.get("mongodb"))
        oracle.offer(shop, crew.sale)
        if proxied:
            assert shop.servers
            crew.proxy = stack.enter_context(Proxy(shop.servers.mongodb))
            shop.environment["SHOPFLOW_MONGODB_URI"] = crew.proxy.uri
        yield crew
