"""The documents: what they name exists, and what they say is true. No servers.

The commands themselves are run by tests/docs/test_blocks.py and tests/docs/test_tour.py.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import faust
import pytest
import yaml
from faust.cli.base import cli

from shopflow import topics
from shopflow.app import app, discover
from shopflow.commands.samples import PRODUCTS
from shopflow.config import loading
from shopflow.config import settings as config
from shopflow.models import Customer, CustomerActivity, Product, Purchase
from shopflow.operations.letters import Mark
from shopflow.web.api import events
from tests.docs.documents import DOCUMENTS, NAMES, ROOT, blocks, shell_blocks, text_of

README, COMMANDS, EVENTS, CONFIGURATION = (
    text_of(name) for name in ("README.md", "docs/COMMANDS.md", "docs/EVENTS.md", "docs/CONFIGURATION.md")
)

for _name in app.conf.autodiscover:  # the commands, as Faust finds them
    importlib.import_module(_name)

METADATA = configparser.ConfigParser()
METADATA.read(ROOT / "setup.cfg", encoding="utf-8")


def shell_lines() -> list[str]:
    """Every command line in a shell block of any document but the tutorial, whose lines test_tutorial.py runs."""
    names = [name for name in NAMES if name != "docs/TUTORIAL.md"]
    lines = [line.strip() for name in names for block in shell_blocks(name) for line in block.lines]
    return sorted({line.partition("  # ")[0].strip() for line in lines if line and not line.startswith("#")})


def inline() -> list[str]:
    """The texts in backticks within a line, outside of blocks, in all documents."""
    prose = [re.sub(r"^```.*?^```$", "", text_of(name), flags=re.MULTILINE | re.DOTALL) for name in NAMES]
    return sorted({found for text in prose for found in re.findall(r"`([^`\n]+)`", text)})


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of each row of the table whose heading begins with this text."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(heading))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


# -- commands


def check_shopflow(words: list[str]) -> None:
    """The command exists, and takes these options and values."""
    name, *arguments = words
    command = cli.commands.get(name)
    assert command is not None, f"no command {name}"
    command.make_context(name, arguments, parent=click.Context(cli))


def check_make(words: list[str]) -> None:
    """The Makefile has these targets, and reads these variables."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_variable, value = word.partition("=")
        if name == "DEMO_ARGS":
            check_shopflow(["demo", *value.split()])
        defined = rf"^{re.escape(name)} \?=" if is_variable else rf"^{re.escape(name)}:"
        assert re.search(defined, makefile, re.MULTILINE), f"the Makefile has no {name}"


