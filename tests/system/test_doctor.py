"""`doctor` as a user runs it: on a shop that never ran, on a running one, and with something wrong."""

from __future__ import annotations

import json

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.conftest import OpenShop
from tests.support.shop import FAUST, Outcome, product
from tests.system.test_odd_topics import administered

pytestmark = pytest.mark.servers


def lines(outcome: Outcome) -> dict[str, tuple[str, str]]:
    """The mark and the detail of each check, by its name."""
    assert outcome.stderr == ""
    found = {}
    for line in outcome.stdout.splitlines()[:-1]:
        name, _, detail = line[4:].partition(": ")
        found[name] = (line[:3].strip(), detail)
    return found


def marks(outcome: Outcome, mark: str) -> set[str]:
    return {name for name, (found, _) in lines(outcome).items() if found == mark}


def test_a_shop_that_never_ran_is_good_and_left_as_it_is(open_shop: OpenShop) -> None:
    """Before the first start nothing is there yet. That is said, and is no fault."""
    with open_shop() as shop:
        found = shop.run("doctor")
        assert (found.status, marks(found, "ok")) == (0, set(lines(found))), found
        assert found.stdout.splitlines()[-1] == "All is good."
        said = lines(found)
        assert said["data directory"][1].endswith("is not there yet: the first start makes it")
        assert said["topics"][1] == "none of the 12 is there yet: the first start creates them"
        assert said["MongoDB"][1].endswith("knows all that is needed")
        assert shop.describe_topics() == {}
        assert not shop.data.exists()


@pytest.mark.slow
def test_what_is_wrong_with_a_running_shop_is_told_with_what_to_do(open_shop: OpenShop) -> None:
    """Everything else is good, and is said as well. The same in JSON."""
    with open_shop() as shop:
        port = int(shop.environment["SHOPFLOW_WEB_PORT"])
        shop.start_worker(port=port).ready()
        url = f"http://127.0.0.1:{port}"
        shop.offer(product("mleko"))
        shop.drain()
        found = shop.run("doctor")
        assert (found.status, marks(found, "ok")) == (0, set(lines(found))), found
        said = lines(found)
        assert said["web port"][1] == f"a worker of shopflow answers at {url}"
        assert said[f"group {shop.name}"][1] == f"{url} with 4 partitions"
        assert said[f"topic {shop.topic('purchases')}"][1] == "4 partitions, 1 copy, keeps all for ever"

        wrong = ConfigResource(
            ConfigResourceType.TOPIC,
            shop.topic("purchases"),
            configs={"cleanup.policy": "compact", "retention.ms": "-1"},
        )
        administered(shop, lambda admin: admin.alter_configs([wrong]))
        found = shop.run("doctor", program=("env", "PRODUCER_ACKS=1", *FAUST))
        assert found.status == 1, found
        assert marks(found, "NOT") == {"variables", f"topic {shop.topic('purchases')}"}
        said = lines(found)
        assert said["variables"][1].startswith("PRODUCER_ACKS: ignored")
        assert "--add-config cleanup.policy=delete`" in said[f"topic {shop.topic('purchases')}"][1]
        assert found.stdout.splitlines()[-1] == "Something is bad."

        report = json.loads(shop.run("doctor", "--json").stdout)
        assert report["status"] == 1
        (bad,) = [check for check in report["checks"] if not check["good"]]
        assert bad["name"] == f"topic {shop.topic('purchases')}"


def test_a_server_that_is_away_takes_one_line_and_the_rest_is_looked_at(open_shop: OpenShop) -> None:
    """As with a MongoDB that is down; and a data directory that no worker could use."""
    with open_shop() as shop:
        shop.data.write_text("a file, no folder")
        away = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=500"
        found = shop.run("doctor", mongodb_uri=away, data_dir=shop.data)
        assert found.status == 1, found
        assert marks(found, "NOT") == {"data directory", "MongoDB"}
        said = lines(found)
        assert said["data directory"][1] == f"data_dir: {shop.data} is not a directory; set data_dir to another folder"
        assert said["MongoDB"][1].endswith("; what is not listed here can't be looked at")
        assert {"Kafka", "topics", f"group {shop.name}"} <= marks(found, "ok")

        found = shop.run("doctor", broker="kafka://127.0.0.1:1")
        assert found.status == 1, found
        assert lines(found)["Kafka"] == (
            "NOT",
            "127.0.0.1:1 does not answer; what is not listed here can't be looked at",
        )
        assert {"MongoDB", "MongoDB writes", "MongoDB rights"} <= marks(found, "ok")


def test_embedded_servers_that_do_not_run_are_not_called_bad(open_shop: OpenShop) -> None:
    """A shop that is closed for the night. Nothing is started to look at it."""
    with open_shop() as shop:
        found = shop.run("doctor", broker="embedded", mongodb_uri="embedded")
        assert (found.status, marks(found, "??")) == (2, {"Kafka", "MongoDB"}), found
        assert lines(found)["Kafka"][1].startswith("broker: the embedded Kafka isn't running; start it with")
        assert not shop.data.exists()
