"""The Dockerfile is built and docker-compose.yml is run, with three workers of which one is killed."""

from __future__ import annotations

import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.compose import compose_command
from tests.support.shop import until

from .engine import Engine, NoEngineError, engine, have, state

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
IMAGE = COMPOSE["services"]["worker"]["image"]
PULLED = sorted(
    {
        service["image"]
        for service in COMPOSE["services"].values()
        if "build" not in service and "profiles" not in service
    }
    | set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
)
SHOP = "http://127.0.0.1:6066"
#: What a container gets that runs one command of the image, no better off than a worker.
LOCKED = ("--rm", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Project:
    """A copy of the project that docker-compose.yml is run in."""

    engine: Engine
    name: str
    folder: Path
    command: tuple[str, ...]
    volumes_before: frozenset[str]

    def compose(self, *command: str, check: bool = True) -> str:
        file = f"--file={self.folder}/docker-compose.yml"
        done = self.engine.run(*self.command, file, f"--project-name={self.name}", *command, check=check)
        return done.stdout

    def shopflow(self, *command: str) -> str:
        """The output of a command in the first worker's container, whose exit status is 0."""
        return self.compose("exec", "-T", "--index", "1", "worker", "shopflow", *command)

    def workers(self) -> list[str]:
        """The containers of the workers, in the order of their numbers."""
        label = f"label=com.docker.compose.project={self.name}"
        ids = self.engine.docker(
            "ps", "--quiet", "--filter", label, "--filter", "label=com.docker.compose.service=worker"
        )
        number = '--format={{index .Config.Labels "com.docker.compose.container-number"}}'
        return sorted(ids.split(), key=lambda each: int(self.engine.docker("inspect", number, each)))


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    try:
        with engine() as found:
            print("stand-ins:", have(found, PULLED, tmp_path_factory.mktemp("images")) or "none")
            found.docker("build", "--quiet", f"--tag={IMAGE}", str(ROOT))
            yield found
    except NoEngineError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def project(docker: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Kafka, MongoDB and three workers that are ready; taken down at the end, with their volumes."""
    command = compose_command()
    if command is None:
        pytest.skip("neither docker compose nor docker-compose is installed")
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "docker-compose.yml", folder)
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    (folder / "secrets").mkdir()
    (folder / "secrets" / "mongodb_password").write_text("x7f\n")
    (folder / "secrets" / "mongodb_uri").write_text("mongodb://shopflow:x7f@mongodb:27017/?authSource=admin\n")
    made = Project(docker, f"shopflow{uuid.uuid4().hex[:8]}", folder, tuple(command), volumes(docker))
    try:
        made.compose("up", "--detach", "--no-build", "--scale", "worker=3")
        until(lambda: sum(ready(made, each) for each in made.workers()) == 3, "three workers are ready", 180, 2)
        yield made
    finally:
        made.compose("down", "--volumes", check=False)


def ready(project: Project, container: str) -> bool:
    ask = "from urllib.request import urlopen as u; print(u('http://127.0.0.1:6066/health/ready', timeout=5).status)"
    return project.engine.run("docker", "exec", container, "python", "-c", ask, check=False).stdout.strip() == "200"


def test_a_worker_that_is_killed_loses_and_doubles_nothing(project: Project) -> None:
    """Three workers share the shop; one dies in the middle of the purchases and comes back with its own folder."""
    project.shopflow("seed-products")
    project.shopflow("seed-customers", "--count", "50")
    project.shopflow("seed-purchases", "--count", "2000", "--rate", "0")
    killed = project.workers()[1]
    project.engine.docker("kill", "--signal=KILL", killed)
    project.shopflow("seed-purchases", "--count", "1000", "--rate", "0")
    project.engine.docker("start", killed)
    until(lambda: ready(project, killed), "the killed worker is back", 120, 2)
    print(project.shopflow("verify", "--deep"))
    listed = project.compose("exec", "-T", "worker", "ls", "/data")
    assert listed.split() == ["1", "2", "3"]


def test_one_port_reaches_the_shop_also_when_a_worker_stops(project: Project) -> None:
    """The page with its chart comes through the port in front; the image still has what the charts need."""
    page = until(lambda: project.engine.get(f"{SHOP}/"), "the page", 60, 1)
    (script,) = re.findall(r'src="(/\S*bokeh\S*)"', page)
    assert "Bokeh" in project.engine.get(SHOP + script)
    stopped = project.workers()[2]
    project.engine.docker("stop", stopped)
    until(lambda: project.engine.get(f"{SHOP}/counts/"), "another worker answers", 60, 1)
    project.engine.docker("start", stopped)
    until(lambda: ready(project, stopped), "the stopped worker is back", 120, 2)


def test_a_worker_stops_in_order_and_logs_plain_text(project: Project) -> None:
    """SIGTERM gets through process 1: the worker leaves its group and ends by itself. No control characters in logs."""
    worker = project.workers()[0]
    begun = time.monotonic()
    project.engine.docker("stop", "--time=60", worker)
    assert time.monotonic() - begun < STOP_SECONDS
    assert state(project.engine, worker)["ExitCode"] in {0, 143}
    log = project.engine.docker("logs", worker)
    assert "shopflow" in log
    assert re.findall(r"[\x00-\x08\x0b-\x1f\x7f]", log) == []
    project.engine.docker("start", worker)
    until(lambda: ready(project, worker), "the stopped worker is back", 120, 2)


def test_a_worker_that_waits_for_a_server_stays_healthy(project: Project) -> None:
    """The health check is about the worker: with MongoDB away it is not ready, and must not be restarted."""
    worker = project.workers()[0]
    until(lambda: health(project, worker) == "healthy", "healthy", 60, 1)
    project.compose("stop", "mongodb")
    until(lambda: not ready(project, worker), "not ready", 60, 1)
    checks = [check["Start"] for check in checks_of(project, worker)]
    until(
        lambda: len([c for c in checks_of(project, worker) if c["Start"] > checks[-1]]) >= 2, "two more checks", 60, 1
    )
    assert health(project, worker) == "healthy"
    project.compose("start", "mongodb")
    until(lambda: ready(project, worker), "ready", 120, 2)


def checks_of(project: Project, worker: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(
        project.engine.docker("inspect", "--format={{json .State.Health.Log}}", worker)
    )
    return found


def health(project: Project, worker: str) -> str:
    return project.engine.docker("inspect", "--format={{.State.Health.Status}}", worker)


def test_down_leaves_no_volume_without_a_name(docker: Engine, project: Project) -> None:
    """It is the last test: it takes the shop down. The named ones stay, as the file says."""
    project.compose("down")
    left = {volume.removeprefix(f"{project.name}_") for volume in volumes(docker) - project.volumes_before}
    assert {"worker-data", "kafka-data", "mongodb-data"} <= left <= set(COMPOSE["volumes"])


def volumes(docker: Engine) -> frozenset[str]:
    return frozenset(docker.docker("volume", "ls", "--quiet").split())


def test_the_image_has_no_build_tools_and_can_change_nothing(docker: Engine) -> None:
    """As its own user, and as another: it writes to /data only, and finds neither pip nor a compiler."""
    for user in ("10001", "1234"):
        script = "id -u; touch /data/x && echo wrote; touch /opt/shopflow/x /home/shopflow/x; command -v pip gcc cc"
        options = (*LOCKED, f"--user={user}", "--volume=/data", "--entrypoint=sh")
        said = docker.run("docker", "run", *options, IMAGE, "-c", script, check=False).stdout.splitlines()
        assert said[:2] == [user, "wrote"]
        assert [line.partition("'")[0] for line in said[2:]] == ["touch: cannot touch "] * 2, said
    python = docker.run("docker", "run", *LOCKED, "--entrypoint=python", IMAGE, "-m", "pip", check=False)
    assert "No module named pip" in python.stdout


def test_the_image_says_what_it_is(docker: Engine) -> None:
    """Without servers its commands say what is missing, in a line."""
    labels = json.loads(docker.docker("inspect", "--format={{json .Config.Labels}}", IMAGE))
    assert labels["org.opencontainers.image.version"] == IMAGE.partition(":")[2]
    done = docker.run("docker", "run", *LOCKED, IMAGE, "list-products", check=False)
    assert done.returncode
    assert done.stdout.startswith("Error: "), done.stdout
