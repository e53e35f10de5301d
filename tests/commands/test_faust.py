"""Faust's own commands and program: right uses, and wrong ones that end in one line. No server runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from shopflow.commands import faust as commands
from shopflow.errors import Refused
from tests.support.shop import CONSOLE, FAUST, MODULE, ROOT, Outcome, free_port

PLAIN = (sys.executable, "-m", "faust")


def run(folder: Path, program: Sequence[str], *arguments: str, **variables: str) -> Outcome:
    """Run a command in this folder, with these environment variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHOPFLOW_")}
    done = subprocess.run(
        [*program, *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "SHELL": "/bin/bash", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_a_command_imports_nothing_that_only_a_worker_or_another_command_needs(tmp_path: Path) -> None:
    """Commands start fast, because `-A shopflow` does not import every module of the package."""
    code = (
        "import sys; from shopflow.__main__ import main; sys.argv[:] = ['shopflow', '--help']\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = run(tmp_path, (sys.executable, "-c", code))
    loaded = set(done.stderr.split())
    assert "Start a worker" in done.stdout
    assert "shopflow.commands.show" in loaded
    needless = {"shopflow.agents", "shopflow.bootstrap", "shopflow.models", "shopflow.operations.verify.events"}
    assert (
        loaded & (needless | {"jinja2", "prometheus_client", "faker", "rich", "plotext", "pyarrow", "bokeh"}) == set()
    )
    assert not any(name.startswith(("shopflow.web.api", "shopflow.web.page")) for name in loaded)


def test_agents_tables_and_models_are_all_listed(tmp_path: Path) -> None:
    """`agents` and `tables` import what they list."""
    agents = run(tmp_path, (*FAUST, "--json"), "agents").json()
    assert {agent["name"] for agent in agents} == {"@agents.customers", "@agents.products", "@agents.purchases"}
    assert all(agent["help"] for agent in agents)
    tables = run(tmp_path, (*MODULE, "--json"), "tables").json()
    assert {table["name"] for table in tables} == {"purchase_counts", "product_sales"}


def test_every_model_that_is_listed_is_shown(tmp_path: Path) -> None:
    """`model` takes the name of the list, the full name, and the name without its module."""
    listed = [model["name"] for model in run(tmp_path, (*FAUST, "--json"), "models").json()]
    assert {"models.Product", "models.Customer", "models.Purchase"} <= set(listed)
    for name in ("models.Product", "Product", "shopflow.models.Product"):
        fields = run(tmp_path, (*CONSOLE, "--json"), "model", name).json()
        assert {field["field"] for field in fields} >= {"product_id", "price", "stock"}
    commands.discover()
    for name in listed:
        assert commands._model_named(name, "NAME")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["model", "Prodct"], 2, "NAME: there is no model 'Prodct'; did you mean Product?"),
        (["model", "shopflow.models.Nope.x"], 2, "NAME: there is no model"),
        (["livecheck"], 2, "shopflow has no LiveCheck"),
        (["send", "@purchasse", "x"], 2, "ENTITY: there is no agent '@purchasse'; did you mean @purchases?"),
        (["send", "shop.purchases"], 2, "VALUE: is missing"),
        (["send", "a topic", "x"], 2, "ENTITY: 'a topic' is no name of a topic"),
        (["send", "shop.purchases", "{}", "-V", "Nope"], 2, "--value-type: there is no model 'Nope'"),
        (["send", "shop.purchases", "{}", "-k", "x", "-K", "Nope"], 2, "--key-type: there is no model 'Nope'"),
        (["send", "shop.purchases", "{}", "-V", "Purchase"], 2, "missing required field `purchase_id`"),
        (["send", "shop.purchases", "{", "-V", "Purchase"], 2, "--value-type: '{' is no Purchase"),
        (["send", "shop.purchases", "[1]", "-V", "Purchase"], 2, "--value-type: '[1]' is no Purchase"),
        (["send", "shop.purchases", "x", "--key-serializer", "nope"], 2, "--key-serializer: there is no 'nope'"),
        (["send", "shop.purchases", "x", "--value-serializer", "no|json"], 2, "--value-serializer: there is no"),
        (["send", "shop.purchases", "x", "--repeat", "0"], 2, "--repeat"),
        (["send", "shop.purchases", "x", "--partition", "-1"], 2, "--partition"),
        (["send", "shop.purchases", "x"], 2, "broker: the embedded Kafka isn't running"),
        (["lst-products"], 2, "No such command 'lst-products'. Did you mean 'list-products'?"),
        (["agents", "extra"], 2, "unexpected extra argument"),
        (["worker", "-f", "/nonexistent/x.log"], 2, "--logfile: /nonexistent/x.log: No such file or directory"),
    ],
    ids=str,
)
def test_a_wrong_use_is_one_line(tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    """A wrong argument ends without a traceback. Click puts two lines of usage before its own errors."""
    done = run(tmp_path, MODULE, *arguments)
    assert (done.status, done.stdout) == (status, "")
    assert message in done.errors[-1]
    assert len(done.errors) == 1 or done.errors[0].startswith("Usage: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (PLAIN, ["-A", "shopflow.nope", "tables"], "-A: No module named 'shopflow.nope'"),
        (PLAIN, ["-A", "shopflow:nope", "tables"], "-A: No module named"),
        (PLAIN, ["-A", "shopflow.models", "tables"], "-A: module 'shopflow.models' has no attribute 'app'"),
        (CONSOLE, ["-A", "nope", "tables"], "-A: No module named 'nope'"),
        (CONSOLE, ["-W", "/nonexistent", "tables"], "-W: /nonexistent: No such file or directory"),
        (MODULE, ["-W", "/etc/hosts", "tables"], "-W: /etc/hosts: Not a directory"),
    ],
)
def test_a_wrong_option_of_faust_is_one_line(
    tmp_path: Path, program: Sequence[str], arguments: list[str], message: str
) -> None:
    done = run(tmp_path, program, *arguments)
    assert (done.status, done.stdout, len(done.errors)) == (1, "", 1), done
    assert message in done.stderr


