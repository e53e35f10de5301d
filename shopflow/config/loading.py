"""Loads the settings from `config.yaml` and the environment, which wins. Errors name the field."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import yaml

from shopflow.errors import Refused, meant

from .promotions import Gift, Rule
from .settings import Config

PREFIX = "SHOPFLOW_"
#: At the end of a variable: it names a file that has the value, as containers get their secrets.
_IN_FILE = "_FILE"

_BOOL = "tag:yaml.org,2002:bool"
#: By YAML's tag: the forms of a number, and its type.
_NUMBERS: dict[str, tuple[re.Pattern[str], type[float]]] = {
    "tag:yaml.org,2002:int": (re.compile(r"-?(0|[1-9][0-9]*)\Z"), int),
    "tag:yaml.org,2002:float": (
        re.compile(r"-?(0|[1-9][0-9]*)(?=[.eE])(\.[0-9]+)?([eE][-+]?[0-9]+)?\Z|-?\.inf\Z|\.nan\Z"),
        float,
    ),
}

_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `(\$(?:\.\w+|\[\d+\])*)`)?", re.DOTALL)
#: Variables that Kubernetes sets in every container for services called "shopflow" or "shopflow-mongodb".
_KUBERNETES = re.compile(r"SHOPFLOW_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")


def load(environ: Mapping[str, str] | None = None) -> Config:
    """Load the settings from the file, then from the environment, which wins.

    The file is `SHOPFLOW_CONFIG`, or else `./config.yaml`. Without a file the defaults are used.

    Raises:
        Refused: An unknown field, a wrong type or a bad value. The message names the field and its file or variable.
    """
    environ = os.environ if environ is None else environ
    named = environ.get("SHOPFLOW_CONFIG")
    path = Path(named or "config.yaml")
    values = _read(path) if named or path.exists() else {}
    _convert(values, str(path))  # first without the environment, so that errors of the file name the file
    return _convert(_overridden(values, environ), None)


def variables() -> dict[str, tuple[str, ...]]:
    """Every environment variable that sets a field, with the field's path."""
    return {_variable(path): path for path, _ in _leaves(Config)}


def _variable(path: Sequence[str]) -> str:
    names = path[:1] if path and path[0].startswith("promotions") else path  # one variable holds all rules
    return PREFIX + "_".join(name.partition("[")[0] for name in names).upper()


class _Loader(yaml.SafeLoader):
    """Refuses a field that is given twice; YAML would take the last one.

    Numbers are decimal, as in JSON and in the environment. To YAML 1.1 `010` is 8, `1:30` is 90 and `1_000` is 1000.
    Here these are texts, which a setting that is a number refuses. So are `yes` and `off`: no booleans in JSON.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML declares it
        first: [(tag, form) for tag, form in found if tag not in _NUMBERS and tag != _BOOL]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        form, kind = _NUMBERS[node.tag]
        text = str(self.construct_scalar(node))
        return kind(text.replace(".inf", "inf").replace(".nan", "nan")) if form.match(text) else text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, (_form, _) in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, _form, list("-.0123456789"))
    _Loader.add_constructor(_tag, _Loader.construct_number)
_Loader.add_implicit_resolver(_BOOL, re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), list("tTfF"))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise Refused(f"{path}: can't be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Refused(f"{path}: not YAML: {_reason(error)}") from None  # its text quotes the file, with passwords
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise Refused(f"{path}: must be fields and values, found {type(values).__name__}")
    return values


def _reason(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}{error.problem or error.context}"


def _leaves(kind: type[msgspec.Struct], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The path and the type of every field that is not a section."""
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from _leaves(hint, (*at, name))
        else:
            yield (*at, name), hint


