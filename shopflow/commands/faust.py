"""Faust's own commands, but for `worker`: an error is one line, and all agents, tables and models are known."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import re
import shutil
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import click
import faust
import msgspec
from aiokafka.errors import MessageSizeTooLargeError, UnknownError
from click.shell_completion import get_completion_class
from faust.cli.agents import agents as faust_agents
from faust.cli.base import cli
from faust.cli.clean_versions import clean_versions as faust_clean_versions
from faust.cli.model import model as faust_model
from faust.cli.models import models as faust_models
from faust.cli.send import send as faust_send
from faust.cli.tables import tables as faust_tables
from faust.models import registry
from faust.serializers.codecs import get_codec

from shopflow.app import app, config, discover, kafka_at
from shopflow.errors import Refused, Unavailable, meant
from shopflow.kafka import connection
from shopflow.kafka.security import Bootstrap
from shopflow.kafka.topics import partitions_of
from shopflow.servers.servers import locate

from .base import Command, choose_datadir, with_options

#: What is printed about a message that was sent.
_SENT = ("topic", "partition", "topic_partition", "offset", "timestamp", "timestamp_type", "log_start_offset")
#: The commands in `--help`, by what they are for. The others are Faust's.
_GROUPS = {
    "Start": ("demo", "worker", "workers", "servers"),
    "Send example events": ("seed-products", "seed-customers", "seed-purchases"),
    "Look": (
        *("list-products", "list-customers", "list-vouchers", "price-history", "trace", "tail", "try-promotion"),
        *("export", "describe"),
    ),
    "Check and mend": ("verify", "doctor", "dead-letters", "replay", "repartition", "create-topics"),
}
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


class _Discovering(Command):
    """A command that needs the agents, tables and models."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        discover()
        super().__call__(*args, **kwargs)


class agents(_Discovering, faust_agents):  # noqa: N801 - the class's name is the command's
    """List agents."""


class tables(_Discovering, faust_tables):  # noqa: N801
    """List available tables."""


class models(_Discovering, faust_models):  # noqa: N801
    """List all available models as a tabulated list."""


class model(_Discovering, faust_model):  # noqa: N801
    """Show model detail: one that `models` lists."""

    async def run(self, name: str) -> None:
        """Show the model with this name, with or without its module."""
        await super().run(_model_named(name, "NAME"))


def _model_named(name: str, option: str) -> str:
    """The name in Faust's registry of a model, given in full, as `models` lists it, or without its module.

    Raises:
        Refused: There is none.
    """
    known = {short: full for full in registry for short in (full.rpartition(".")[2], full.removeprefix("shopflow."))}
    known |= {full: full for full in registry}
    if name not in known:
        listed = sorted(full.removeprefix("shopflow.") for full in registry if full.startswith("shopflow."))
        raise Refused(f"{option}: there is no model {name!r}; {meant(name, known, listed)}")
    return known[name]


class clean_versions(Command, faust_clean_versions):  # noqa: N801
    """Delete the tables of old versions of the application."""

    async def run(self) -> None:
        """Delete the folders of old versions in this worker's folder."""
        choose_datadir(self, app.conf.web_port)
        for folder in app.conf.find_old_versiondirs():
            try:
                shutil.rmtree(folder)
            except OSError as error:
                raise Refused(f"data_dir: {error.filename}: {error.strerror}") from error
            self.say(f"{folder} is deleted.")


class livecheck(Command):  # noqa: N801
    """Manage LiveCheck instances: shopflow has none."""

    async def run(self) -> None:
        raise Refused("livecheck: shopflow has no LiveCheck; `verify` compares Kafka, MongoDB and the tables")


class completion(Command):  # noqa: N801
    """Print the completion of the program `shopflow` for the shell in $SHELL: bash, zsh or fish."""

    async def run(self) -> None:
        """Print Click's script. Faust's own needs a package that Faust does not install."""
        shell = Path(os.environ.get("SHELL", "")).stem
        made = get_completion_class(shell)
        if made is None:
            raise Refused(f"SHELL: must be bash, zsh or fish, found {shell!r}")
        self.say(made(cli, {}, "shopflow", "_SHOPFLOW_COMPLETE").source())


class reset(_Discovering):  # noqa: N801
    """Delete this worker's tables. At its next start it recovers them from Kafka."""

    async def run(self) -> None:
        """Delete the tables, unless a worker has them open."""
        choose_datadir(self, app.conf.web_port)
        _check_unused(app.conf.tabledir)
        for table in app.tables.values():
            table.reset_state()
        self.say(f"The tables in {app.conf.tabledir} are deleted.")


