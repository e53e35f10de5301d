"""`worker`: starts the servers, runs and watches the worker. And the command `servers`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
from faust.cli.worker import worker as faust_worker
from faust.utils.terminal import Spinner

from faust_batches.noise import Noise
from shopflow import topics
from shopflow.app import app, config, connect, connected_kafka, discover
from shopflow.errors import Refusal, Refused, Unavailable
from shopflow.kafka import connection
from shopflow.kafka.topics import ensure_topics, wait_for
from shopflow.operations.watch import check_changelog
from shopflow.servers.servers import Servers
from shopflow.servers.worker import check_port, reached_at, url_of
from shopflow.web import access

from .base import ServingCommand, check_mongodb, choose_datadir, exit_with, run, running_servers, with_options

#: How long a worker waits for Kafka at its start.
_KAFKA_SECONDS = 30.0
#: How long a worker may take to stop. The next worker gets its unfinished batches again.
_STOP_SECONDS = 20.0
_STOP_WITHOUT_KAFKA_SECONDS = 5.0
_WATCH_SECONDS = 0.5
_READY_SECONDS = 1.0
#: The thresholds of Python's garbage collector, by generation.
_GC_THRESHOLD = (100_000, 20, 100)
_PROBE_SECONDS = 2.0
_LOGIN_ADVICE = (
    "waiting does not help: correct the setting and restart the workers, or have an administrator of Kafka accept it "
    "again (a password: kafka-configs.sh --alter --entity-type users)"
)


class worker(faust_worker):  # noqa: N801 - the class's name is the command's
    """Start a worker: events go from Kafka to MongoDB and into the tables."""

    options = with_options(
        faust_worker.options,
        {
            "--web-port": {"help": f"The port to listen on.  [configured: {config.web.port}]"},
            "--web-bind": {"help": f"The address to listen on.  [configured: {config.web.bind}]"},
            "--web-host": {
                "help": "The name under which other workers reach this one.  "
                f"[configured: {config.web.host or '127.0.0.1 if bound to it, else the name of this machine'}]"
            },
        },
    )

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        exit_with(lambda: self._serve(*args, **kwargs))

    def on_worker_created(self, worker: Any) -> None:
        """Let the worker say when it is ready, and where."""
        super().on_worker_created(worker)
        finished = worker.on_startup_finished

        async def started() -> None:
            await finished()
            app.add_future(_tell_ready(worker.say))

        if app.conf.web_enabled:
            worker.on_startup_finished = started

    def _serve(self, *args: Any, **kwargs: Any) -> int:
        """Check, start missing servers, run, stop the started servers. Returns the exit status."""
        discover()
        from shopflow.bootstrap import parts  # it takes long; not for each command

        if not sys.stdout.isatty():  # a log would get the spinner's control characters
            Spinner.bell = Spinner.cursor_hide = Spinner.cursor_show = ""

        _check_log(self.logfile)
        options = {**self.kwargs, **kwargs}
        port = options.get("web_port") or app.conf.web_port
        if options.get("with_web"):
            bind = options.get("web_bind") or app.conf.web_bind
            check_port(bind, port)
            for warning in access.warnings(config.web, bind):
                self.say(f"Warning: {warning}. See docs/SECURITY.md.")
        choose_datadir(self, port)
        with running_servers(self.say) as (servers, addresses):
            connect(addresses)
            check_mongodb(addresses)
            run(_prepare(self.say))
            _collect_garbage_rarely()
            with _Watch(servers, lambda: parts.lags.answers, verbose=self.loglevel.lower() == "debug") as watch:
                try:
                    super().__call__(*args, **kwargs)
                except SystemExit as end:
                    return 1 if watch.failed else int(end.code or 0)
        return 0


async def _tell_ready(say: Callable[[str], None]) -> None:
    """Say where the worker listens, and when it does its share of the work."""
    from shopflow.bootstrap import parts

    url = f"{url_of(reached_at(app.conf.web_bind), app.conf.web_port)}/"
    if reasons := await parts.health.ready():
        say(f"Listens at {url}, but is not ready: {reasons[0]}")
    while await parts.health.ready():
        await asyncio.sleep(_READY_SECONDS)
    say(f"Ready: {url}")


def _check_log(file: str | None) -> None:
    """Raise `Refused` if the log can't be written: Faust would notice it late, with two screens of its stack."""
    try:
        if file:
            Path(file).open("ab").close()
    except OSError as error:
        raise Refused(f"--logfile: {file}: {error.strerror}") from error


def _collect_garbage_rarely() -> None:
    """Run the cyclic garbage collector rarely: it took half of the CPU, and a batch's 10,000 objects have no cycles."""
    gc.collect()
    gc.freeze()  # a full collection need not visit modules and classes
    gc.set_threshold(*_GC_THRESHOLD)


