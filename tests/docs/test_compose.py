"""docker-compose.yml and the Dockerfile: what a user would notice, as far as it shows without a Docker engine."""

from __future__ import annotations

import configparser
import json
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
from packaging.requirements import Requirement

from shopflow.commands import worker as worker_command
from shopflow.config.loading import load, variables
from shopflow.servers import server
from tests.support.compose import compose_command

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
HAPROXY = (ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text(encoding="utf-8")
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


def test_our_image_has_the_packages_version() -> None:
    """The Dockerfile names the image in the command that it shows."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert SERVICES["worker"]["image"] == f"shopflow:{setup['metadata']['version']}"
    assert f"docker run {SERVICES['worker']['image']}" in DOCKERFILE


def test_no_file_holds_a_password() -> None:
    """Files that git and the image leave out hold it. In a variable `docker inspect` would show it."""
    assert "PASSWORD" not in DOCKERFILE
    assert re.findall(r"^.*PASSWORD.*$", TEXT, re.MULTILINE) == [
        "      MONGO_INITDB_ROOT_PASSWORD_FILE: /run/secrets/mongodb_password"
    ]
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}
        ignored = ["git", "check-ignore", "--quiet", secret["file"]]
        assert not subprocess.run(ignored, cwd=ROOT, check=False).returncode


def test_the_commands_in_the_head_make_the_secrets(tmp_path: Path) -> None:
    """The worker reads the URI from its file; user and password are those that MongoDB is started with."""
    lines = [line.removeprefix("#   ") for line in TEXT.splitlines() if line.startswith("#") and "secrets/" in line]
    subprocess.run(["sh", "-euc", "\n".join(lines)], cwd=tmp_path, check=True)
    password = (tmp_path / "secrets" / "mongodb_password").read_text().strip()
    config = load({"SHOPFLOW_MONGODB_URI_FILE": str(tmp_path / "secrets" / "mongodb_uri")})
    user = SERVICES["mongodb"]["environment"]["MONGO_INITDB_ROOT_USERNAME"]
    assert len(password) == 48
    assert config.mongodb.uri == f"mongodb://{user}:{password}@mongodb:27017/?authSource=admin"


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
    """Workers share no name and no port of the host; the port in front of them is the one that they listen on."""
    worker, web = SERVICES["worker"], SERVICES["web"]
    assert not {"container_name", "hostname", "network_mode", "ports"} & set(worker)
    port = str(worker["environment"]["SHOPFLOW_WEB_PORT"])
    assert interpolated(web["ports"][0]) == f"127.0.0.1:{port}:{port}"
    assert f"bind :{port}\n" in HAPROXY
    servers = re.search(rf"^ +server-template worker (\d+) worker:{port}$", HAPROXY, re.MULTILINE)
    assert servers
    assert int(servers[1]) >= load({}).topics.partitions


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs util-linux")
def test_each_worker_takes_a_folder_of_its_own(tmp_path: Path) -> None:
    """Only one process can open a folder of RocksDB. A worker that ends, however, leaves its folder to the next."""
    (script,) = SERVICES["worker"]["command"]
    script = (
        interpolated(script).replace("/data", str(tmp_path)).replace("shopflow worker", "sh -c 'echo $PWD; read -r _'")
    )
    script = script.replace("$PWD", "$SHOPFLOW_DATA_DIR")

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(["sh", "-euc", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def folder(worker: subprocess.Popen[str]) -> str:
        assert worker.stdout
        return worker.stdout.readline().strip()

    workers = [started()]
    try:
        assert folder(workers[0]) == f"{tmp_path}/1"
        workers.append(started())
        assert folder(workers[1]) == f"{tmp_path}/2"
        workers[0].kill()
        workers[0].wait()
        workers.append(started())
        assert folder(workers[2]) == f"{tmp_path}/1"
    finally:
        for worker in workers:
            with worker:
                worker.kill()


def test_every_container_has_no_more_than_it_needs() -> None:
    """No capabilities but those named, a limit of memory, logs that end; ours has a read-only root too."""
    for service in SERVICES.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "mem_limit" in service
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}
        assert all(":" in volume for volume in service.get("volumes", [])), "a volume without a name is left by `down`"
    assert SERVICES["worker"]["read_only"]


def test_the_workers_environment_is_a_good_configuration() -> None:
    environ = {name: interpolated(str(value)) for name, value in SERVICES["worker"]["environment"].items()}
    assert environ.pop("SHOPFLOW_MONGODB_URI_FILE") == "/run/secrets/mongodb_uri"
    assert set(environ) <= set(variables())
    config = load({"SHOPFLOW_CONFIG": os.devnull, **environ})
    assert (config.web.bind, config.web.host) == ("0.0.0.0", "")  # noqa: S104 - in the container
    assert config.topics.partitions == 4


def test_the_images_environment_is_a_good_configuration() -> None:
    found = dict(pair.split("=", 1) for line in instructions("ENV") for pair in shlex.split(line))
    environ = {name: value for name, value in found.items() if name.startswith("SHOPFLOW_")}
    assert environ
    load({"SHOPFLOW_CONFIG": os.devnull, **environ})


@pytest.mark.parametrize("status", [200, 503])
def test_the_images_health_check_fails_while_the_worker_is_not_live(status: int) -> None:
    """A worker that waits for a server is live: to replace it would help nobody. A stand-in for the worker is asked."""

    class Live(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/live" else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            return

    (check,) = instructions("HEALTHCHECK")
    _, option, program = json.loads(check.partition(" CMD ")[2])
    with HTTPServer(("127.0.0.1", 0), Live) as web:
        web.timeout = 20
        answering = threading.Thread(target=web.handle_request)
        answering.start()
        environ = {"SHOPFLOW_WEB_PORT": str(web.server_port)}
        found = subprocess.run([sys.executable, option, program], env=environ, check=False, timeout=30).returncode
        answering.join()
    assert found == (status != 200)
    assert f"'SHOPFLOW_WEB_PORT', {load({}).web.port}" in program
    assert "healthcheck" not in SERVICES["worker"]


def test_the_images_packages_are_locked_and_are_enough() -> None:
    """A build tomorrow installs what today's did, from whichever registry: with exact versions and checksums."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    found = [
        block.split(" ", 1) for block in re.split(r"\n(?=\w)", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)) if block
    ]
    assert all("--hash=sha256:" in hashes for _, hashes in found)
    locked = dict(name.split("==") for name, _ in found)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = f"{setup['options']['install_requires']}{setup['options.extras_require']['page']}"
    for requirement in map(Requirement, wanted.split("\n")[1:]):
        assert requirement.specifier.contains(locked[requirement.name.lower()]), requirement
    assert {"dumb-init", "setuptools"} <= set(locked)


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
    result = compose_config(tmp_path)
    assert result.returncode == 0, result.stderr
    worker = yaml.safe_load(result.stdout)["services"]["worker"]
    assert worker["environment"]["SHOPFLOW_MONGODB_URI_FILE"] == "/run/secrets/mongodb_uri"
