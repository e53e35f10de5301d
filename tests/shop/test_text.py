"""Numbers and amounts as people read them."""

from __future__ import annotations

import pytest

from shopflow.shop.text import decimal, grouped, money


@pytest.mark.parametrize(
    ("grosze", "said"),
    [(0, "0,00 zł"), (5, "0,05 zł"), (1234, "12,34 zł"), (-195, "-1,95 zł"), (10**12 + 1, "10 000 000 000,01 zł")],
)
def test_money_is_written_as_in_poland(grosze: int, said: str) -> None:
    """Grosze are written as zł without going through a float. No line is broken in an amount, nor before "zł"."""
    assert money(grosze) == said.replace(" ", "\N{NO-BREAK SPACE}")


def test_numbers_have_the_form_of_amounts() -> None:
    """Thousands are grouped, and decimals follow a comma. What is no number is shown as it is."""
    assert (grouped(22_986_114), grouped(-1_333)) == (
        "22\N{NO-BREAK SPACE}986\N{NO-BREAK SPACE}114",
        "-1\N{NO-BREAK SPACE}333",
    )
    assert (decimal(0), decimal(1_234.56)) == ("0,0", "1\N{NO-BREAK SPACE}234,6")
    assert (grouped(None), money("x\n"), grouped(True)) == ("-", "x\\n", "True")
