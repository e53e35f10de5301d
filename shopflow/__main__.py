"""`python -m shopflow NAME`, and the console script `shopflow NAME`: both are `faust -A shopflow NAME`."""

from __future__ import annotations

import sys
from importlib.metadata import version

import click
from faust.cli.faust import cli

from . import explain


def main() -> None:
    """Run the command in `sys.argv`."""
    sys.excepthook = explain
    sys.argv[1:1] = ["-A", "shopflow"]
    cli.params = [param for param in cli.params if param.name != "version"]
    click.version_option(version("shopflow"), message=f"shopflow %(version)s (Faust {version('faust-streaming')})")(cli)
    cli()


if __name__ == "__main__":
    main()
