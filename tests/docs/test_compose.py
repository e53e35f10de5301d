"""The containers: what can be known of docker-compose.yml and the Dockerfile without a Docker engine."""

from __future__ import annotations

import configparser
import itertools
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from shopflow.config.loading import load, variables

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")

PINNED = re.compile(r"[a-z/]+:v?\d+\.\d+\.\d+(-[a-z-]+)?")
VARIABLE = re.compile(r"(?<!\$)\$\{(?P<name>\w+)(?::(?P<how>[-?])(?P<text>[^}]*))?\}")
NEVER_ENDING = sorted(name for name in SERVICES if name != "topics")


def interpolated(text: str, **environ: str) -> str:
    """As Compose does it, for the forms that the file uses."""
    return VARIABLE.sub(lambda found: environ.get(found["name"]) or (found["text"] or ""), text).replace("$$", "$")


def instructions(name: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.partition(" ")[2].strip() for line in joined.splitlines() if line.startswith(f"{name} ")]


def seconds(text: str) -> int:
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


def test_the_shop_has_these_services() -> None:
    assert sorted(SERVICES) == ["grafana", "kafka", "mongodb", "prometheus", "topics", "worker"]
    assert {name for name in SERVICES if "profiles" in SERVICES[name]} == {"grafana", "prometheus"}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_image_is_pinned_to_a_version(name: str) -> None:
    assert PINNED.fullmatch(SERVICES[name]["image"])


def test_kafka_is_the_official_image_and_the_version_that_is_embedded() -> None:
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{load({}).embedded.kafka_version}"
    assert SERVICES["topics"]["image"] == SERVICES["kafka"]["image"]


def test_our_image_has_the_packages_version() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert SERVICES["worker"]["image"] == f"shopflow:{setup['metadata']['version']}"
    assert f"docker run {SERVICES['worker']['image']}" in DOCKERFILE


def test_no_password_stands_in_any_file() -> None:
    uses = re.findall(r"^.*PASSWORD.*$", TEXT, re.MULTILINE)
    assert uses
    for line in uses:
        rest = VARIABLE.sub("", line)
        assert re.fullmatch(
            r" *MONGO_INITDB_ROOT_PASSWORD: | *SHOPFLOW_MONGODB_URI: mongodb://:@mongodb:27017/\?\S+", rest
        )
    assert re.search(r"^MONGODB_PASSWORD=$", EXAMPLE, re.MULTILINE)
    assert "PASSWORD" not in DOCKERFILE


def test_a_password_that_is_not_set_is_refused() -> None:
    for found in VARIABLE.finditer(TEXT):
        if found["name"] == "MONGODB_PASSWORD":
            assert found["how"] == "?"
            assert "MONGODB_PASSWORD" in found["text"]


def test_every_variable_is_in_the_example() -> None:
    used = {found["name"] for found in VARIABLE.finditer(TEXT)}
    assert used == set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE, re.MULTILINE))


@pytest.mark.parametrize("name", NEVER_ENDING)
def test_every_lasting_service_is_watched_restarted_and_given_time_to_stop(name: str) -> None:
    service = SERVICES[name]
    assert {"test", "interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"])
    assert service["restart"] == "unless-stopped"
    assert seconds(service["stop_grace_period"]) >= 30


@pytest.mark.parametrize("name", ["kafka", "mongodb"])
def test_the_servers_keep_their_data_in_named_volumes(name: str) -> None:
    places = dict(volume.split(":") for volume in SERVICES[name]["volumes"])
    assert set(places) <= set(COMPOSE["volumes"])
    assert {"kafka": "/var/lib/kafka/data", "mongodb": "/data/db"}[name] in places.values()


def test_kafka_writes_into_its_volume() -> None:
    """The image's own default is a folder under /tmp."""
    assert SERVICES["kafka"]["environment"]["KAFKA_LOG_DIRS"] == "/var/lib/kafka/data"


def test_kafka_sends_each_client_on_to_an_address_that_it_can_reach() -> None:
    environment = SERVICES["kafka"]["environment"]
    listeners = interpolated(environment["KAFKA_ADVERTISED_LISTENERS"], KAFKA_PORT="9192")
    assert listeners == "INSIDE://kafka:19092,HOST://localhost:9192"
    assert interpolated(SERVICES["kafka"]["ports"][0], KAFKA_PORT="9192") == "127.0.0.1:9192:9092"
    assert SERVICES["worker"]["environment"]["SHOPFLOW_BROKER"] == "kafka://kafka:19092"


def test_nothing_listens_on_the_network_of_the_machine() -> None:
    """Kafka has no login here, nor have the views."""
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_the_worker_waits_for_its_servers_and_topics() -> None:
    assert SERVICES["worker"]["depends_on"] == {
        "kafka": {"condition": "service_healthy"},
        "topics": {"condition": "service_completed_successfully"},
        "mongodb": {"condition": "service_healthy"},
    }


def test_there_can_be_several_workers() -> None:
    """Nothing that only one container of the machine can have: a name, one port, one volume with RocksDB's lock."""
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
    for name, value in environ.items():
        assert str(SERVICES["worker"]["environment"][name]) == value


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_topics_are_made_as_shopflow_makes_them(tmp_path: Path) -> None:
    """The script runs here with a stand-in for Kafka's tool, so that its quoting is tested too."""
    from shopflow import topics  # noqa: PLC0415 - the application is only needed here

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
def test_a_topic_that_cant_be_made_stops_the_start() -> None:
    script = interpolated(SERVICES["topics"]["command"][0]).replace("/opt/kafka/bin/kafka-topics.sh", "false")
    environ = {"PATH": os.environ["PATH"], "PARTITIONS": "4"}
    assert subprocess.run([*SERVICES["topics"]["entrypoint"], script], env=environ, check=False).returncode != 0


def test_the_workers_health_check_is_good_python() -> None:
    command, *arguments = SERVICES["worker"]["healthcheck"]["test"]
    assert (command, arguments[:2]) == ("CMD", ["python", "-c"])
    compile(arguments[2], "healthcheck", "exec")


def test_the_image_is_pinned_small_and_not_run_by_root() -> None:
    bases = {line.split(" AS ")[0] for line in instructions("FROM")}
    assert len(bases) == 1
    assert all(PINNED.fullmatch(base) for base in bases)
    assert next(iter(bases)).startswith("python:3.13.")
    (user,) = instructions("USER")
    assert user == "10001"
    assert f"--uid {user}" in DOCKERFILE
    assert instructions("ENTRYPOINT") == ['["shopflow"]']
    assert instructions("CMD") == ['["worker"]']
    assert "[embedded]" not in DOCKERFILE


def test_what_the_image_is_built_from_exists_and_is_let_through() -> None:
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
