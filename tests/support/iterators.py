"""From lists to asynchronous iterators and back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")


async def each(items: Iterable[T]) -> AsyncGenerator[T, None]:
    """One after the other."""
    for item in items:
        yield item


async def everything(items: AsyncIterator[T]) -> list[T]:
    """All that an iterator yields."""
    return [item async for item in items]
