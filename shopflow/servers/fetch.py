"""Kafka's jars, fetched once from a Maven repository."""

from __future__ import annotations

import json
import logging
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shopflow.errors import Refused

from .locks import locked

#: Kafka prints no errors without a logger. This one writes to stderr, which is the log.
KAFKA_JARS = ("org.apache.kafka:kafka_2.13:{version}", "org.slf4j:slf4j-simple:1.7.36")
KAFKA_MEGABYTES = 44


def jars_of(version: str, say: Callable[[str], None]) -> list[Path]:
    """The jars of this version of Kafka. They are fetched once; the network isn't used when all are in the cache.

    Raises:
        Refused: The jars can't be fetched; the message names the repository.
    """
    from jgo.config import GlobalSettings  # noqa: PLC0415 - an extra

    settings = GlobalSettings.load()
    folder = Path(settings.cache_dir) / "shopflow"
    index = folder / f"kafka-{version}.json"
    jars = _read_jars(index)
    if jars:
        return jars
    fetch = _Fetch(version, settings, say)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetch.aside.mkdir(parents=True, exist_ok=True)
        with locked(fetch.aside / "lock", waiting=lambda: say("Waiting for another process that fetches Kafka ...")):
            jars = _read_jars(index) or fetch.run()
            new = index.with_suffix(".new")
            new.write_text(json.dumps({str(jar): jar.stat().st_size for jar in jars}), encoding="utf-8")
            new.replace(index)
    except (OSError, RuntimeError, SyntaxError) as error:  # SyntaxError: in XML
        raise Refused(f"broker: Apache Kafka {version} can't be fetched: {fetch.explain(error)}") from error
    return jars


def _read_jars(index: Path) -> list[Path]:
    try:
        sizes: Mapping[str, int] = json.loads(index.read_text(encoding="utf-8"))
        complete = all(Path(jar).stat().st_size == size for jar, size in sizes.items())
    except (OSError, ValueError):
        return []
    return [Path(jar) for jar in sizes] if complete else []


class _Fetch:
    """Fetches Kafka's jars into the local Maven repository. An interrupted fetch continues with the missing files."""

    def __init__(self, version: str, settings: Any, say: Callable[[str], None]) -> None:
        from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415
        from jgo.maven import MavenContext, PythonResolver  # noqa: PLC0415

        self.version = version
        self.current = ""
        self._say = say
        self._files = 0
        self._bytes = 0
        self._reported = 0.0  # when `say` was last called
        self._repository = Path(settings.repo_cache)
        self.aside = self._repository / ".shopflow"
        self._resolver = PythonResolver(progress_callback=self._progress)
        self._download = self._resolver.download
        self._resolver.download = self._download_whole  # type: ignore[method-assign]
        remotes = {"central": MAVEN_CENTRAL_URL, **settings.repositories}  # jgo.conf can name a mirror
        self._context = MavenContext(self._resolver, repo_cache=self._repository, remote_repos=remotes)

    def run(self) -> list[Path]:
        from jgo.parse import Coordinate  # noqa: PLC0415

        logging.getLogger("jgo").setLevel(logging.ERROR)
        wanted = [Coordinate.parse(each.format(version=self.version)) for each in KAFKA_JARS]
        inputs, others = self._resolver.resolve([self._context.create_dependency(each) for each in wanted])
        needed = [*inputs, *(each for each in others if each.scope in ("compile", "runtime"))]
        return [self._whole(each.artifact) for each in needed]

    def explain(self, error: Exception) -> str:
        """The error's reason in one line."""
        hosts = ", ".join(self._context.remote_repos.values())
        if type(error).__module__.startswith("requests"):
            return f"no connection to {hosts} for {self.current}. It is fetched once; or set broker to a Kafka you have"
        if "not found in remote" in str(error):
            return f"{self.current} isn't there: {hosts}"
        return " ".join(str(error).split())[:300]

    def _whole(self, artifact: Any) -> Path:
        path = Path(artifact.resolve())
        if not zipfile.is_zipfile(path):  # an incomplete file of another tool
            path.unlink()
            path = Path(artifact.resolve())
        return path.absolute()

    def _download_whole(self, artifact: Any) -> Path:
        """Fetch into another folder, then rename: so every file in the repository is complete."""
        self.current = f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}"
        if not self._reported:
            self._say(f"Fetching Apache Kafka {self.version} (once, about {KAFKA_MEGABYTES} MB) ...")
            self._reported = time.monotonic()
        target = Path(artifact.cached_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        parts = self.aside / "parts"
        shutil.rmtree(parts, ignore_errors=True)  # left by a fetch that was killed
        self._context.repo_cache = parts
        try:
            fetched = self._download(artifact)
            Path(fetched).replace(target)  # type: ignore[arg-type]
        finally:
            self._context.repo_cache = self._repository
            shutil.rmtree(parts, ignore_errors=True)
        self._files += 1
        return target

    @contextmanager
    def _progress(self, _name: str, _size: int) -> Iterator[Callable[[int], None]]:
        yield self._count

    def _count(self, count: int) -> None:
        self._bytes += count
        if time.monotonic() - self._reported >= 1:
            self._reported = time.monotonic()
            self._say(f"  {self._files} files, {self._bytes / 1e6:.0f} of about {KAFKA_MEGABYTES} MB")
