"""Texts as people read them."""

from __future__ import annotations

from typing import Any


def plain(shown: Any) -> Any:
    """A text, or each text in a list or dict, with plain spaces in its numbers and amounts.

    tests/shop/test_text.py holds that those spaces are such that no line is broken there.
    """
    if isinstance(shown, str):
        return shown.replace("\N{NO-BREAK SPACE}", " ")
    if isinstance(shown, dict):
        return {name: plain(value) for name, value in shown.items()}
    return [plain(value) for value in shown]


def solid(text: str) -> str:
    """The text with spaces where no line is broken."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")