def _overridden(values: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    settings = {_variable(path): (path, kind) for path, kind in _leaves(Config)}
    for name, given in sorted(environ.items()):
        if not name.startswith(PREFIX) or _is_foreign(name, given):
            continue
        in_file = name not in settings and name.removesuffix(_IN_FILE) in settings
        variable, text = _from_file(name, given, environ) if in_file else (name, given)
        if variable not in settings:
            raise Refused(f"{variable}: no such setting; {meant(variable.upper(), settings, prefix=PREFIX)}")
        path, kind = settings[variable]
        try:
            # A field that is not a scalar is given as JSON; `_convert` checks its parts.
            scalar = isinstance(kind, type) and get_origin(kind) is None  # in 3.10, tuple[str, ...] is a type
            value = msgspec.convert(_scalar(text, kind), kind) if scalar else msgspec.json.decode(text)
        except msgspec.ValidationError as error:
            raise Refused(f"{variable} ({'.'.join(path)}): {_plain(str(error))}") from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise Refused(f"{variable} ({'.'.join(path)}): not JSON: {error}") from error
        values = _with(values, path, value)
    return values


def _scalar(text: str, kind: type) -> Any:
    """The value of a variable, as the file gives it for the same text."""
    if kind is str:
        return text
    loader: Any = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    return loader.construct_object(yaml.ScalarNode(tag, text)) if tag in {*_NUMBERS, _BOOL} else text


def _from_file(variable: str, path: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """The variable that is meant, and its value: the file's text, without line ends behind it."""
    meant_by_it = variable.removesuffix(_IN_FILE)
    if meant_by_it in environ:
        raise Refused(f"{variable}: {meant_by_it} is set too; set one of them")
    try:
        return meant_by_it, Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise Refused(f"{variable}: {path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise Refused(f"{variable}: {path} is not UTF-8") from None  # the error has the file's bytes


def _is_foreign(variable: str, text: str) -> bool:
    """True for variables that are no settings: the file's path, variables of the tests, and those of Kubernetes."""
    ours = variable == "SHOPFLOW_CONFIG" or variable.startswith("SHOPFLOW_TEST_")
    return ours or _KUBERNETES.fullmatch(variable) is not None or (variable.endswith("PORT") and "://" in text)


def _with(values: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    head, *rest = path
    inner = values.get(head)
    return {**values, head: _with(inner if isinstance(inner, dict) else {}, tuple(rest), value) if rest else value}


def _convert(values: dict[str, Any], file: str | None) -> Config:
    """The values as a `Config`. Errors name `file`; None: they name the environment variable."""
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        path, message = _fault(str(error))
        field = ".".join(path) + _rule_named(values, path)
        where = f"{file}: {field}" if file else f"{_variable(path)} ({field})"
        raise Refused(f"{where}: {_plain(message)}") from error


def _rule_named(values: dict[str, Any], path: list[str]) -> str:
    """The name of the rule that the path leads into, for a message; "" if there is none."""
    rules = values.get("promotions")
    for number, rule in enumerate(rules if isinstance(rules, list) else []):
        if path[:1] == [f"promotions[{number}]"] and isinstance(rule, dict) and isinstance(rule.get("name"), str):
            return f" (rule {_visible(rule['name'])})"
    return ""


def _fault(text: str) -> tuple[list[str], str]:
    """The field's path and the fault, from msgspec's "message - at `$.field`"."""
    # An unknown field first: its name comes from the user and may have any characters.
    if unknown := _UNKNOWN.fullmatch(text):
        path = (unknown[2] or "$").split(".")[1:]
        return [*path, _visible(unknown[1])], f"no such field; {meant(unknown[1], _fields_at(path))}"
    message, _, where = text.partition(" - at `")
    path = [part for part in where.removeprefix("key` in `").rstrip("`").split(".") if part not in {"", "$"}]
    if where.startswith("key` in `"):
        return [*path, "(a field's name)"], message
    if re.match(r"[a-z_]+: must be ", message):
        field, _, message = message.partition(": ")
        path.append(field)
    return path, message


def _fields_at(path: Sequence[str]) -> list[str]:
    """The names of the fields beside an unknown one; those of all rules in `promotions`."""
    if path and path[0].startswith("promotions"):
        kinds = (Gift,) if path[-1] == "voucher" else get_args(Rule)
        return sorted({name for kind in kinds for name in kind.__struct_fields__})
    kind: Any = Config
    for name in path:
        kind = get_type_hints(kind)[name]
    return list(kind.__struct_fields__)


def _visible(name: str) -> str:
    return name if name.strip() and name.isprintable() and ":" not in name else repr(name)


def _plain(message: str) -> str:
    decimal = (
        "; a number is decimal, like 1500 or 2.5" if re.match("Expected `(int|float)`, got `str`", message) else ""
    )
    return message[:1].lower() + message[1:] + decimal
