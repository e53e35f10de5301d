"""Kafka's jars, fetched once from a Maven repository."""

from __future__ import annotations

import json
import logging
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from shopflow.errors import Refused

from .locks import locked

#: Kafka prints no errors without a logger. This one writes to stderr, which is the log.
KAFKA_JARS = ("org.apache.kafka:kafka_2.13:{version}", "org.slf4j:slf4j-simple:1.7.36")
KAFKA_MEGABYTES = 44
#: Jars whose sizes are asked for at once; pause between two lines of progress.
_ASKED_AT_ONCE, _LINE_SECONDS = 8, 5.0

#: Shows how far a download is: takes a text and the bytes in all, and yields a function that takes the further bytes.
Loading = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def jars_of(version: str, say: Callable[[str], None], loading: Loading | None = None) -> list[Path]:
    """The jars of this version of Kafka. They are fetched once; the network isn't used when all are in the cache.

    Arguments:
        loading: None: lines of progress.

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
    fetch = _Fetch(version, settings, say, loading or partial(_lines, say))
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

    def __init__(self, version: str, settings: Any, say: Callable[[str], None], loading: Loading) -> None:
        from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415
        from jgo.maven import MavenContext, PythonResolver  # noqa: PLC0415

        self.version = version
        self.current = ""
        self._say = say
        self._loading = loading
        self._advance: Callable[[int], None] = lambda _: None
        self._began = False
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
        jars = [each.artifact for each in needed]
        missing = [jar for jar in jars if not Path(str(jar.cached_path)).exists()]
        with self._loading(f"Apache Kafka {self.version}", self._size(missing)) as self._advance:
            return [self._whole(jar) for jar in jars]

    def _size(self, jars: list[Any]) -> int:
        """The bytes of these jars; if the repository doesn't say it, those of a usual Kafka."""
        import requests  # noqa: PLC0415 - of jgo

        def ask(jar: Any) -> int:
            repository = next(iter(self._context.remote_repos.values()))
            url = f"{repository}/{jar.component.path_prefix.as_posix()}/{jar.filename}"
            answer = requests.head(url, allow_redirects=True, timeout=self._context.timeout)
            return int(answer.headers.get("content-length", 0)) if answer.ok else 0

        with ThreadPoolExecutor(_ASKED_AT_ONCE) as asking:
            sizes = list(asking.map(ask, jars))
        return sum(sizes) if all(sizes) else KAFKA_MEGABYTES * 1_000_000

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
        if not self._began:
            self._say(f"Fetching Apache Kafka {self.version} (once, about {KAFKA_MEGABYTES} MB) ...")
            self._began = True
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
        return target

    @contextmanager
    def _progress(self, _name: str, _size: int) -> Iterator[Callable[[int], None]]:
        yield self._advance


@contextmanager
def _lines(say: Callable[[str], None], what: str, total: int) -> Iterator[Callable[[int], None]]:
    done, due = 0, time.monotonic() + _LINE_SECONDS

    def advance(count: int) -> None:
        nonlocal done, due
        done += count
        if time.monotonic() >= due:
            due = time.monotonic() + _LINE_SECONDS
            say(f"  {what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    yield advance
