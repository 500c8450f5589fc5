"""Progress: a bar in a terminal, few lines in a log file, and times that people can read."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import termios
import warnings
from itertools import pairwise
from types import SimpleNamespace

import pytest

from sr_models.training import progress as module
from sr_models.training.progress import Progress, duration, say, speed
from tests.support.clock import Clock


class Terminal(io.StringIO):
    """Standard error of a terminal."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What was written at the beginning of a line, ended or overwritten."""
        return [line for line in re.split(r"[\r\n]", self.getvalue()) if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal()
    # pytest puts its own sys.stderr in place when the test begins
    monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stream))
    return stream


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (7505, "2 h 5 min"),
        (86399.9, "1 d"),
        (140 * 86400 + 7300, "140 d 2 h"),
        (-3, "0 s"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(12.34, "12.3 steps/s"), (1, "1.0 steps/s"), (0.016, "62.5 s a step")])
def test_speed(rate: float, text: str) -> None:
    assert speed(rate) == text


class TestTerminal:
    def test_a_resumed_bar_begins_where_the_run_is(self, terminal: Terminal) -> None:
        progress = Progress("training", first_step=60, last_step=100)
        progress.advance(61, "nll=-3.2")
        progress.close()
        first, *_, last = terminal.lines()
        assert first.startswith("training:  60%")
        assert "| 60/100 [" in first
        assert "| 61/100 [" in last
        assert last.endswith("nll=-3.2]")

    def test_rate_and_time_left_are_those_of_this_process(
        self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        progress = Progress("training", first_step=900, last_step=1000)
        now = progress._bar.start_t
        monkeypatch.setattr(progress._bar, "_time", lambda: now)
        now += 300  # the first step compiles
        progress.advance(901, "")
        for done in range(902, 921):
            now += 2
            progress.advance(done, "")
        progress.close()
        # 80 steps of 2 s are left
        assert re.search(r"920/1000 \[\d+:\d+<02:[34]\d,  [12]\.\d+s/step", terminal.lines()[-1]), terminal.lines()[-1]

    def test_what_is_said_and_warned_stands_on_its_own_line(self, terminal: Terminal) -> None:
        progress = Progress("training", first_step=0, last_step=10)
        progress.advance(1, "")
        say("a message")
        warnings.warn("a warning", stacklevel=1)
        progress.close()
        print("an error", file=terminal)
        assert "a message" in terminal.lines()
        assert any(line.endswith("UserWarning: a warning") for line in terminal.lines())
        assert terminal.lines()[-1] == "an error"
        assert not any("step/s" in line and ("warn" in line or "message" in line) for line in terminal.lines())

    def test_warnings_are_shown_as_before_afterwards(self, terminal: Terminal) -> None:
        before = warnings.showwarning
        progress = Progress("training", first_step=0, last_step=10)
        assert warnings.showwarning is not before
        progress.close()
        assert warnings.showwarning is before

    def test_other_figures_are_shown_at_once(self, terminal: Terminal) -> None:
        progress = Progress("training", first_step=0, last_step=10)
        progress.show("val_nll=-4.1")
        assert terminal.lines()[-1].endswith("val_nll=-4.1]")
        progress.close()


@pytest.mark.parametrize(("columns", "bar"), [(80, True), (0, False)])
def test_a_terminal_without_a_size_gets_lines(monkeypatch: pytest.MonkeyPatch, columns: int, bar: bool) -> None:
    controller, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(end, "w") as stream:
        monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stream))
        progress = Progress("training", first_step=0, last_step=10)
        progress.advance(1, "nll=1")
        progress.close()
        text = os.read(controller, 10_000).decode()
    os.close(controller)
    assert ("0%|" in text) == bar
    assert ("step 1 of 10" in text) == (not bar)


class TestLogFile:
    def run(self, clock: Clock, steps: int, seconds: float) -> None:
        progress = Progress("training", first_step=0, last_step=steps)
        for done in range(1, steps + 1):
            clock.now += seconds
            progress.advance(done, f"nll={done}")
        progress.close()

    def test_lines_say_rate_time_left_and_figures(self, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
        self.run(clock, 100, 0.5)
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "training: step 21 of 100, 2.0 steps/s, 40 s left, nll=21"
        assert lines[-1] == "training: step 100 of 100, 2.0 steps/s, nll=100"

    @pytest.mark.parametrize(
        ("steps", "seconds", "most"), [(60_000, 0.001, 8), (36_000, 0.1, 180), (200_000, 1, 600), (3, 600, 4)]
    )
    def test_there_are_few_of_them(
        self, clock: Clock, capsys: pytest.CaptureFixture[str], steps: int, seconds: float, most: int
    ) -> None:
        self.run(clock, steps, seconds)
        text = capsys.readouterr().err
        assert "\r" not in text
        assert 1 <= len(text.splitlines()) <= most

    def test_none_is_more_than_ten_minutes_after_the_one_before(
        self, clock: Clock, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.run(clock, 300_000, 1)
        found = [int(match) for match in re.findall(r"step ([\d,]+) of", capsys.readouterr().err.replace(",", ""))]
        assert max(after - before for before, after in pairwise(found)) <= 600

    def test_the_first_step_does_not_count_for_the_rate(self, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
        progress = Progress("training", first_step=50, last_step=100)
        clock.now += 300
        progress.advance(51, "")
        for done in range(52, 63):
            clock.now += 1
            progress.advance(done, "")
        assert capsys.readouterr().err == "training: step 61 of 100, 1.0 steps/s, 39 s left\n"

    def test_an_interrupted_run_says_how_far_it_came(self, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
        progress = Progress("training", first_step=5, last_step=100)
        progress.close()
        assert capsys.readouterr().err == ""  # no step was done
        progress.advance(6, "nll=1")
        progress.close()
        assert capsys.readouterr().err == "training: step 6 of 100, nll=1\n"

    def test_warnings_are_not_touched(self) -> None:
        before = warnings.showwarning
        Progress("training", first_step=0, last_step=1)
        assert warnings.showwarning is before
