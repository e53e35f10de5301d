"""The commands: parse, call, print."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any, NoReturn

import click
from faust.cli import AppCommand, argument, option
from faust.cli.send import send as faust_send

from shopflow import topics
from shopflow.app import app, config, connect_kafka, kafka_at, store
from shopflow.config.settings import load
from shopflow.errors import Refused, Unavailable
from shopflow.kafka import connection as kafka
from shopflow.kafka.security import Bootstrap
from shopflow.operations import export as exporting
from shopflow.operations import letters
from shopflow.operations.verify.events import verify_deep
from shopflow.operations.verify.totals import verify as run_verify
from shopflow.servers.servers import Addresses, Servers, locate
from shopflow.shop import price_history as history
from shopflow.shop import stock
from shopflow.shop.promotions import trial as trying
from shopflow.shop.text import visible
from shopflow.store.types import Document

from . import lines as listing
from . import plots, samples, seeding
from . import worker as running
from .demo import demo as run_demo
from .progress import progress_bar
from .replay import replay as run_replay
from .worker import WorkerCommand

__all__ = ["Command"]

_COULD_NOT_TELL = 2
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: Customers that `seed-purchases` chooses from.
_BUYERS = 100_000


def exit_with(run: Callable[[], int | None]) -> NoReturn:
    """Run, and exit with what it returns (None: 0). An error is one line on stderr.

    Status 2: not as asked (`Refused`); 1: a server is away; 130: Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # where ł can't be written, a listing is better with \u0142 than not at all
            stream.reconfigure(errors="backslashreplace")
    try:
        status = run() or 0
    except Refused as error:
        error.show()
        status = error.exit_code
    except Unavailable as error:
        click.echo(f"Error: {error}", err=True)
        status = 1
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
        status = 128 + signal.SIGINT
    except BrokenPipeError:  # `list-customers | head`
        _give_up_stdout()
        status = 0
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _give_up_stdout()  # `list-customers > FILE` on a full disk
        click.echo(f"Error: {error.filename or 'stdout'}: {error.strerror}", err=True)
        status = 1
    sys.exit(status)


def _give_up_stdout() -> None:
    """What could not be written is not tried again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Command(AppCommand):
    """A command that runs once, in an event loop of its own."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run it, and exit."""
        kafka.quiet()
        exit_with(lambda: asyncio.run(self.run(*self.args, *args, **{**self.kwargs, **kwargs})))


class worker(WorkerCommand):  # noqa: N801 - the class's name is the command's
    """Start a worker: events go from Kafka to MongoDB and into the tables."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run it, and exit."""
        exit_with(lambda: self.serve(*args, **kwargs))


@app.command(base=Command)
async def reset(self: Command) -> None:
    """Delete this worker's tables; at its next start it recovers them from Kafka."""
    running.choose_datadir(self, app.conf.web_port)
    running.check_unused(app.conf.tabledir)
    for table in app.tables.values():
        table.reset_state()
    self.say(f"The tables in {app.conf.tabledir} are deleted.")


class send(faust_send):  # noqa: N801
    """Send a message to a topic."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run it, and exit."""
        exit_with(lambda: self._send(*args, **kwargs))

    def _send(self, *args: Any, **kwargs: Any) -> NoReturn:
        connect_kafka(locate(config, mongodb=False))
        self.run_using_worker(*args, **kwargs)


def _now() -> datetime:
    return datetime.now(timezone.utc)


@asynccontextmanager
async def _mongodb(*, kafka: bool = False) -> AsyncIterator[Addresses]:
    addresses = locate(config, kafka=kafka)
    store.connect(addresses.mongodb)
    try:
        await store.ping()
        yield addresses
    finally:
        await store.close()


@dataclass
class Way:
    """How events get straight into MongoDB."""

    document: Callable[[dict[str, Any]], Any]
    write: seeding.Write


async def _seed(
    self: Command, topic: Any, events: Iterator[dict[str, Any]], count: int, direct: Way | None, *, rate: float = 0.0
) -> None:
    """Send `count` events to Kafka, or with `direct` to MongoDB."""
    name = topic.get_topic_name()
    what = name.removeprefix(config.topics.prefix)
    with progress_bar(what, count, quiet=self.quiet) as advance:
        if direct:
            await store.prepare()
            into = seeding.MongoDB(direct.document, direct.write, advance)
            total = await into.take(seeding.paced(events, count, rate, into.flush))
        else:
            paced = seeding.paced(events, count, rate)
            bootstrap = kafka_at(locate(config, mongodb=False))
            await kafka.ensure_topics(bootstrap, topics.SPECS)
            total = await seeding.through_kafka(bootstrap, name, topics.KEYS[name], paced, advance)
    where = "in MongoDB" if direct else f"in Kafka, topic {name}"
    self.say(f"{total} {what} {where}.")


