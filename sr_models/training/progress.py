"""Progress of a run on standard error: a bar in a terminal, a line from time to time in a log file."""

from __future__ import annotations

import sys
from time import monotonic

from tqdm import tqdm

__all__ = ["Progress", "duration"]

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
        self._began = self._shown = monotonic()
        self._shown_done = first_step
        # the time left is that of about the last minute: a validation or a busy machine changes it little
        self._bar = (
            tqdm(
                desc=name, total=last_step, initial=first_step, unit="step", file=sys.stderr, dynamic_ncols=True,
                mininterval=0.5, miniters=1, smoothing=0.02,
            )
            if sys.stderr.isatty()
            else None
        )  # fmt: skip

    def advance(self, done: int, figures: str) -> None:
        """Show that so many steps are done, with figures such as ``nll=-3.2``."""
        if self._bar is not None:
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(done - self.done)
        self.done, self._figures = done, figures
        if self._bar is None:
            now = monotonic()
            pause = min(max(_SHARE * (now - self._began), _SHORTEST), _LONGEST)
            if now - self._shown >= pause or done == self.last_step:
                self._print_line(now)

    def _print_line(self, now: float) -> None:
        """Print rate and time left since the last line."""
        rate = (self.done - self._shown_done) / max(now - self._shown, 1e-9)
        left = (
            f", {duration((self.last_step - self.done) / rate)} left" if rate > 0 and self.done < self.last_step else ""
        )
        self._shown, self._shown_done = now, self.done
        text = f"{self.name}: step {self.done:,} of {self.last_step:,}, {speed(rate)}{left}"
        print(f"{text}, {self._figures}" if self._figures else text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar's line, so that what is printed next begins on its own."""
        if self._bar is not None:
            self._bar.close()


def speed(rate: float) -> str:
    """Format a number of steps a second; below one it is the time a step takes."""
    return f"{rate:.1f} steps/s" if rate >= 1 or not rate else f"{1 / rate:.1f} s a step"
