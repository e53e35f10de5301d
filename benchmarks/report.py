"""Results as a table, a file and a plot: `python -m benchmarks.report FILE` shows the results in a file again."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rig import Measured

__all__ = ["Summary", "machine", "plot", "print_table", "read", "summaries", "write"]

#: Ratios are to the first of these contenders that took part.
_MEASURES = ("loop", "quix", "shopflow")
_PACKAGES = ("shopflow", "faust-streaming", "aiokafka", "pymongo", "msgspec", "rocksdict", "quixstreams")


@dataclass(frozen=True)
class Summary:
    """The rounds of one contender with one load: medians, and the slowest and fastest rate."""

    load: str
    contender: str
    rounds: int
    records: int
    rate: float
    slowest: float
    fastest: float
    ratio: float
    """Of the rate to the loop's, round by round; without the loop, to that of Quix Streams."""

    cpu_us: float
    server_cpu_us: float
    peak_mb: float
    start_seconds: float


def summaries(found: Iterable[Measured]) -> list[Summary]:
    """A summary for each load and contender, in the order in which they ran."""
    groups: dict[tuple[str, str], list[Measured]] = {}
    for each in found:
        groups.setdefault((each.load, each.contender), []).append(each)
    return [_summary(load, group, groups) for (load, _), group in groups.items()]


def _summary(load: str, group: Sequence[Measured], groups: dict[tuple[str, str], list[Measured]]) -> Summary:
    first = group[0]
    against = next(groups[load, name] for name in (*_MEASURES, first.contender) if (load, name) in groups)
    speeds = [each.rate for each in group]
    return Summary(
        load=load,
        contender=first.contender,
        rounds=len(group),
        records=first.records,
        rate=median(speeds),
        slowest=min(speeds),
        fastest=max(speeds),
        ratio=_ratio(speeds, [each.rate for each in against]),
        cpu_us=median(each.cpu_us for each in group),
        server_cpu_us=median(each.server_cpu_seconds / each.records * 1e6 for each in group),
        peak_mb=median(each.peak_mb for each in group),
        start_seconds=median(each.start_seconds for each in group),
    )


def _ratio(speeds: Sequence[float], against: Sequence[float]) -> float:
    """The median of the rounds' ratios: the machine may be faster in one round than in another."""
    if len(speeds) == len(against):
        return median(one / other for one, other in zip(speeds, against, strict=True))
    return median(speeds) / median(against)  # a run has failed, so rounds can't be paired


def print_table(found: Iterable[Measured]) -> None:
    """Print a table in Markdown for each load."""
    load = None
    for each in summaries(found):
        if each.load != load:
            load = each.load
            print(f"\n### {load}\n")
            print("| | purchases | a second (slowest to fastest round) | ratio | CPU us each | servers' | peak MB |")
            print("|---|---:|---:|---:|---:|---:|---:|")
        print(
            f"| {each.contender} | {each.records:,} | {each.rate:,.0f} ({each.slowest:,.0f} to {each.fastest:,.0f}) "
            f"| {each.ratio:.2f} | {each.cpu_us:.1f} | {each.server_cpu_us:.1f} | {each.peak_mb:.0f} |"
        )


def write(found: Sequence[Measured], path: Path) -> None:
    """Write all results to a JSON file."""
    document = {
        "machine": machine(),
        "summaries": [asdict(each) for each in summaries(found)],
        "runs": [asdict(each) for each in found],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def plot(found: Sequence[Measured], path: Path) -> None:
    """Draw rates and CPU as bars, a row for each load."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, and not needed to measure

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "shopflow"  # the same figures give the same file
    from matplotlib import pyplot as plt  # noqa: PLC0415

    loads: dict[str, list[Summary]] = {}
    for each in summaries(found):
        loads.setdefault(each.load, []).append(each)
    heights = [len(group) + 1.2 for group in loads.values()]
    figure, rows = plt.subplots(
        len(loads), 2, figsize=(10, 0.32 * sum(heights) + 0.5), height_ratios=heights, squeeze=False
    )
    for axes, (load, group) in zip(rows, loads.items(), strict=True):
        names = [each.contender for each in group]
        colours = ["tab:orange" if name == "shopflow" else "tab:gray" for name in names]
        errors = [[each.rate - each.slowest for each in group], [each.fastest - each.rate for each in group]]
        bars = axes[0].barh(names, [each.rate for each in group], color=colours, xerr=errors, height=0.7)
        axes[0].bar_label(bars, [f"{each.rate:,.0f}" for each in group], padding=4)
        bars = axes[1].barh(names, [each.cpu_us for each in group], color=colours, height=0.7)
        axes[1].bar_label(bars, [f"{each.cpu_us:,.1f}" for each in group], padding=4)
        for axis, title in zip(axes, (f"{load}: purchases a second", "CPU of the process, us each"), strict=True):
            axis.set_title(title, fontsize=10, loc="left")
            axis.invert_yaxis()
            axis.margins(x=0.18)
            axis.spines[["top", "right", "bottom"]].set_visible(False)
            axis.set_xticks([])
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def machine() -> dict[str, Any]:
    """The machine and the versions of the measurement."""
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES if _has(name)},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _has(package: str) -> bool:
    return any(each.metadata["Name"] == package for each in metadata.distributions())


def read(path: Path) -> list[Measured]:
    """Read the runs from a file that `write` has written."""
    return [Measured(**each) for each in json.loads(path.read_text(encoding="utf-8"))["runs"]]


def main() -> None:
    """Print the table of a file, and write its plot beside it."""
    path = Path(sys.argv[1])
    print_table(read(path))
    plot(read(path), path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