DIRECT = option("--direct", is_flag=True, help="Write straight to MongoDB, without Kafka.")
JSON = option("--json", "as_json", is_flag=True, help="Print JSON.")


@app.command(DIRECT, base=Command)
async def seed_products(self: Command, direct: bool) -> None:
    """Offer the 13 example products, each with a price; again: the same products, new prices."""
    events = samples.products(random.Random(), _now())  # noqa: S311 - example prices
    way = Way(seeding.product_document, store.upsert_products) if direct else None
    async with _mongodb() if direct else nullcontext():
        await _seed(self, topics.products, iter(events), len(events), way)


@app.command(
    option("--count", type=click.IntRange(1), default=20, show_default=True, help="How many customers."),
    option("--seed", type=int, default=None, help="The same customers for the same number."),
    DIRECT,
    base=Command,
)
async def seed_customers(self: Command, count: int, seed: int | None, direct: bool) -> None:
    """Register example customers."""
    events = samples.customers(count, seed, _now())
    way = Way(seeding.customer_document, store.upsert_customers) if direct else None
    async with _mongodb() if direct else nullcontext():
        await _seed(self, topics.customers, events, count, way)


@app.command(
    option("--count", type=click.IntRange(1), default=10, show_default=True, help="How many purchases."),
    option("--rate", type=click.FloatRange(0), default=2.0, show_default=True, help="Purchases a second; 0: no limit."),
    DIRECT,
    base=Command,
)
async def seed_purchases(self: Command, count: int, rate: float, direct: bool) -> None:
    """Let random known customers buy random known products."""
    async with _mongodb():
        customer_ids, prices = await seeding.known(store, _BUYERS)
        for ids, what in ((customer_ids, "customers"), (prices, "products")):
            if not ids:
                raise Refused(f"no {what} in MongoDB yet: run `faust -A shopflow seed-{what}` with a worker running")
        events = samples.purchases(random.Random(), customer_ids, list(prices), _now, prices)  # noqa: S311
        way = Way(seeding.purchase_document, _insert_purchases) if direct else None
        await _seed(self, topics.purchases, events, count, way, rate=rate)


async def _insert_purchases(documents: Sequence[Document]) -> Mapping[int, str]:
    return (await store.insert_purchases(documents)).refused


@app.command(
    JSON,
    option("--sales", is_flag=True, help="With what was sold of each."),
    base=Command,
)
async def list_products(self: Command, as_json: bool, sales: bool) -> None:
    """List the products in MongoDB."""
    async with _mongodb():
        products = await store.products()
        sold = {sale["product_id"]: sale async for sale in store.sales("total")} if sales else None
        left = await stock.left_of(store, products)
    for line in listing.products(products, sold, left, as_json=as_json or self.json):
        self.say(line)


@app.command(
    JSON,
    option("--limit", type=click.IntRange(0), default=None, help="At most so many customers."),
    base=Command,
)
async def list_customers(self: Command, as_json: bool, limit: int | None) -> None:
    """List the customers in MongoDB, each with what they bought."""
    async with _mongodb():
        async for line in listing.customers(store.customers(limit), as_json=as_json or self.json):
            self.say(line)


class Time(click.ParamType):
    """A time in ISO 8601; without an offset it is local."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises `click.BadParameter`, which names the option."""
        try:
            # Python 3.10 doesn't know "Z".
            return datetime.fromisoformat(f"{value[:-1]}+00:00" if value[-1:] in {"Z", "z"} else value).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time in ISO 8601, as 2026-05-01 or 2026-05-01T12:00:00+02:00", param, ctx)


@app.command(
    argument("product_id"),
    JSON,
    option("--since", type=Time(), metavar="TIME", help="Only prices that were in force then or later."),
    base=Command,
)
async def price_history(self: Command, product_id: str, as_json: bool, since: datetime | None) -> None:
    """Every price a product had: since when, until when, and what was sold at it."""
    as_json, paper = as_json or self.json, plots.paper(sys.stdout, os.environ)
    async with _mongodb():
        found = await history.read(store, product_id, since)
        if found is None:
            raise Refused(f"product_id: there is no product {product_id!r} in MongoDB, nor was there")
        for line in listing.price_history(found, as_json=as_json):
            self.say(line)
        if paper and not as_json and not self.quiet:
            course = await history.course(store, product_id, found.prices, _now(), since)
            for line in listing.course(paper, found, course):
                self.say(line)


