"""docs/ARCHITECTURE.md agrees with the code: the steps of the guarantee, the files, the imports, the settings."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faust.types.settings import Settings

from faust_batches import app as heart
from faust_batches.agent import WAITING_BATCHES
from shopflow.app import app
from shopflow.shop.purchases import Purchases
from tests.docs.test_architecture import RULES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")

#: Settings that differ between shops: names and addresses.
OWN = {
    *("broker", "store", "origin", "autodiscover", "datadir", "topic_partitions", "topic_replication_factor"),
    *("web_bind", "web_port", "web_host", "web_application_options"),
}
#: Names of ours, and the setting of Faust that each replaces.
INSTEAD = {"WAITING_BATCHES": "stream_buffer_maxsize", "batch_commit_interval": "broker_commit_interval"}


def section(heading: str) -> str:
    """The text under a heading of the second level."""
    found = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert found, f"no section {heading}"
    return found


def rows(heading: str) -> list[list[str]]:
    """The rows of the table in a section, without its heading."""
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def quoted(text: str) -> list[str]:
    """The texts in backticks."""
    return re.findall(r"`([^`]+)`", text)


# -- the path of one purchase


def steps(text: str) -> dict[str, str]:
    """The first sentence of each numbered step."""
    found = re.findall(r"\b(\d)\. (.*?)(?:\.(?=\s|$)|, and(?=\s+\d\. ))", text, re.DOTALL)
    return {number: " ".join(sentence.split()) for number, sentence in found}


def test_the_steps_are_those_of_the_code() -> None:
    """The document has the steps of the docstring of `Purchases.handle`, and the body has their numbers."""
    in_code = steps(inspect.getdoc(Purchases.handle) or "")
    assert list(in_code) == ["1", "2", "3", "4", "5"]
    assert steps("\n".join(re.findall(r"^\d\. .*$", section("The path of one purchase"), re.MULTILINE))) == in_code
    body = re.findall(r"  # ([\d, ]+)$", inspect.getsource(Purchases.handle), re.MULTILINE)
    assert ", ".join(body).split(", ") == list(in_code)


def test_every_file_on_the_path_is_there() -> None:
    """A file that is named without its folder is in the folder of the file before it."""
    drawing = re.findall(r"[\w/]+\.py", section("The path of one purchase"))
    missing = [
        name for name in drawing if not any((ROOT / at / name).is_file() for at in ("", "shopflow", "shopflow/shop"))
    ]
    assert drawing
    assert missing == []


# -- the rooms


@pytest.mark.parametrize(("room", "files"), [(quoted(row[0])[0], row[1]) for row in rows("The rooms")])
def test_the_files_of_a_room_are_all_named_and_are_there(room: str, files: str) -> None:
    """The table names exactly the files that a room has. A room is a folder, or a module at the top of shopflow."""
    path = ROOT / room
    if path.suffix:
        assert path.is_file()
        return
    named = [name for name in quoted(files) if name.endswith(".py")]
    assert len(named) == len(set(named))
    assert set(named) == {str(file.relative_to(path)) for file in path.rglob("*.py") if file.name != "__init__.py"}


def test_the_rooms_may_import_what_the_rules_say() -> None:
    """The table has the same rooms and imports as the rules, except for rooms inside of a room."""

    def in_full(name: str) -> str:
        return name if name == "faust_batches" else f"shopflow.{name.replace('/', '.')}"

    documented: dict[str, set[str]] = {}
    for room, _, may_import in rows("The rooms"):
        name = quoted(room)[0].strip("/").removesuffix(".py").replace("/", ".")
        everything = {"faust_batches", "shopflow"} if may_import == "everything" else set()
        documented[name] = everything | {in_full(found) for found in quoted(may_import)}
    lower = {"shopflow.__main__", "shopflow.web.access", "shopflow.web.client"}
    assert documented == {room: allowed for room, allowed in RULES.items() if room not in lower}


# -- the settings


def given() -> Iterator[str]:
    """The settings that shopflow gives to Faust: those of the heart, and those in the call of `App`."""
    yield from heart.SETTINGS
    for node in ast.walk(ast.parse((ROOT / "shopflow/app.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "App":
            yield from (word.arg for word in node.keywords if word.arg)


def shown(value: Any) -> str:
    """A value as the document shows it; a class is shown as its name."""
    return value.__name__ if isinstance(value, type) else repr(value)


def test_the_settings_are_those_that_differ_from_fausts_defaults() -> None:
    """The table has every setting that differs from Faust's default, with both values."""
    faust = Settings("another")
    ours = {"WAITING_BATCHES": WAITING_BATCHES, "batch_commit_interval": app.batch_commit_interval}
    expected = {}
    for name in {*given(), *INSTEAD} - OWN:
        values = [getattr(faust, INSTEAD.get(name, name)), ours.get(name) or getattr(app.conf, name)]
        if values[0] != values[1]:
            expected[name] = [shown(value) for value in values]
    table = rows("Settings")
    assert {quoted(row[0])[0]: [quoted(row[1])[0], quoted(row[2])[0]] for row in table} == expected
    for row in table:
        assert INSTEAD.get(quoted(row[0])[0], "") in row[3]
