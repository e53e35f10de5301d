"""Counts alone: shopflow's worker with a store that discards every document. For measurements only."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from shopflow.store import MongoStore
from shopflow.store.types import Document, Inserted, PartitionSales

# Imported by name: the attribute `shopflow.app` is the application, not the module.
composition: Any = importlib.import_module("shopflow.app")


class Nowhere(MongoStore):
    """A store that accepts every purchase and keeps none."""

    def connect(self, uri: str) -> None: ...

    async def prepare(self) -> None: ...

    async def ping(self) -> None: ...

    async def insert_purchases(self, documents: Sequence[Document]) -> Inserted:
        return Inserted()

    async def put_sales(self, partition: int, sales: Sequence[PartitionSales]) -> None: ...

    async def sales_position(self, partition: int) -> tuple[int, int]:
        return -1, -1

    async def reached_sales(self, partition: int, position: tuple[int, int]) -> None: ...


composition.store = Nowhere("nowhere")  # before `bootstrap` makes the parts

if __name__ == "__main__":
    composition.app.main()
