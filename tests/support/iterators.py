"""Asynchronous iterators from lists, and lists from them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")


async def each(items: Iterable[T]) -> AsyncGenerator[T, None]:
    """An iterator over the items."""
    for item in items:
        yield item


async def everything(items: AsyncIterator[T]) -> list[T]:
    """All items of an iterator."""
    return [item async for item in items]
