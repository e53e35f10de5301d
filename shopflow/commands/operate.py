"""The commands that check, repair and copy the shop: `create-topics`, `verify`, `replay`, `dead-letters`, `export`."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from faust.cli import argument, option

from shopflow import topics
from shopflow.app import app, config, connect, kafka_at, store
from shopflow.errors import Refused, Unavailable
from shopflow.kafka import group, offsets
from shopflow.kafka.security import Bootstrap
from shopflow.kafka.topics import count_partitions, ensure_topics
from shopflow.operations import export as exporting
from shopflow.operations import letters
from shopflow.operations.verify.report import Check
from shopflow.servers.servers import locate
from shopflow.servers.worker import check_port, child_worker, reached_at, url_of
from shopflow.shop.text import visible

from . import lines
from .base import JSON, Command, ServingCommand, check_mongodb, mongodb, run, running_servers
from .progress import progress_bar

if TYPE_CHECKING:
    from shopflow.operations.replay import Work


@Command.from_handler()
async def create_topics(self: Command) -> None:
    """Create the topics that are missing. A worker does so too, if its Kafka user may."""
    await ensure_topics(kafka_at(locate(config, mongodb=False)), topics.SPECS)
    self.say(f"All {len(topics.SPECS)} topics are there.")


@Command.from_handler(
    option("--deep", is_flag=True, help="Also compare every event of the topics with its document in MongoDB."),
    option(
        "--accept-loss",
        "loss",
        metavar="TOPIC:PARTITION",
        help="Accept that purchases which Kafka removed unread are lost, and agree in spite of it.",
    ),
    option("--yes", is_flag=True, help="--accept-loss: without a question."),
    JSON,
)
async def verify(self: Command, deep: bool, loss: str | None, yes: bool, as_json: bool) -> int:
    """Check that Kafka, MongoDB and the tables agree. Exit status 0: they do, 1: they don't, 2: could not check."""
    from shopflow.operations.verify.events import verify_deep
    from shopflow.operations.verify.totals import verify as run_verify

    if yes and loss is None:
        raise Refused("--yes: has no use without --accept-loss")
    if loss is not None:
        await _accept_loss(self, loss, sure=yes)
    try:
        async with mongodb(kafka=True, able=True) as addresses:
            bootstrap = kafka_at(addresses)
            report = await run_verify(bootstrap, store, topics.LAYOUT, token=config.web.read_token)
            if deep:
                bar = partial(progress_bar, quiet=self.quiet)
                await verify_deep(bootstrap, store, topics.LAYOUT, report, bar)
    except (Refused, Unavailable) as error:
        click.echo(f"Could not check: {error}", err=True)
        return 2
    for line in lines.report(report, as_json=as_json or self.json):
        self.say(line)
    return report.status


def _confirm(question: str, *, sure: bool, err: bool = False) -> None:
    """Raises:
    Refused: The user is not sure, or can't be asked.
    """
    if not sure and not (sys.stdin.isatty() and click.confirm(question, err=err)):
        raise Refused("nothing was changed: answer the question with y, or say --yes")


async def _accept_loss(self: Command, text: str, *, sure: bool) -> None:
    from shopflow.operations import losses

    bootstrap = kafka_at(locate(config, mongodb=False))
    loss = await losses.find(bootstrap, topics.LAYOUT, text)
    named = f"{loss.lost.offsets} offsets of {loss.topic}[{loss.partition}]"
    click.echo(
        f"Kafka removed {named} before a worker read them: their purchases are in no count and no document.", err=True
    )
    _confirm("Accept that they are lost?", sure=sure, err=True)
    await ensure_topics(bootstrap, topics.SPECS)
    await losses.accept(bootstrap, topics.LAYOUT, loss)
    click.echo("Accepted. `verify` goes on to say the number, and fails if more are lost.", err=True)