def check_compose(words: list[str]) -> None:
    """docker-compose.yml has the service, and shopflow the command that runs in it."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    if words[0] == "--profile":
        profile, words = words[1], words[2:]
        assert profile in {name for service in services.values() for name in service.get("profiles", [])}
    assert words[0] in {"up", "exec", "down"}
    scaled = [word.partition("=")[0] for flag, word in pairwise(words) if flag == "--scale"]
    named = [words[1]] if words[0] == "exec" else []
    assert set(scaled + named) <= set(services)
    if named:
        assert words[2] == "shopflow"
        check_shopflow(words[3:])


def check_curl(words: list[str]) -> None:
    """A worker has the path, and accepts the event that is sent."""
    discover()
    *options, address = words
    url = urlsplit(address)
    assert url.hostname == "127.0.0.1"
    assert url.port in {config.Web().port, config.Web().port + 1}
    (path,) = [
        path for path in app.web.views if re.fullmatch(re.sub(r"\{\w+(:.+?)?\}", "[^/]+", path), url.path) is not None
    ]
    if options:
        header, kind, data, body = options
        assert (header, kind, data) == ("-H", "Content-Type: application/json", "-d")
        assert events.FORMS[path.split("/")[2]].check(json.loads(body)).problems == []


def check_example(words: list[str]) -> None:
    """The program exists, and Faust has the command."""
    module, command = words
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
    assert command in cli.commands


def check_program(words: list[str]) -> None:
    """The README says to save the program, or the tests exist."""
    if words[:2] == ["-m", "pytest"]:
        assert (ROOT / words[2]).exists()
    else:
        assert f"Save this as `{words[0]}`" in README


def check_export(words: list[str]) -> None:
    """The setting exists and accepts the value. Login settings need others beside them: tests/docs/test_blocks.py."""
    name, _, value = words[0].partition("=")
    assert name in {"SHOPFLOW_CONFIG", *loading.variables()}
    if not name.startswith(("SHOPFLOW_KAFKA_", "SHOPFLOW_CONFIG")) and "$" not in value:
        loading.load({name: value})


CHECKS = (
    (".venv/bin/faust -A shopflow", check_shopflow),
    ("faust -A shopflow", check_shopflow),
    (".venv/bin/faust -A", check_example),
    (".venv/bin/python", check_program),
    ("make", check_make),
    ("docker compose", check_compose),
    ("curl", check_curl),
    ("export", check_export),
)


@pytest.mark.parametrize("line", shell_lines())
def test_every_command_line_is_known(line: str) -> None:
    """If a command, option, target, service, path or setting is renamed, the documents must follow."""
    start, check = next((each for each in CHECKS if line.startswith(each[0] + " ")), (None, None))
    assert check is not None, f"nothing checks this line: {line}"
    check(shlex.split(line[len(start or "") :]))


@pytest.mark.parametrize(
    "text",
    [text for text in inline() if text.startswith(("faust -A shopflow ", ".venv/bin/faust -A shopflow ", "make "))],
)
def test_commands_in_the_text_are_known(text: str) -> None:
    """Commands within sentences are checked like those in blocks."""
    if "NAME" not in text:
        with suppress(click.MissingParameter):  # a command that is named without its arguments
            test_every_command_line_is_known(text)


def test_the_first_block_has_two_commands() -> None:
    """A newcomer starts with two commands."""
    assert shell_blocks("README.md")[0].lines == ("make demo", "make test")


def test_the_readme_is_short() -> None:
    """The README stays within 200 lines; details belong into docs/."""
    assert len(README.splitlines()) <= 200


def our_commands() -> set[str]:
    """The names of shopflow's commands, also of those that replace Faust's."""
    return {name for name, command in cli.commands.items() if command.callback.__module__.startswith("shopflow.")}


def test_the_table_of_commands_is_complete() -> None:
    """The table has every command with its options and their defaults, and no other."""
    documented = {}
    for row in table(COMMANDS, "| command |"):
        name, _, usage = row[0].strip("`").partition(" ")
        documented[name] = dict(re.findall(r"(--[\w-]+)(?: ([^\s\]]+))?", usage))
    assert set(documented) == our_commands()
    for name, options in documented.items():
        known = {param.opts[0]: param for param in cli.commands[name].params}
        for flag, value in options.items():
            assert flag in known, f"{name} has no {flag}"
            if re.fullmatch(r"[\d.]+", value):
                assert float(value) == known[flag].default, f"{name} {flag}"
        if name != "worker":  # Faust's own options
            assert set(options) == {flag for flag in known if flag.startswith("--")} - {"--help"}, name


def test_the_models_tools_lead_to_commands() -> None:
    """Every command in the table of the model's tools exists."""
    for _, ours in table(COMMANDS, "| there |"):
        for text in re.findall(r"`([^`]+)`", ours):
            name = text.removeprefix("faust -A shopflow ")
            if re.match(r"(seed|list)-|worker", name):
                check_shopflow(shlex.split(name))


# -- settings