@app.command(
    argument("collection", type=click.Choice(list(exporting.COLLECTIONS)), metavar="COLLECTION"),
    option(
        "--format",
        "kind",
        type=click.Choice(exporting.FORMATS),
        default="jsonl",
        show_default=True,
        help="Of the file.",
    ),
    option("--output", metavar="FILE", help="-: stdout, which is also the default, but for parquet."),
    base=Command,
)
async def export(self: Command, collection: str, kind: str, output: str | None) -> None:
    """Write customers, purchases or products from MongoDB to a file or to stdout."""
    if output is None and kind == "parquet":
        raise Refused("--output: parquet needs a file")
    exporting.check(kind)
    say = partial(click.echo, err=True)
    async with _mongodb():
        total = (await store.sizes())[collection]
        with (
            exporting.opened(output or "-", kind) as sink,
            progress_bar(collection, total, quiet=self.quiet) as advance,
        ):
            pages = exporting.documents(store, collection, say)
            written = await exporting.export(pages, collection, exporting.writer(kind, collection, sink), advance)
    if written < total:
        say(f"{written} of {total} {collection}: the others were deleted meanwhile, or have an _id that is no text.")
    if output not in {None, "-"}:
        self.say(f"{written} {collection} in {output}.")


@app.command(
    JSON,
    option("--limit", type=click.IntRange(0), default=None, help="At most so many, the newest."),
    option("--customer", metavar="ID", default=None, help="Of this customer only."),
    base=Command,
)
async def list_vouchers(self: Command, as_json: bool, limit: int | None, customer: str | None) -> None:
    """List the vouchers in MongoDB, the newest first."""
    async with _mongodb(), aclosing(store.vouchers(customer, limit)) as found:
        async for line in listing.vouchers(found, as_json=as_json or self.json):
            self.say(line)


@app.command(
    argument("name"),
    option("--config-file", metavar="FILE", default=None, help="Take the rule from this file; it need not be in use."),
    JSON,
    base=Command,
)
async def try_promotion(self: Command, name: str, config_file: str | None, as_json: bool) -> None:
    """How many vouchers would a rule have given, over all that is in MongoDB? Gives none."""
    rules = load({"SHOPFLOW_CONFIG": config_file}).promotions if config_file else config.promotions
    rule = next((rule for rule in rules if rule.name == name), None)
    if rule is None:
        known = ", ".join(rule.name for rule in rules) or "none"
        raise Refused(f"no promotion is called {name!r} in {config_file or 'the configuration'}; there are: {known}")
    async with _mongodb():
        with progress_bar(name, await trying.size(store, rule), quiet=self.quiet) as advance:
            trial = await trying.try_rule(store, rule, advance)
    self.say(listing.tried(trial, as_json=as_json or self.json))


@app.command(
    argument("topic", type=click.Choice(list(topics.SHOWN)), metavar="TOPIC"),
    option("--limit", type=click.IntRange(1), default=10, show_default=True, help="At most so many."),
    JSON,
    base=Command,
)
async def tail(self: Command, topic: str, limit: int, as_json: bool) -> None:
    """The newest records of a topic, the newest last: partition, offset, time, key and value."""
    bootstrap, name = kafka_at(locate(config, mongodb=False)), topics.SHOWN[topic]
    count = (await kafka.partitions(bootstrap, [name])).get(name, 0)
    found = await kafka.tail(bootstrap, name, count, limit)
    found.sort(key=lambda record: (letters.time_of(record), record.partition, record.offset))
    for line in listing.records(found[-limit:], as_json=as_json or self.json):
        self.say(line)


@app.command(
    option("--deep", is_flag=True, help="Also compare every event of the topics with what is in MongoDB."),
    JSON,
    base=Command,
)
async def verify(self: Command, deep: bool, as_json: bool) -> int:
    """Are Kafka, MongoDB and the tables in agreement? Exit status 0: yes, 1: no, 2: could not tell."""
    try:
        async with _mongodb(kafka=True) as addresses:
            bootstrap = kafka_at(addresses)
            report = await run_verify(bootstrap, store, topics.LAYOUT, token=config.web.read_token)
            if deep:
                bar = partial(progress_bar, quiet=self.quiet)
                await verify_deep(bootstrap, store, topics.LAYOUT, report, bar)
    except (Refused, Unavailable) as error:
        click.echo(f"Could not tell: {error}", err=True)
        return _COULD_NOT_TELL
    for line in listing.report(report, as_json=as_json or self.json):
        self.say(line)
    return report.status


