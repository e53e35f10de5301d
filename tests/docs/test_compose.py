"""docker-compose.yml and the Dockerfile: what a user would notice, as far as it shows without a Docker engine."""

from __future__ import annotations

import configparser
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from shopflow import topics
from shopflow.commands import worker as worker_command
from shopflow.config.loading import load, variables
from shopflow.servers import server

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")

PINNED = re.compile(r"[a-z/]+:v?\d+\.\d+\.\d+(-[a-z-]+)?")
VARIABLE = re.compile(r"(?<!\$)\$\{(?P<name>\w+)(?::(?P<how>[-?])(?P<text>[^}]*))?\}")


def interpolated(text: str, **environ: str) -> str:
    """The text with its variables replaced as Compose does it, for the forms that the file uses."""
    return VARIABLE.sub(lambda found: environ.get(found["name"]) or (found["text"] or ""), text).replace("$$", "$")


def instructions(name: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.partition(" ")[2].strip() for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_every_image_has_a_full_version() -> None:
    """A tag such as `8` or `latest` would bring another server or another Python without a change of these files."""
    images = [*(service["image"] for service in SERVICES.values()), *(line.split()[0] for line in instructions("FROM"))]
    assert [image for image in images if not PINNED.fullmatch(image)] == []


def test_kafka_has_the_version_that_is_embedded() -> None:
    """The embedded version is the one that the tests run with."""
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{load({}).embedded.kafka_version}"
    assert SERVICES["topics"]["image"] == SERVICES["kafka"]["image"]


def test_our_image_has_the_packages_version() -> None:
    """The Dockerfile names the image in the command that it shows."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert SERVICES["worker"]["image"] == f"shopflow:{setup['metadata']['version']}"
    assert f"docker run {SERVICES['worker']['image']}" in DOCKERFILE


def test_no_file_holds_a_password() -> None:
    """MongoDB's password comes from the environment or from `.env`, which git ignores."""
    uses = re.findall(r"^.*PASSWORD.*$", TEXT, re.MULTILINE)
    assert uses
    for line in uses:
        rest = VARIABLE.sub("", line)
        assert re.fullmatch(
            r" *MONGO_INITDB_ROOT_PASSWORD: | *SHOPFLOW_MONGODB_URI: mongodb://:@mongodb:27017/\?\S+", rest
        )
    assert re.search(r"^MONGODB_PASSWORD=$", EXAMPLE, re.MULTILINE)
    assert "PASSWORD" not in DOCKERFILE


def test_a_missing_password_is_refused() -> None:
    """Compose names the variable wherever it is used. An empty password would start a MongoDB without a login."""
    for found in VARIABLE.finditer(TEXT):
        if found["name"] == "MONGODB_PASSWORD":
            assert found["how"] == "?"
            assert "MONGODB_PASSWORD" in found["text"]


def test_the_example_names_every_variable() -> None:
    used = {found["name"] for found in VARIABLE.finditer(TEXT)}
    assert used == set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE, re.MULTILINE))


def test_the_servers_keep_their_data_in_named_volumes() -> None:
    """`docker compose down` deletes everything else. Kafka's own default folder is under /tmp."""
    folders = {"kafka": SERVICES["kafka"]["environment"]["KAFKA_LOG_DIRS"], "mongodb": "/data/db"}
    for name, folder in folders.items():
        volumes = {place: volume for volume, place in (line.split(":") for line in SERVICES[name]["volumes"])}
        assert volumes[folder] in COMPOSE["volumes"]


@pytest.mark.parametrize("name", ["kafka", "mongodb", "worker"])
def test_a_container_has_time_for_an_orderly_stop(name: str) -> None:
    """Docker kills a container after its grace period. A killed worker's partitions wait for its session timeout."""
    needed = worker_command._STOP_SECONDS if name == "worker" else server.STOP_SECONDS
    grace = SERVICES[name]["stop_grace_period"]
    assert int(grace[:-1]) * {"s": 1, "m": 60}[grace[-1]] > needed


def test_kafka_advertises_an_address_that_each_client_can_reach() -> None:
    """The worker reaches the name `kafka`, programs on the host reach the published port."""
    environment = SERVICES["kafka"]["environment"]
    listeners = interpolated(environment["KAFKA_ADVERTISED_LISTENERS"], KAFKA_PORT="9192")
    assert listeners == "INSIDE://kafka:19092,HOST://localhost:9192"
    assert interpolated(SERVICES["kafka"]["ports"][0], KAFKA_PORT="9192") == "127.0.0.1:9192:9092"
    assert SERVICES["worker"]["environment"]["SHOPFLOW_BROKER"] == "kafka://kafka:19092"


def test_every_published_port_is_on_the_loopback_interface() -> None:
    """Neither Kafka nor the views ask for a login here."""
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_compose_can_scale_the_worker() -> None:
    """Workers share no name, no port and no volume: only one process can open a folder of RocksDB."""
    worker = SERVICES["worker"]
    assert not {"container_name", "hostname", "network_mode"} & set(worker)
    (port,) = worker["ports"]
    _, host_ports, port_inside = port.split(":")
    first, last = host_ports.split("-")
    assert int(last) - int(first) >= load({}).topics.partitions - 1
    assert port_inside == str(worker["environment"]["SHOPFLOW_WEB_PORT"])
    assert worker["volumes"] == [worker["environment"]["SHOPFLOW_DATA_DIR"]]