@pytest.mark.parametrize("program", [FAUST, MODULE, CONSOLE, (*PLAIN, "-A", "shopflow.app:app")])
def test_a_bad_configuration_is_one_line(tmp_path: Path, program: Sequence[str]) -> None:
    """A wrong setting ends without a traceback, with every way to start the program."""
    done = run(tmp_path, program, "tables", SHOPFLOW_WEB_PRT="1")
    message = "Error: SHOPFLOW_WEB_PRT: no such setting; did you mean SHOPFLOW_WEB_PORT?\n"
    assert (done.status, done.stdout, done.stderr) == (2, "", message)


def test_an_error_of_the_code_keeps_its_traceback(tmp_path: Path) -> None:
    """A fault in an imported module is shown in full. Only errors of use are one line."""
    (tmp_path / "mine.py").write_text("import shopflow, does_not_exist\n", encoding="utf-8")
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['pymongo.errors'] = None\n", encoding="utf-8")
    done = run(tmp_path, FAUST, "tables", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.status == 1
    assert "Traceback" in done.stderr


def test_the_version_is_shopflows(tmp_path: Path) -> None:
    """`--version` shows shopflow's version, not Faust's."""
    for program in (MODULE, CONSOLE):
        assert run(tmp_path, program, "--version").stdout.startswith("shopflow 0.")


def test_the_help_of_worker_names_the_configured_address(tmp_path: Path) -> None:
    """`worker --help` shows the configured port and address instead of Faust's defaults."""
    port = str(free_port())
    text = run(tmp_path, FAUST, "worker", "--help", SHOPFLOW_WEB_PORT=port, SHOPFLOW_WEB_BIND="0.0.0.0").stdout  # noqa: S104
    assert f"[configured: {port}]" in " ".join(text.split())
    assert "[configured: 0.0.0.0]" in " ".join(text.split())


def test_the_completion_completes(tmp_path: Path) -> None:
    """`completion` prints a script for the shell in `SHELL`, and the script completes shopflow's commands."""
    script = run(tmp_path, CONSOLE, "completion").stdout
    assert "_SHOPFLOW_COMPLETE=bash_complete" in script
    typed = {"_SHOPFLOW_COMPLETE": "bash_complete", "COMP_WORDS": "shopflow list-p", "COMP_CWORD": "1"}
    program = (sys.executable, "-c", "import sys; sys.argv[0] = 'shopflow'; from shopflow.__main__ import main; main()")
    assert run(tmp_path, program, **typed).stdout == "plain,list-products\n"
    wrong = run(tmp_path, CONSOLE, "completion", SHELL="/bin/ksh")
    assert (wrong.status, wrong.stderr) == (2, "Error: SHELL: must be bash, zsh or fish, found 'ksh'\n")


def test_clean_versions_deletes_old_tables_only(tmp_path: Path) -> None:
    """`clean-versions` keeps the present tables of the worker with the configured port."""
    port = str(free_port())
    old, new = (tmp_path / "data" / f"worker-{port}" / name / "tables" for name in ("v0", "v1"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    done = run(tmp_path, FAUST, "clean-versions", SHOPFLOW_WEB_PORT=port)
    assert (done.status, done.stderr) == (0, "")
    assert (old.parent.exists(), new.exists()) == (False, True)


def test_send_without_kafka_is_one_line(tmp_path: Path) -> None:
    """`send` to a Kafka that is away ends without a traceback."""
    done = run(tmp_path, FAUST, "send", "shop.purchases", "x", SHOPFLOW_BROKER=f"kafka://127.0.0.1:{free_port()}")
    assert (done.status, len(done.errors)) == (1, 1)
    assert done.stderr.startswith("Error: Kafka: ")


@pytest.mark.parametrize(
    "text",
    [
        '{"product_id":"m","name":"M","type":"t","price":-1,"updated_at":"2026-01-01T00:00:00Z"}',
        '{"product_id":"","name":"M","type":"t","price":1,"updated_at":"2026-01-01T00:00:00Z"}',
        '{"product_id":"m","name":"M","type":"t","price":1,"updated_at":"2026-01-01"}',
    ],
)
def test_send_refuses_what_is_no_event(text: str) -> None:
    """`send` checks the contract's limits, which Faust's Records don't know."""
    with pytest.raises(Refused, match="is no Product"):
        commands._message("--value-type", "Product", text, "json")


def test_send_makes_the_message_of_the_model() -> None:
    fields = {"product_id": "m", "name": "M", "type": "t", "price": 1, "updated_at": "2026-01-01T00:00:00Z"}
    made = commands._message("--value-type", "Product", json.dumps(fields), "json")
    assert made is not None
    assert {name: value for name, value in json.loads(made).items() if name in fields} == fields


def test_the_topics_are_described_without_a_server(tmp_path: Path) -> None:
    """`describe` prints AsyncAPI with the configured names, or a schema; dead letters have none."""
    document = run(tmp_path, CONSOLE, "describe", SHOPFLOW_TOPICS_PREFIX="my.").json()
    assert document["channels"]["purchases"]["address"] == "my.purchases"
    assert run(tmp_path, CONSOLE, "describe", "purchases").json()["title"] == "Purchase"
    refused = run(tmp_path, CONSOLE, "describe", "dead-letters")
    assert (refused.status, refused.stdout) == (2, "")
    assert refused.stderr == "Error: TOPIC: the values of dead-letters are as they came, and have no schema\n"


def test_help_says_what_shopflow_is_and_groups_its_commands(tmp_path: Path) -> None:
    """Each command is there once. Those of Faust are the last group; every other is in a group of shopflow."""
    text = run(tmp_path, CONSOLE, "--help").stdout
    assert text.index("shopflow: a small shop made of events.") < text.index("Start:") < text.index("Options:")
    found = re.findall(r"^  ([a-z][a-z-]+)  +\S", text.partition("Options:")[0], re.MULTILINE)
    assert len(found) == len(set(found))
    fausts = {"agents", "clean-versions", "completion", "livecheck", "model", "models", "reset", "send", "tables"}
    assert set(found[-len(fausts) :]) == fausts
    assert {"demo", "worker", "verify", "list-products"} <= set(found)
