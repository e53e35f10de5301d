"""Progress: a bar on a terminal, lines in a log, nothing with `--quiet`."""

from __future__ import annotations

import io

import pytest

from shopflow.commands import progress
from shopflow.commands.progress import Activity, always_in_sight, fitted, progress_bar
from tests.support.shop import until


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_elsewhere_than_on_a_terminal_there_are_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log gets a plain line every few seconds, not a bar."""
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with progress_bar("purchases", 10, stream=stream) as advance:
        for _ in range(10):
            advance(1)
    assert stream.getvalue().splitlines() == [
        "purchases: 3 of 10",
        "purchases: 6 of 10",
        "purchases: 9 of 10",
    ]


def test_on_a_terminal_there_is_a_bar() -> None:
    """The bar has the name of the work, the number done and the total."""
    stream = Terminal()
    with progress_bar("purchases", 10, stream=stream) as advance:
        advance(10)
    assert "purchases" in stream.getvalue()
    assert "10/10" in stream.getvalue()


def test_quiet_is_quiet() -> None:
    """Faust's `--quiet` hides the bar."""
    stream = Terminal()
    with progress_bar("purchases", 10, quiet=True, stream=stream) as advance:
        advance(10)
    assert stream.getvalue() == ""


def test_short_work_says_nothing_elsewhere_than_on_a_terminal() -> None:
    """Work that ends within seconds writes no line to a log."""
    stream = io.StringIO()
    with progress_bar("purchases", 10, stream=stream) as advance:
        advance(4)
        advance(6)
    assert stream.getvalue() == ""


def test_quiet_is_quiet_in_a_log_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--quiet`, long work writes no line to a log either."""
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with progress_bar("purchases", 10, quiet=True, stream=stream) as advance:
        advance(4)
    assert stream.getvalue() == ""


def test_progress_goes_to_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command's own output on stdout can be piped."""
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    with progress_bar("purchases", 10) as advance:
        advance(4)
    assert capsys.readouterr() == ("", "purchases: 4 of 10\n")


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_an_error_in_the_work_is_not_hidden(stream: io.StringIO) -> None:
    """An error ends the progress and is raised."""

    def work() -> None:
        with progress_bar("purchases", 10, stream=stream) as advance:
            advance(1)
            raise ValueError("fault")

    with pytest.raises(ValueError, match="fault"):
        work()


def test_the_progress_does_not_print_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's own last line has the total, so the progress doesn't repeat it."""
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with progress_bar("purchases", 10, stream=stream) as advance:
        advance(10)
    assert stream.getvalue() == ""


def test_a_state_without_an_end_is_printed_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log gets the fixed lines once, and a state twice a minute, whatever changes."""
    clock = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with always_in_sight(["open"], stream=stream) as show:
        for second in range(70):
            clock[0] = 100.0 + second
            show([f"{second} sold"])
    assert stream.getvalue().splitlines() == ["open", "0 sold", "30 sold", "60 sold"]


def test_on_a_terminal_a_state_is_rewritten() -> None:
    """The fixed lines stay in sight above the newest state, and all are gone at the end."""
    stream = Terminal()
    with always_in_sight(["the address"], stream=stream) as show:
        show(["1 sold"])
        show(["2 sold"])
        assert stream.getvalue().count("the address") == 2
        assert "\x1b[1A" in stream.getvalue(), "the cursor goes up"
    assert stream.getvalue().endswith("\x1b[1A\x1b[2K" * 2), "both lines are erased"


def test_an_activity_is_shown_on_a_terminal_until_it_ends() -> None:
    """Lines are printed above it, whole. A download has a bar of bytes. At the end nothing is left."""
    stream = Terminal()
    with Activity("Starting", pytest.fail, stream) as shown:
        shown.say("[up] " + "x" * 100)
        assert shown.loading is not None
        with shown.loading("Kafka", 44_000_000) as advance:
            advance(22_000_000)
            until(lambda: "22.0/44.0 MB" in stream.getvalue(), "the bar")
    assert "Starting" in stream.getvalue()
    assert "[up] " + "x" * 100 in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")


def test_elsewhere_an_activity_is_what_is_said() -> None:
    """A log gets the lines only."""
    said: list[str] = []
    stream = io.StringIO()
    with Activity("Starting", said.append, stream) as shown:
        shown.say("up")
    assert (said, stream.getvalue(), shown.loading) == (["up"], "", None)


def test_a_line_is_broken_between_words_only() -> None:
    """A number and its unit stay together. A line that fits, or that goes into a file, stays as it is."""
    amount = "42\N{NO-BREAK SPACE}332,78\N{NO-BREAK SPACE}zł"
    assert fitted(f"22:08:23  2034 purchases of 100 customers: 6152 items, {amount}", 60).split("\n") == [
        "22:08:23  2034 purchases of 100 customers: 6152 items,", f"    {amount}",
    ]  # fmt: skip
    assert fitted("    a  b", 8) == "    a  b"
    assert fitted("a " * 500) == "a " * 500