@Command.from_handler(JSON)
async def doctor(self: Command, as_json: bool) -> int:
    """Look at all that the guarantee needs. Exit status 0: all is good, 1: something is bad, 2: could not tell all."""
    from shopflow.operations import doctor as looks

    as_json = as_json or self.json
    checks = list(looks.machine(config.data_path, app.conf.ignored))
    bind, port = config.web.bind, config.web.port
    url = url_of(reached_at(bind), port)
    checks.append(await looks.port(url, partial(check_port, bind, port)))
    for server, look in (("Kafka", _look_at_kafka), ("MongoDB", _look_at_mongodb)):
        try:
            checks += [check async for check in look()]
        except Refused as refused:
            checks.append(Check(server, None if "embedded" in str(refused) else False, str(refused)))
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in lines.doctor(checks, columns=columns, as_json=as_json):
        self.say(line)
    return lines.doctor_status(checks)


async def _look_at_kafka() -> AsyncIterator[Check]:
    from shopflow.operations import doctor as looks

    async for check in looks.kafka(kafka_at(locate(config, mongodb=False)), topics.SPECS, topics.LAYOUT):
        yield check


async def _look_at_mongodb() -> AsyncIterator[Check]:
    from shopflow.operations import doctor as looks

    store.connect(locate(config, kafka=False).mongodb)
    try:
        async for check in looks.mongodb(store):
            yield check
    finally:
        await store.close()


@ServingCommand.from_handler(
    option("--keep-tables", is_flag=True, help="Restore only MongoDB, and leave the counts as they are."),
    option("--lose-counts", is_flag=True, help="Count again though Kafka no longer has all purchases."),
)
def replay(self: ServingCommand, keep_tables: bool, lose_counts: bool) -> int:
    """Rebuild MongoDB and the tables from the topics, by the running workers, or by one that is started for it."""
    from shopflow.operations.replay import finished

    if keep_tables and lose_counts:
        raise Refused("--lose-counts: has no use with --keep-tables, which counts nothing")
    begun = False
    try:
        with running_servers(self.say) as (_, addresses):
            connect(addresses)
            check_mongodb(addresses)
            bootstrap = kafka_at(addresses)
            running = bool(run(group.group_of(bootstrap, config.app_id)).members)
            work = run(_begin_replay(bootstrap, keep_tables=keep_tables, lose_counts=lose_counts))
            begun = True
            what = "MongoDB" if keep_tables else "MongoDB and the tables"
            self.say(f"{what}: workers read {work.total} events again.")
            with _replaying_worker(self.say, running=running) as check:
                bar = progress_bar("replay", work.total, quiet=self.quiet)
                run(finished(bootstrap, topics.LAYOUT, work, check, bar))
    except KeyboardInterrupt:
        if begun:
            self.say("Stopped. The running workers, or the next one, continue the replay.")
        else:
            self.say("Stopped before the committed offsets were reset. Run it again.")
        return 128 + signal.SIGINT
    self.say("Done. `faust -A shopflow verify` compares Kafka, MongoDB and the tables.")
    return 0


async def _begin_replay(bootstrap: Bootstrap, **how: bool) -> Work:
    from shopflow.operations.replay import begin

    most = config.batching.max_event_bytes
    try:
        await ensure_topics(bootstrap, topics.SPECS)
        return await begin(bootstrap, store, topics.LAYOUT, max_event_bytes=most, **how)
    finally:
        await store.close()


@contextmanager
def _replaying_worker(say: Callable[[str], None], *, running: bool) -> Iterator[Callable[[], None]]:
    """Start a worker unless one runs. Yields a function that raises if the started worker has ended."""
    if running:
        say("The running workers do the replay.")
        yield lambda: None
        return
    with child_worker(config, "replay") as worker:
        say(f"No worker runs. Starting one for the replay (its log: {worker.log}).")
        yield worker.check
        say("Stopping the worker ...")