def test_the_workers_environment_is_a_good_configuration() -> None:
    environ = {
        name: interpolated(str(value), MONGODB_PASSWORD="x7f", MONGODB_USER="anna")  # noqa: S106
        for name, value in SERVICES["worker"]["environment"].items()
    }
    assert set(environ) <= set(variables())
    config = load({"SHOPFLOW_CONFIG": os.devnull, **environ})
    assert config.mongodb.uri == "mongodb://anna:x7f@mongodb:27017/?authSource=admin"
    assert (config.web.bind, config.web.host) == ("0.0.0.0", "")  # noqa: S104 - in the container
    assert config.topics.partitions == 4


def test_the_images_environment_is_a_good_configuration() -> None:
    found = dict(pair.split("=", 1) for line in instructions("ENV") for pair in shlex.split(line))
    environ = {name: value for name, value in found.items() if name.startswith("SHOPFLOW_")}
    assert environ
    load({"SHOPFLOW_CONFIG": os.devnull, **environ})


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_topics_are_made_as_shopflow_makes_them(tmp_path: Path) -> None:
    """A worker refuses topics with other settings. The script runs with a stand-in for Kafka's tool."""
    service = SERVICES["topics"]
    tool = tmp_path / "kafka-topics.sh"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    tool.chmod(0o755)
    script = interpolated(service["command"][0]).replace("/opt/kafka/bin/kafka-topics.sh", str(tool))
    environ = {"PATH": os.environ["PATH"], "PARTITIONS": interpolated(service["environment"]["PARTITIONS"])}
    subprocess.run([*service["entrypoint"], script], env=environ, check=True)
    made = {}
    for line in (tmp_path / "calls").read_text().splitlines():
        words = line.split()
        options = dict(itertools.pairwise(words))
        assert "--if-not-exists" in words
        assert options["--bootstrap-server"] == "kafka:19092"
        configs = {word for before, word in itertools.pairwise(words) if before == "--config"}
        made[options["--topic"]] = (options["--partitions"], options["--replication-factor"], configs)
    expected = {
        spec.name: (str(spec.partitions), str(spec.replication), {f"{k}={v}" for k, v in spec.configs.items()})
        for spec in topics.SPECS
        if spec.name.startswith("shop.")
    }
    assert made == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_topic_that_cannot_be_created_stops_the_start() -> None:
    """The worker's container starts only after the script has succeeded."""
    script = interpolated(SERVICES["topics"]["command"][0]).replace("/opt/kafka/bin/kafka-topics.sh", "false")
    environ = {"PATH": os.environ["PATH"], "PARTITIONS": "4"}
    assert subprocess.run([*SERVICES["topics"]["entrypoint"], script], env=environ, check=False).returncode != 0


@pytest.mark.parametrize("status", [200, 503])
def test_the_health_check_fails_while_the_worker_is_not_ready(status: int) -> None:
    """The check's program asks a stand-in for the worker."""

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            return

    command, _, option, program = SERVICES["worker"]["healthcheck"]["test"]
    assert (command, option) == ("CMD", "-c")
    port_inside = str(SERVICES["worker"]["environment"]["SHOPFLOW_WEB_PORT"])
    assert program.count(port_inside) == 1
    with HTTPServer(("127.0.0.1", 0), Ready) as web:
        web.timeout = 20
        answering = threading.Thread(target=web.handle_request)
        answering.start()
        asked = [sys.executable, option, program.replace(port_inside, str(web.server_port))]
        found = subprocess.run(asked, check=False, timeout=30).returncode
        answering.join()
    assert found == (status != 200)


def test_the_image_does_not_run_as_root() -> None:
    """The user is a number: Kubernetes' `runAsNonRoot` refuses a name."""
    assert int(instructions("USER")[-1]) > 0


def test_dockerignore_lets_through_what_the_image_is_built_from() -> None:
    """Otherwise `docker compose up --build` fails, or sends the data folder and `.env` to the Docker engine."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    let_through = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    sources = {
        part.removeprefix("./") for line in instructions("COPY") if "--from" not in line for part in line.split()[:-1]
    }
    assert sources == let_through
    for source in sources:
        assert (ROOT / source).exists(), source


def compose_command() -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(command[0])
            and not subprocess.run([*command, "version"], capture_output=True, check=False).returncode
        ):
            return command
    return None


def compose_config(tmp_path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = compose_command()
    if command is None:
        pytest.skip("neither docker compose nor docker-compose is installed")
    (tmp_path / "empty.env").touch()
    home = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    if "HOME" in os.environ and command[0] == "docker":
        home["HOME"] = os.environ["HOME"]  # where the plugin may be
    return subprocess.run(
        [*command, "--env-file", str(tmp_path / "empty.env"), "--file", str(ROOT / "docker-compose.yml"), "config"],
        env={**home, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_compose_itself_accepts_the_file(tmp_path: Path) -> None:
    result = compose_config(tmp_path, MONGODB_PASSWORD="x7f")  # noqa: S106
    assert result.returncode == 0, result.stderr
    worker = yaml.safe_load(result.stdout)["services"]["worker"]
    uri = worker["environment"]["SHOPFLOW_MONGODB_URI"]
    assert uri == "mongodb://shopflow:x7f@mongodb:27017/?authSource=admin"


@pytest.mark.parametrize("environ", [{}, {"MONGODB_PASSWORD": ""}], ids=["unset", "empty"])
def test_compose_itself_refuses_to_start_without_a_password(environ: dict[str, str], tmp_path: Path) -> None:
    result = compose_config(tmp_path, **environ)
    assert result.returncode != 0
    assert "set MONGODB_PASSWORD" in result.stderr
