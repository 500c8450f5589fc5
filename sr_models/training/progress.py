"""Progress of a run on standard error: a bar in a terminal, a line from time to time in a log file."""

from __future__ import annotations

import os
import sys
import warnings
from time import monotonic
from typing import NamedTuple

from tqdm import tqdm

__all__ = ["Progress", "duration", "say", "speed"]

#: Seconds between the lines of a log file: a share of the time that the run has taken, between two limits.
_SHARE, _SHORTEST, _LONGEST = 0.02, 10.0, 600.0


def duration(seconds: float) -> str:
    """Format a time with its two largest units, like ``2 h 5 min``."""
    seconds = max(0, round(seconds))
    sizes = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    parts = []
    for unit, size in sizes.items():
        count, seconds = divmod(seconds, size)
        parts.append((count, unit))
    while len(parts) > 1 and not parts[0][0]:
        del parts[0]
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count) or "0 s"


def _has_terminal() -> bool:
    """Tell whether standard error is a terminal that is wide enough for a bar; some containers give it no size."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:
        return True


class _Line(NamedTuple):
    """Time of a line, and the number of steps that were done."""

    time: float
    done: int


class Progress:
    """Show rate, time left and figures of one phase of a run.

    Args:
        name: of the phase, for instance ``training``.
        first_step: number of steps that were done before, by an earlier process.
        last_step: number of steps that will be done when the phase ends.
    """

    def __init__(self, name: str, *, first_step: int, last_step: int) -> None:
        self.name, self.done, self.last_step = name, first_step, last_step
        self._figures = ""
        self._began = monotonic()
        self._shown = _Line(self._began, first_step)
        self._first = True
        # the time left is that of about the last minute: a validation or a busy machine changes it little
        self._bar = (
            tqdm(
                desc=name, total=last_step, initial=first_step, unit="step", file=sys.stderr, dynamic_ncols=True,
                mininterval=0.5, miniters=1, smoothing=0.02,
            )
            if _has_terminal()
            else None
        )  # fmt: skip
        self._showwarning = warnings.showwarning
        if self._bar is not None:
            warnings.showwarning = _show_warning

    def advance(self, done: int, figures: str) -> None:
        """Show that so many steps are done, with figures such as ``nll=-3.2``."""
        new, self.done, self._figures = done - self.done, done, figures
        first, self._first = self._first, False
        if self._bar is not None:
            if first:  # the first step initialises and compiles: it says nothing about the others
                self._bar.unpause()
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(new)
            return
        now = monotonic()
        if first:
            self._shown = _Line(now, done)
        if now - self._shown.time >= min(max(_SHARE * (now - self._began), _SHORTEST), _LONGEST):
            self._print_line()

    def show(self, figures: str) -> None:
        """Show other figures beside the bar, or in the next line."""
        self._figures = figures
        if self._bar is not None:
            self._bar.set_postfix_str(figures)

    def close(self) -> None:
        """End the bar's line, so that what is printed next begins on its own, or print a last line."""
        if self._bar is not None:
            self._bar.close()
            warnings.showwarning = self._showwarning
        elif not self._first:
            self._print_line()

    def _print_line(self) -> None:
        """Print rate and time left, as measured since the last line."""
        before, self._shown = self._shown, _Line(monotonic(), self.done)
        parts = [f"{self.name}: step {self.done:,} of {self.last_step:,}"]
        if (steps := self.done - before.done) > 0:
            rate = steps / max(self._shown.time - before.time, 1e-9)
            left = self.last_step - self.done
            parts += [speed(rate), f"{duration(left / rate)} left"] if left else [speed(rate)]
        print(", ".join([*parts, self._figures] if self._figures else parts), file=sys.stderr, flush=True)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    """Print a warning above the bar."""
    say(warnings.formatwarning(message, category, filename, lineno).rstrip())


def say(line: str) -> None:
    """Print a line on standard error, above the bar."""
    tqdm.write(line, file=sys.stderr)


def speed(rate: float) -> str:
    """Format a number of steps a second; below one it is the time a step takes."""
    return f"{rate:.1f} steps/s" if rate >= 1 or not rate else f"{1 / rate:.1f} s a step"