@Command.from_handler(
    option("--from-app-id", required=True, metavar="APP_ID", help="The other shop's app_id."),
    option("--from-prefix", required=True, metavar="PREFIX", help="The other shop's topics.prefix."),
    option("--lose-counts", is_flag=True, help="Copy though Kafka no longer has all purchases."),
)
async def repartition(self: Command, from_app_id: str, from_prefix: str, lose_counts: bool) -> int:
    """Copy another shop's events into the topics of this shop, which has more partitions."""
    from shopflow.operations.repartition import repartition as run_repartition

    async with mongodb(kafka=True) as addresses:
        bootstrap, own = kafka_at(addresses), config.topics.prefix
        name = from_prefix + topics.LAYOUT.purchases.removeprefix(own)
        if not (partitions := await count_partitions(bootstrap, name)):
            raise Refused(f"--from-prefix: there is no topic {name}")
        old = topics.LAYOUT.of(from_app_id, from_prefix, own=own, partitions=partitions)
        await ensure_topics(bootstrap, topics.SPECS)
        await store.prepare()
        bar = partial(progress_bar, "offsets", quiet=self.quiet)
        outcome = await run_repartition(bootstrap, store, old, topics.LAYOUT, bar, lose_counts=lose_counts)
    self.say(f"{outcome.copied} records were copied.")
    if outcome.unreadable:
        self.say(f"{outcome.unreadable} can't be read, and were not copied; their dead letters were.")
    if outcome.waiting:
        self.say(f"{outcome.waiting} events wait for the workers of {from_app_id}. Run it again when they have them.")
        return 1
    self.say(f"All that {from_app_id} has is copied. Start the workers of {config.app_id}, then its producers.")
    return 0


@Command.from_handler(
    argument("action", type=click.Choice(["list", "show", "retry", "skip"]), default="list"),
    argument("ids", nargs=-1, metavar="[ID]..."),
    option("--all", is_flag=True, help="retry: all dead letters."),
    option("--reason", metavar="TEXT", help="list, retry: those whose reason contains this text."),
    option("--limit", type=click.IntRange(0), help="list: at most this many, the newest."),
    option("--yes", is_flag=True, help="skip: without a question."),
    JSON,
)
async def dead_letters(self: Command, action: str, ids: Sequence[str], **options: Any) -> int:
    """List, show or retry rejected records: list, show ID, retry ID... (or --all, or --reason TEXT).

    skip TOPIC:PARTITION:OFFSET lets the workers step over a batch that can't be read.
    """
    _check_letters(action, ids, options)
    if action == "skip":
        return await _skip(self, ids[0], sure=options["yes"])
    wanted = [letters.Id.parse(each) for each in dict.fromkeys(ids)]
    bootstrap = kafka_at(locate(config, mongodb=False))
    as_json = options["as_json"] or self.json
    if action == "retry":
        return await _retry(self, bootstrap, wanted, options["reason"])
    if action == "show":
        async for letter in letters.chosen(bootstrap, topics.LAYOUT, wanted):
            mark = await letters.mark_of(bootstrap, topics.LAYOUT, letter.id)
            for line in lines.dead_letter(letter, mark, as_json=as_json):
                self.say(line)
        return 0
    retried = await letters.marks(bootstrap, topics.LAYOUT)
    found = letters.read(bootstrap, topics.LAYOUT, options["reason"], values=False)
    shown = lines.dead_letters(found, retried, limit=options["limit"], as_json=as_json)
    async with aclosing(found), aclosing(shown):
        async for line in shown:
            self.say(line)
    return 0


_LETTERS_OPTIONS = {
    "list": {"reason", "limit", "as_json"},
    "show": {"as_json"},
    "retry": {"all", "reason"},
    "skip": {"yes"},
}