async def _prepare(say: Callable[[str], None]) -> None:
    await wait_for(connected_kafka(), _KAFKA_SECONDS, say)
    await ensure_topics(connected_kafka(), topics.SPECS)
    shop = topics.LAYOUT
    await check_changelog(connected_kafka(), shop.group, shop.purchases, shop.changelog)
    try:
        await check_changelog(connected_kafka(), shop.group, shop.purchases, shop.sales_changelog)
    except Refused as lost:  # the purchases are counted all the same
        app.troubles.begin("changelog-empty", shop.sales_changelog, str(lost), stops=False)


class _Watch:
    """A thread that watches a running worker from outside its event loop.

    It ends the worker if a server that was started for it dies, or if the worker does not stop in time. It logs when
    Kafka goes away and comes back.

    Arguments:
        answers: Returns False if Kafka did not answer the last request for the lag.
    """

    def __init__(self, servers: Servers, answers: Callable[[], bool | None], *, verbose: bool) -> None:
        self.failed = False
        self._answers = answers
        self._servers = servers
        self._over = threading.Event()
        self._stopping_since: float | None = None
        self._noise = Noise(verbose=verbose)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> _Watch:
        self._noise.install()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_WATCH_SECONDS):
            self._check_servers()
            self._check_name()
            self._check_stop()
            self._check_kafka()

    def _check_servers(self) -> None:
        if not self.failed and (failure := self._servers.failure()):
            self.failed = True
            _say_error(failure)
            if failure.startswith("Kafka"):  # nothing can be committed any more
                self._end()
            os.kill(os.getpid(), signal.SIGTERM)

    def _check_name(self) -> None:
        if not self.failed and (taken := app.taken):
            self.failed = True
            _say_error(f"{taken}. Give each worker its own: SHOPFLOW_INSTANCE_ID, or another host name or --datadir.")
            os.kill(os.getpid(), signal.SIGTERM)

    def _check_kafka(self) -> None:
        suspicion = self._noise.suspicion() or ("no answer" if self._answers() is False else None)
        if suspicion is None and app.kafka_outage.seconds is None and not app.kafka_outage.refuses_all:
            return
        try:
            asyncio.run(asyncio.wait_for(_ask_kafka(), _PROBE_SECONDS))
        except Refused as refused:
            app.kafka_outage.failed(Refusal("Kafka", "Kafka", f"{refused}; {_LOGIN_ADVICE}"), self)
        except (Unavailable, asyncio.TimeoutError):
            if suspicion is not None or app.kafka_outage.refuses_all:
                app.kafka_outage.failed(Unavailable("Kafka", suspicion or "no answer"), self)
        else:  # a lost connection does not mean that Kafka is away
            away = app.kafka_outage.seconds
            if away is None or app.lease.renewed_within(away):  # the consumer's own connection works again, too
                app.kafka_outage.succeeded(self)

    def _check_stop(self) -> None:
        if not app.should_stop:
            return
        self._stopping_since = self._stopping_since or time.monotonic()
        seconds = _STOP_SECONDS if app.kafka_outage.seconds is None else _STOP_WITHOUT_KAFKA_SECONDS
        if time.monotonic() - self._stopping_since > seconds:
            _say_error(f"not stopped within {seconds:g} s; ended. The next worker gets unfinished batches again.")
            self._end()

    def _end(self) -> None:
        self._servers.stop()
        os._exit(1)


def _say_error(message: str) -> None:
    print(f"Error: {message}", file=sys.__stderr__, flush=True)  # sys.stderr goes to the log while the worker runs


async def _ask_kafka() -> None:
    async with connection.admin(connected_kafka()):
        pass


@ServingCommand.from_handler()
def servers(self: ServingCommand) -> int:
    """Run the embedded Apache Kafka and MongoDB-protocol server in the foreground; Ctrl-C stops them."""
    with contextlib.suppress(KeyboardInterrupt), running_servers(self.say) as (running, addresses):
        if not running.started:
            self.say("Nothing to start: the servers are running already, or are not configured as `embedded`.")
            return 0
        self.say(f"Kafka:   {addresses.kafka}")
        # A configured URI may contain a password.
        self.say(f"MongoDB: {addresses.mongodb if config.embeds_mongodb else 'as mongodb.uri says'}")
        self.say("Ctrl-C stops them.")
        sys.stdout.flush()
        while (failure := running.failure()) is None:
            time.sleep(_WATCH_SECONDS)
        click.echo(f"Error: {failure}", err=True)
        return 1
    self.say("Stopped.")
    return 0
