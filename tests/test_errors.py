"""Errors: each type says how the caller must react, and its text reads well where it is shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shopflow.commands.base import exit_with
from shopflow.errors import PartitionLost, Refused, Rejected, Unavailable


def test_no_error_is_caught_where_another_reaction_is_meant() -> None:
    """Each reaction has its own branch of types, so that a retry never catches a refusal."""
    reactions = (Refused, Unavailable, Rejected, PartitionLost)
    for one in reactions:
        assert not any(issubclass(one, other) for other in reactions if other is not one)


def test_a_refusal_in_a_command_is_one_line_on_stderr_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise Refused("config.yaml: app_id: no such field")

    with pytest.raises(SystemExit) as ended:
        exit_with(refuse)
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "Error: config.yaml: app_id: no such field\n")
    assert str(Refused("why")) == "why"


@pytest.mark.parametrize("command", [["faust", "-A", "shopflow", "agents"], ["-m", "shopflow", "worker"]])
def test_a_bad_configuration_is_one_line_on_stderr_and_status_2(command: list[str], tmp_path: Path) -> None:
    """Faust's own commands import the application, and end in the same way as shopflow's."""
    program = ["-m", *command] if command[0] == "faust" else command
    environ = {**os.environ, "SHOPFLOW_APP_ID": "not a name"}
    done = subprocess.run(
        [sys.executable, *program], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: SHOPFLOW_APP_ID (app_id): must be")
    assert done.stderr.count("\n") == 1


def test_an_unavailable_server_is_named() -> None:
    error = Unavailable("MongoDB", ConnectionRefusedError("connection refused"))
    assert str(error) == "MongoDB: connection refused"
    assert error.service == "MongoDB"


def test_a_rejection_has_a_reason_that_can_be_counted_and_a_detail_for_reading() -> None:
    error = Rejected("invalid event", "price: Expected `int` >= 0")
    assert (error.reason, error.detail) == ("invalid event", "price: Expected `int` >= 0")
    assert str(error) == "invalid event: price: Expected `int` >= 0"
    assert str(Rejected("no value")) == "no value"


def test_a_partition_lost_says_which() -> None:
    assert str(PartitionLost("shop.purchases, partition 3")) == "shop.purchases, partition 3"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_under_stdout_is_one_line(tmp_path: Path) -> None:
    """A command whose output can't be written ends without a traceback."""
    environ = {**os.environ, "SHOPFLOW_DATA_DIR": str(tmp_path)}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "shopflow", "reset"],
            env=environ, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "Error: stdout: No space left on device\n")
