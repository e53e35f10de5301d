"""`python -m shopflow NAME`, and the console script `shopflow NAME`."""

from __future__ import annotations

from . import app


def main() -> None:
    app.main()


if __name__ == "__main__":
    main()
