"""A worker and its servers: what is checked before the worker runs, and what is stopped after it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from faust.cli.worker import worker as faust_worker

from . import kafka, topics
from .app import app, bootstrap, config, connect
from .embedded import Servers
from .errors import Refused

__all__ = ["WorkerCommand", "check_port", "serve"]

#: How long a worker waits for Kafka at its start.
_KAFKA_SECONDS = 30.0
#: How long a worker whose server died may take to stop by itself.
_STOP_SECONDS = 20.0
_WATCH_SECONDS = 0.5


def check_port(bind: str, port: int) -> None:
    """Raises:
    Refused: Another program listens there.
    """
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bind, port))
        except OSError as error:
            raise Refused(f"web.port: {bind}:{port}: {error.strerror}; choose another with --web-port") from error


class WorkerCommand(faust_worker):
    """Faust's `worker`, with the embedded servers around it where they are configured."""

    abstract = True

    def serve(self, *args: Any, **kwargs: Any) -> int:
        """Check, start what is missing, run, stop what was started. Returns the exit status."""
        options = {**self.kwargs, **kwargs}
        port = options.get("web_port") or app.conf.web_port
        if options.get("with_web"):
            check_port(options.get("web_bind") or app.conf.web_bind, port)
        chosen = self.ctx.find_root().get_parameter_source("datadir") is not ParameterSource.DEFAULT
        # Two workers on one machine have two ports; RocksDB wants two folders.
        app.reconfigure(datadir=Path(self.datadir) if chosen and self.datadir else config.data_path / f"worker-{port}")
        with Servers(config, self.say) as servers:
            connect(servers.start())
            asyncio.run(_prepare(self.say))
            with _watched(servers) as died:
                try:
                    super().__call__(*args, **kwargs)
                except SystemExit as end:
                    return 1 if died.is_set() else int(end.code or 0)
        return 0


async def _prepare(say: Callable[[str], None]) -> None:
    await kafka.wait_for(bootstrap(), _KAFKA_SECONDS, say)
    await kafka.ensure_topics(bootstrap(), topics.SPECS)


@contextlib.contextmanager
def _watched(servers: Servers) -> Iterator[threading.Event]:
    """Ends this process, in order if possible, when a server that it started dies."""
    died, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(_WATCH_SECONDS):
            failure = servers.failure()
            if failure is None:
                continue
            died.set()
            click.echo(f"Error: {failure}", err=True)
            os.kill(os.getpid(), signal.SIGTERM)
            if not over.wait(_STOP_SECONDS):
                servers.stop()
                os._exit(1)
            return

    watcher = threading.Thread(target=watch, name="servers", daemon=True)
    watcher.start()
    try:
        yield died
    finally:
        over.set()
        watcher.join()


def serve(servers: Servers, say: Callable[[str], None]) -> int:
    """Run the servers until Ctrl-C or SIGTERM (as KeyboardInterrupt), or until one dies. Returns the exit status."""
    try:
        with servers:
            addresses = servers.start()
            if not servers.started:
                say("Nothing to start: the servers run already, or are not configured as `embedded`.")
                return 0
            say(f"Kafka:   {addresses.kafka}")
            say(f"MongoDB: {addresses.mongodb}")
            say("Ctrl-C stops them.")
            sys.stdout.flush()
            while (failure := servers.failure()) is None:
                time.sleep(_WATCH_SECONDS)
            click.echo(f"Error: {failure}", err=True)
            return 1
    except KeyboardInterrupt:
        say("Stopped.")
        return 0