def _check_letters(action: str, ids: Sequence[str], options: dict[str, Any]) -> None:
    """Raises:
    Refused: These arguments don't go together.
    """
    given = {name for name, value in options.items() if value is not None and value is not False}
    if options["reason"] == "":
        raise Refused("--reason: is empty; every reason contains it")
    for name in sorted(given - _LETTERS_OPTIONS[action]):
        raise Refused(f"dead-letters {action}: takes no --{name.removeprefix('as_')}")
    if action == "list" and ids:
        raise Refused("dead-letters list: takes no ids; `dead-letters show ID` shows one")
    if action == "show" and len(ids) != 1:
        raise Refused("dead-letters show: takes one id, as `dead-letters list` shows it")
    if action == "skip" and len(ids) != 1:
        raise Refused("dead-letters skip: takes one TOPIC:PARTITION:OFFSET, as the log and `verify` name it")
    if action == "retry" and bool(ids) + len(given) != 1:
        raise Refused("dead-letters retry: takes ids, or --all, or --reason TEXT; one of the three")


async def _skip(self: Command, text: str, *, sure: bool) -> int:
    from shopflow.operations import skip

    place = skip.Place.parse(text, topics.LAYOUT)
    bootstrap = kafka_at(locate(config, mongodb=False))
    bad = await skip.look(bootstrap, topics.LAYOUT, place)
    named = f"{bad.offsets} of {place.topic}[{place.partition}]"
    self.say(f"A batch can't be read: {bad.reason}. The workers would step over {named}, and leave one dead letter.")
    _confirm("What is in it is lost. Step over it?", sure=sure)
    await ensure_topics(bootstrap, topics.SPECS)
    await skip.mark(bootstrap, topics.LAYOUT, bad)
    self.say(f"Done. The workers step over {named}; `dead-letters` will show it.")
    return 0


async def _retry(self: Command, bootstrap: Bootstrap, ids: Sequence[letters.Id], reason: str | None) -> int:
    from shopflow.operations.retry import retry

    await ensure_topics(bootstrap, topics.SPECS)
    if ids:
        await letters.check(bootstrap, topics.LAYOUT, ids)  # all of them exist, or none is retried
        total = len(ids)
    else:
        spans = await offsets.spans(bootstrap, config.app_id, [topics.DEAD_LETTERS])
        total = sum(span.end - span.start for span in spans[topics.DEAD_LETTERS].values())
    with progress_bar("dead letters", total, quiet=self.quiet) as advance:
        if ids:
            found = letters.chosen(bootstrap, topics.LAYOUT, ids, progress=advance)
        else:
            found = letters.read(bootstrap, topics.LAYOUT, reason, progress=advance)
        outcome = await retry(bootstrap, topics.LAYOUT, found)
    for letter, why in outcome.refused:
        click.echo(f"Error: {letter}: {visible(why)}", err=True)
    self.say(lines.retried(outcome))
    return outcome.status


@Command.from_handler(
    argument("collection", type=click.Choice(list(exporting.COLLECTIONS)), metavar="COLLECTION"),
    option(
        "--format",
        "kind",
        type=click.Choice(exporting.FORMATS),
        default="jsonl",
        show_default=True,
        help="The format of the file.",
    ),
    option("--output", metavar="FILE", help="-: stdout. This is the default, except for parquet."),
)
async def export(self: Command, collection: str, kind: str, output: str | None) -> None:
    """Write customers, purchases or products from MongoDB to a file or to stdout."""
    if output is None and kind == "parquet":
        raise Refused("--output: parquet needs a file")
    exporting.check(kind)
    say = partial(click.echo, err=True)
    async with mongodb():
        total = (await store.sizes())[collection]
        with (
            exporting.opened(output or "-", kind) as sink,
            progress_bar(collection, total, quiet=self.quiet) as advance,
        ):
            pages = exporting.documents(store, collection, say)
            written = await exporting.export(pages, collection, exporting.writer(kind, collection, sink), advance)
    if written < total:
        say(f"{written} of {total} {collection}: the others were deleted during the export, or their _id is no text.")
    if output not in {None, "-"}:
        self.say(f"{written} {collection} in {output}.")