def _check_unused(tables: Path) -> None:
    """Raises:
    Refused: A process has the tables in this folder open.
    """
    for lock in tables.glob("*.db/LOCK"):
        with lock.open("rb+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the same lock as RocksDB's
            except OSError as error:
                raise Refused(f"data_dir: a worker has the tables in {tables} open: stop it first") from error


class send(_Discovering, faust_send):  # noqa: N801
    """Send a message to a topic, or to the topic of an @agent."""

    options = with_options(
        faust_send.options,
        {"--partition": {"type": click.IntRange(0)}, "--repeat": {"type": click.IntRange(1)}},
    )

    async def run(  # type: ignore[override]
        self, entity: str, value: str | None, *, key: str | None, partition: int | None, repeat: int, **given: Any
    ) -> None:
        """Send the message as often as `--repeat` says, and print where each one is.

        Raises:
            Refused: An argument is wrong. Nothing is sent.
            Unavailable: Kafka is away.
        """
        if value is None and key is None:
            raise Refused("VALUE: is missing; give a value, or a key")
        topic = _topic_of(entity)
        message = (
            _message("--value-type", given["value_type"], value, self.value_serializer),
            _message("--key-type", given["key_type"], key, self.key_serializer),
        )
        bootstrap = kafka_at(locate(config, mongodb=False))
        await _check_topic(bootstrap, topic, partition)
        try:
            async with connection.producer(bootstrap) as producer:
                for number in range(repeat):
                    if number:
                        await asyncio.sleep(random.uniform(given["min_latency"], given["max_latency"]))  # noqa: S311
                    sent = await producer.send_and_wait(topic, *message, partition=partition)
                    self.say(self.dumps({name: getattr(sent, name) for name in _SENT}))
        except Unavailable as error:
            if isinstance(error.__cause__, MessageSizeTooLargeError):
                raise Refused("VALUE: is larger than the topic takes") from error
            if isinstance(error.__cause__, UnknownError) and key is None:
                raise Refused(f"--key: is missing; if {topic} is compacted, each of its records needs one") from error
            raise


def _topic_of(entity: str) -> str:
    """The topic's name. An agent's is as `agents` prints it, or the last part of that.

    Raises:
        Refused: There is no such agent, or it can't be a topic's name.
    """
    if not entity.startswith("@"):
        if not _TOPIC.fullmatch(entity):
            raise Refused(f"ENTITY: {entity!r} is no name of a topic; the name of an agent begins with @")
        return entity
    known = {f"@{name.rpartition('.')[2]}": agent for name, agent in app.agents.items()}
    known |= {f"@{name.removeprefix('shopflow.')}": agent for name, agent in app.agents.items()}
    if entity not in known:
        raise Refused(f"ENTITY: there is no agent {entity!r}; {meant(entity, known, list(known))}")
    return str(known[entity].channel.get_topic_name())


def _message(option: str, model: str | None, text: str | None, serializer: Any) -> bytes | None:
    """The bytes of a key or a value: those given, or those of the model's object.

    Raises:
        Refused: There is no such model or serializer, or the text is none of the model's.
    """
    try:
        codec = get_codec(serializer)
    except (KeyError, TypeError) as error:
        name = option.replace("type", "serializer")
        raise Refused(f"{name}: there is no {serializer!r}; there are, for instance, json and raw") from error
    if text is None:
        return None
    if not model:
        return text.encode()
    from shopflow.shop.decoding import struct_of

    kind: Any = registry[_model_named(model, option)]
    try:
        fields = codec.loads(text.encode())
        if kind.__module__ == "shopflow.models":
            msgspec.convert(fields, struct_of(kind))  # Faust does not know a limit of 0
        return cast("bytes", kind.from_data(fields).dumps(serializer=serializer))
    except (faust.exceptions.FaustError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise Refused(f"{option}: {text[:60]!r} is no {model}: {' '.join(str(error).split())}") from error


async def _check_topic(bootstrap: Bootstrap, topic: str, partition: int | None) -> None:
    """Raises:
    Refused: The topic or the partition does not exist.
    """
    async with connection.admin(bootstrap) as client:
        found = (await partitions_of(client, [topic])).get(topic)
        if found is None:
            topics = sorted(await client.list_topics())
            raise Refused(f"ENTITY: Kafka has no topic {topic!r}; {meant(topic, topics)}")
    if partition is not None and partition >= found:
        raise Refused(f"--partition: {topic} has {found} partitions, 0 to {found - 1}")


def _resolve(ctx: click.Context, args: list[str]) -> Any:
    """Click's `resolve_command`, which also names the command that was probably meant."""
    try:
        return type(cli).resolve_command(cli, ctx, args)
    except click.UsageError as error:
        like = get_close_matches(args[0], cli.list_commands(ctx), n=1)
        if like:
            error.message += f" Did you mean {like[0]!r}?"
        raise


def _format_options(ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Click's `format_options`, with the commands first, in groups."""
    grouped = {name for names in _GROUPS.values() for name in names}
    others = tuple(name for name in cli.list_commands(ctx) if name not in grouped)
    for title, names in {**_GROUPS, "Commands of Faust": others}.items():
        with formatter.section(title):
            limit = formatter.width - 6 - max(map(len, names))
            formatter.write_dl([(name, cli.commands[name].get_short_help_str(limit)) for name in names])
    click.Command.format_options(cli, ctx, formatter)


cli.help = """shopflow: a small shop made of events. A worker brings products, customers and purchases from Kafka to
MongoDB, counts each purchase once, and serves the counts and a live page over HTTP.

Begin with `demo`. COMMAND --help says more about a command, docs/COMMANDS.md about all."""
cli.resolve_command = _resolve  # type: ignore[method-assign]  # Faust makes the group
cli.format_options = _format_options  # type: ignore[method-assign]
