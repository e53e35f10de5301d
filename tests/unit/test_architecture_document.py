"""docs/ARCHITECTURE.md says what the code says: its settings, its files, and the steps of the guarantee."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from faust_batches import app as heart
from faust_batches.agent import WAITING_BATCHES
from shopflow.app import app
from shopflow.shop.purchases import Purchases

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """The text under a heading of the second level."""
    return TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_each_setting_has_the_value_that_the_document_says() -> None:
    """And none of the heart's is missing."""
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section("Settings that differ from Faust's"), re.MULTILINE)
    said = dict(rows)
    known = {
        **{name: value for name, value in heart.SETTINGS.items() if name != "TableManager"},
        "WAITING_BATCHES": WAITING_BATCHES,
        "batch_commit_interval": app.batch_commit_interval,
    }
    assert set(known) <= set(said)
    assert said == {name: repr(known[name] if name in known else getattr(app.conf, name)) for name in said}


def test_each_file_that_the_rooms_and_the_path_name_is_there() -> None:
    """A file named without its folder is in the room of its row."""
    path, rooms = section("The path of one purchase"), section("The rooms")
    missing = [name for name in re.findall(r"\w+(?:/\w+)+\.py", path + rooms) if not (ROOT / name).is_file()]
    for room, names in re.findall(r"^\| `([\w/]+/)` \| (.*?) \| [^|]* \|$", rooms, re.MULTILINE):
        found = [ROOT / room / name for name in re.findall(r"`(\w+/?)`", names)]
        missing += [str(path) for path in found if not (path.is_dir() or path.with_suffix(".py").is_file())]
    assert missing == []


def test_the_steps_are_those_of_the_code() -> None:
    """Word by word: the numbers stand again in the body."""
    steps = re.findall(r"^(\d\. .*)$", (inspect.getdoc(Purchases.handle) or ""), re.MULTILINE)
    assert len(steps) == 4
    for step in steps:
        assert f"\n{step}\n" in TEXT