def defaults(kind: Any = None, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every field with its default."""
    for name in (kind := kind or config.Config()).__struct_fields__:
        value = getattr(kind, name)
        if hasattr(value, "__struct_fields__"):
            yield from defaults(value, f"{at}{name}.")
        else:
            yield f"{at}{name}", value


def test_the_table_of_fields_is_true() -> None:
    """Each field's variable and default are those of the code."""
    known, variables = dict(defaults()), {".".join(path): name for name, path in loading.variables().items()}
    rows = table(CONFIGURATION, "| field |")
    assert len(rows) > 10
    for field, variable, default, _ in rows:
        name = field.strip("`")
        assert name in known, name
        assert variable.strip("`") == variables[name]
        assert default.strip("`") == str(known[name]).replace("()", "[]"), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_settings_that_are_named_exist(document: Path) -> None:
    """No document names a variable or field that does not exist. The tests read every SHOPFLOW_TEST_ variable."""
    text = document.read_text(encoding="utf-8")
    variables = set(re.findall(r"\bSHOPFLOW_\w+[A-Z]\b", text)) - {"SHOPFLOW_CONFIG"}
    of_tests = {name for name in variables if name.startswith("SHOPFLOW_TEST_")}
    read = {name for path in (ROOT / "tests").rglob("conftest.py") for name in of_tests if name in path.read_text()}
    assert of_tests == read
    known = set(loading.variables())
    assert {name for name in variables - of_tests if not {name, name.removesuffix("_FILE")} & known} == set()
    sections = {name.partition(".")[0] for name, _ in defaults() if "." in name}
    fields = {found for found in re.findall(r"`(\w+\.\w+)`", text) if found.partition(".")[0] in sections}
    files = {f"{section}.py" for section in sections}
    assert fields - files <= {name for name, _ in defaults()}


# -- events


def record_fields(record: type[faust.Record]) -> list[str]:
    """The names of the fields, with `?` after optional ones."""
    return sorted(name if field.required else f"{name}?" for name, field in record._options.descriptors.items())


def test_the_table_of_events_is_the_schema() -> None:
    """Topics, keys and fields are those of the code."""
    records = {"shop.products": Product, "shop.customers": Customer, "shop.purchases": Purchase}
    rows = {row[0].split("`")[1]: row for row in table(EVENTS, "| topic |")}
    assert set(rows) == {
        *records,
        "shop.dead-letters",
        "shop.purchase-prices",
        "shop.retries",
        "shop.customer-activity",
        "shop.vouchers",
        "shop.alerts",
    }
    activity = re.findall(r"`([^`]+)`", rows["shop.customer-activity"][2])
    assert activity == list(CustomerActivity._options.descriptors)
    mark = re.findall(r"`([^`]+)`", rows["shop.retries"][2])
    assert mark == list(Mark.__struct_fields__)
    prefix = topics.DEAD_LETTERS.removesuffix("dead-letters")
    for name, record in records.items():
        _, key, fields = rows[name]
        assert key.strip("`") == topics.KEYS[prefix + name.removeprefix("shop.")]
        assert sorted(re.findall(r"`([^`]+)`", fields)) == record_fields(record)
        spec = next(spec for spec in topics.SPECS if spec.name == prefix + name.removeprefix("shop."))
        assert ("compacted" in rows[name][0]) == spec.compacted


def test_the_topics_to_create_by_hand_are_all_and_as_shopflow_creates_them() -> None:
    """A worker without the right to create topics needs every topic, with the right cleanup policy."""
    lines = re.findall(
        r"^  - with (.+?)(?:;|\.)$", CONFIGURATION.partition("create these first")[2], re.MULTILINE | re.DOTALL
    )
    named = {name: "compact" in line for line in lines[:3] for name in re.findall(r"`(shop[^`]+)`", line)}
    prefix = config.Config().topics.prefix
    specs = {spec.name.replace(prefix, "shop.", 1): spec for spec in topics.SPECS}
    assert named.keys() == specs.keys()
    for name, spec in specs.items():
        assert named[name] == spec.compacted, name


@pytest.mark.parametrize("name", NAMES)
def test_programs_compile(name: str) -> None:
    """Every Python block is valid. Complete programs are also run, by tests/docs/test_blocks.py."""
    for program in blocks(text_of(name), "python"):
        compile(program, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_example_is_shown_as_it_is() -> None:
    """EVENTS.md shows the end of examples/basket_alarm.py unchanged."""
    example = text_of("examples/basket_alarm.py")
    assert sum(example.endswith(program) for program in blocks(EVENTS, "python")) == 1


# -- the rest


def headings(document: Path) -> set[str]:
    """The anchors of a document's headings."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    """Every link within the project has a target."""
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    for link in links:
        if not urlsplit(link).scheme:
            name, _, heading = link.partition("#")
            target = document.parent / name if name else document
            assert target.exists(), link
            assert not heading or heading in headings(target), link


def test_the_changelog_has_this_version() -> None:
    """The newest version in the changelog is the package's."""
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == METADATA["metadata"]["version"]


def test_versions_that_are_named_are_those_in_use() -> None:
    """Python's versions are those of setup.cfg, Kafka's is that of the settings."""
    pythons = re.findall(r"Python :: (3\.\d+)$", METADATA["metadata"]["classifiers"], re.MULTILINE)
    (without_servers,) = re.findall(
        r'SecantusDB.*; python_version < "(3\.\d+)"', METADATA["options.extras_require"]["embedded"]
    )
    with_servers = pythons[: pythons.index(without_servers)]
    assert f"Python ({with_servers[0]} to {with_servers[-1]})" in README
    limits = text_of("docs/LIMITS.md")
    assert f"| {pythons[0]} to {pythons[-1]}, " in limits
    kafka = {found for text in (README, limits) for found in re.findall(r"Kafka (\d+\.\d+\.\d+)", text)}
    assert kafka == {config.Embedded().kafka_version}
    assert f"{config.Embedded().kafka_version} (embedded)" in limits


def test_dead_letter_headers_are_those_that_are_sent() -> None:
    """Header names in EVENTS.md are those in the code."""
    source = text_of("shopflow/shop/dead_letters.py")
    assert '"__connect.errors."' in source
    for name in ("topic", "partition", "offset", "exception.message"):
        assert f"}}{name}" in source
        assert f"`__connect.errors.{name}`" in EVENTS


def test_products_in_events_are_offered_or_made() -> None:
    """A document sends purchases only of example products and of products that it offers itself."""
    for name in NAMES:
        lines = [line for block in shell_blocks(name) for line in block.lines]
        offered = set(re.findall(r'"product_id": "([^"]+)", "name"', "\n".join(lines)))
        sold = set(re.findall(r'"product_id": "([^"]+)", "quantity"', "\n".join(lines)))
        sold |= {line.split()[3] for line in lines if "buy.py" in line}
        assert sold <= offered | {product.product_id for product in PRODUCTS}, name