class replay(Command):  # noqa: N801
    """Rebuild MongoDB and the tables from the topics; the workers that run do it, or one that is started for it."""

    options = [  # noqa: RUF012 - Faust's way
        option("--keep-tables", is_flag=True, help="Leave the counts as they are; only MongoDB is filled again."),
    ]

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run it."""
        kafka.quiet()
        with _stopped_by_sigterm():
            exit_with(lambda: run_replay(self.say, quiet=self.quiet, **{**self.kwargs, **kwargs}))


@app.command(
    argument("action", type=click.Choice(["list", "show", "retry"]), default="list"),
    argument("ids", nargs=-1, metavar="[ID]..."),
    option("--all", is_flag=True, help="retry: all of them."),
    option("--reason", metavar="TEXT", help="list, retry: those whose reason has this text in it."),
    option("--limit", type=click.IntRange(0), help="list: at most so many, the newest."),
    JSON,
    base=Command,
)
async def dead_letters(self: Command, action: str, ids: Sequence[str], **options: Any) -> int:
    """What could not be accepted, and why; put it back: list, show ID, retry ID... (or --all, or --reason TEXT)."""
    _check_letters(action, ids, options)
    wanted = [letters.Id.parse(each) for each in dict.fromkeys(ids)]
    bootstrap = kafka_at(locate(config, mongodb=False))
    as_json = options["as_json"] or self.json
    if action == "retry":
        return await _retry(self, bootstrap, wanted, options["reason"])
    if action == "show":
        async for letter in letters.chosen(bootstrap, topics.LETTERS, wanted):
            mark = await letters.mark_of(bootstrap, topics.LETTERS, letter.id)
            for line in listing.dead_letter(letter, mark, as_json=as_json):
                self.say(line)
        return 0
    put_back = await letters.marks(bootstrap, topics.LETTERS)
    found = letters.read(bootstrap, topics.LETTERS, options["reason"], values=False)
    lines = listing.dead_letters(found, put_back, limit=options["limit"], as_json=as_json)
    async with aclosing(found), aclosing(lines):
        async for line in lines:
            self.say(line)
    return 0


_LETTERS_OPTIONS = {"list": {"reason", "limit", "as_json"}, "show": {"as_json"}, "retry": {"all", "reason"}}


def _check_letters(action: str, ids: Sequence[str], options: dict[str, Any]) -> None:
    """Raises:
    Refused: They don't go together.
    """
    given = {name for name, value in options.items() if value is not None and value is not False}
    if options["reason"] == "":
        raise Refused("--reason: is empty; it would be found in every reason")
    for name in sorted(given - _LETTERS_OPTIONS[action]):
        raise Refused(f"dead-letters {action}: takes no --{name.removeprefix('as_')}")
    if action == "list" and ids:
        raise Refused("dead-letters list: takes no ids; `dead-letters show ID` shows one")
    if action == "show" and len(ids) != 1:
        raise Refused("dead-letters show: takes one id, as `dead-letters list` shows it")
    if action == "retry" and bool(ids) + len(given) != 1:
        raise Refused("dead-letters retry: takes ids, or --all, or --reason TEXT; one of the three")


async def _retry(self: Command, bootstrap: Bootstrap, ids: Sequence[letters.Id], reason: str | None) -> int:
    await kafka.ensure_topics(bootstrap, topics.SPECS)
    if ids:
        await letters.check(bootstrap, topics.LETTERS, ids)  # all of them are there, or none is put back
        total = len(ids)
    else:
        total = await kafka.size(bootstrap, topics.DEAD_LETTERS, topics.LETTERS.partitions)
    with progress_bar("dead letters", total, quiet=self.quiet) as advance:
        if ids:
            found = letters.chosen(bootstrap, topics.LETTERS, ids, progress=advance)
        else:
            found = letters.read(bootstrap, topics.LETTERS, reason, progress=advance)
        outcome = await letters.retry(bootstrap, topics.LETTERS, found)
    for letter, why in outcome.refused:
        click.echo(f"Error: {letter}: {visible(why)}", err=True)
    self.say(listing.retried(outcome))
    return outcome.status


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class servers(Command):  # noqa: N801
    """Run the embedded Apache Kafka and MongoDB-protocol server in the foreground; Ctrl-C stops them."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Start them and wait."""
        with _stopped_by_sigterm():
            exit_with(lambda: running.serve(Servers(config, self.say), self.say))


class demo(Command):  # noqa: N801
    """Servers if none run, a worker, example events, live progress, the addresses of the views."""

    options = [  # noqa: RUF012 - Faust's way
        option("--customers", type=click.IntRange(1), default=100, show_default=True, help="How many customers."),
        option("--purchases", type=click.IntRange(1), default=2000, show_default=True, help="How many purchases."),
        option(
            "--rate",
            type=click.FloatRange(0),
            default=200.0,
            show_default=True,
            help="Purchases a second; 0: no limit.",
        ),
        option("--exit", "leave", is_flag=True, help="Stop after the last purchase, verify, and exit with its status."),
    ]

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run it."""
        kafka.quiet()
        with _stopped_by_sigterm():
            exit_with(lambda: run_demo(self.say, **{**self.kwargs, **kwargs}))
