"""Monitoring of a training run: progress on standard error, and curves and pictures for TensorBoard."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import NamedTuple

from torch import Tensor

from sr_models.training.curves import CurveLog
from sr_models.training.progress import Progress, duration, say, speed
from sr_models.training.validation import Scores

__all__ = ["Monitor"]

#: Steps between two values of a curve.
_EVERY = 10
#: Weight of the newest value in the loss that the progress shows.
_NEWEST = 0.1
#: Seconds after which a slow run is looked at before the tenth step.
_PATIENCE = 30.0
#: Seconds of a run that is too short for an estimate, and of one that is warned about.
_SHORT, _HOPELESS = 60.0, 7 * 86400.0


class _Mark(NamedTuple):
    """Number of steps that were done at a time."""

    done: int
    time: float


class Monitor:
    """Show and log a run. Use it as a context, so that the progress bar ends before an error is printed.

    Values that are tensors are read from their device at every tenth step only; a slow run is read every 30 seconds.
    Steps from ``first_step`` on that an earlier process logged disappear from the curves, because they are repeated.

    Args:
        output: folder of the run; the curves are in its folder ``logs``.
        first_step: number of the step with which this process begins, from 0.
        steps: training steps of the whole run.
        encoder_steps: steps of these that train the encoder alone, at the beginning.
        enabled: false in all processes but the first: nothing is shown or written.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        *,
        first_step: int,
        steps: int,
        encoder_steps: int = 0,
        enabled: bool = True,
    ) -> None:
        self.enabled, self.logs = enabled, Path(output) / "logs"
        self._steps, self._encoder_steps = steps, encoder_steps
        self._skipped = 0
        self._scores: dict[str, float] = {}
        self._smoothed: dict[str, float] = {}
        self._log: CurveLog | None = None
        self._progress: Progress | None = None
        self._mark: _Mark | None = None
        self._estimated = False
        if enabled:
            with self._logging():
                self._log = CurveLog(self.logs, first_step)
        self._begin_phase(first_step)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def step(
        self,
        step: int,
        losses: dict[str, float | Tensor],
        *,
        lr: float,
        gradient_norm: float | Tensor | None = None,
        skipped: int = 0,
    ) -> None:
        """Take note of a finished step.

        Args:
            step: its number, from 0.
            losses: ``l1`` or ``nll``; tensors of one element on any device.
            lr: learning rate.
            gradient_norm: norm of the gradient before it was clipped.
            skipped: steps that the run has skipped so far, because something in them was not finite.
        """
        if self._progress is None:
            return
        self._skipped = skipped
        # the first step of a phase initialises and compiles: measurements begin at its end
        if step % _EVERY == 0 or self._mark is None or monotonic() - self._mark.time >= _PATIENCE:
            values = {name: float(value) for name, value in losses.items()}
            self._smooth(values)
            rate = self._measure(step + 1)
            if step % _EVERY == 0:
                if gradient_norm is not None:
                    values["gradient_norm"] = float(gradient_norm)
                if rate is not None:
                    values["steps_per_second"] = rate
                if self._log is not None:
                    with self._logging():
                        self._log.add_values({**values, "lr": lr}, step)
        self._progress.advance(step + 1, self._figures())
        self._stepped = monotonic()
        if step + 1 == self._encoder_steps < self._steps:
            self._begin_phase(step + 1)

    def scores(self, step: int, scores: Scores) -> None:
        """Show and log a validation.

        Args:
            step: number of steps done before it. A run that goes on from there scores again.
            scores: result of the validation.
        """
        if not self.enabled:
            return
        self._scores = dict(scores.figures)
        if self._log is not None:
            with self._logging():
                self._log.add_values(scores.figures, step)
                self._log.add_picture(f"validation ({', '.join(scores.rows)})", scores.pictures, step)
        for note in scores.notes:
            self.say(note)
        if self._progress is not None:
            self._progress.show(self._figures())
        if self._mark is not None:  # the time since the last step is not the steps'
            self._mark = self._mark._replace(time=self._mark.time + monotonic() - self._stepped)

    def say(self, line: str) -> None:
        """Print a line on standard error, above the progress bar."""
        if self.enabled:
            say(line)

    def close(self) -> None:
        """End the progress bar and the log; a second call does nothing."""
        if self._progress is not None:
            self._progress.close()
            self._progress = None
        log, self._log = self._log, None
        if log is not None:
            with self._logging():
                log.close()

    def _begin_phase(self, done: int) -> None:
        """Show the progress of the phase that begins, or goes on, after so many steps."""
        if self._progress is not None:
            self._progress.close()
        self._progress = None
        self._smoothed = {}
        self._mark = None
        self._estimated = False
        if self.enabled and done < self._steps:
            pretraining = done < self._encoder_steps
            name, last = ("pretraining", self._encoder_steps) if pretraining else ("training", self._steps)
            self._progress = Progress(name, first_step=done, last_step=last)

    def _smooth(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):
                before = self._smoothed.get(name, value)
                self._smoothed[name] = before + _NEWEST * (value - before)

    def _measure(self, done: int) -> float | None:
        """Return the steps a second since the last measurement; the first time there is none."""
        before, self._mark = self._mark, _Mark(done, monotonic())
        if before is None:
            return None
        seconds = self._mark.time - before.time
        rate = (done - before.done) / max(seconds, 1e-9)
        if not self._estimated and (done - before.done >= _EVERY // 2 or seconds >= _PATIENCE):
            self._estimated = True
            self._estimate(rate, done)
        return rate

    def _estimate(self, rate: float, done: int) -> None:
        """Say how long the phase takes at a rate that was measured in its first steps."""
        assert self._progress is not None
        name, left = self._progress.name, self._progress.last_step - done
        if left / rate < _SHORT:
            return
        line = f"{name}: {speed(rate)}, about {duration(left / rate)} for the remaining {left:,} steps"
        if left / rate > _HOPELESS:
            line = f"warning: {line}; use a faster device, a smaller preset, smaller or fewer crops, or fewer steps"
        self.say(line)

    def _figures(self) -> str:
        values = {**self._smoothed, **self._scores}
        digits = {"l1": 4, "nll": 3, "val_nll": 3, "val_psnr": 2}
        shown = [f"{name}={values[name]:.{count}f}" for name, count in digits.items() if name in values]
        return ", ".join([*shown, f"{self._skipped:,} skipped"] if self._skipped else shown)

    @contextmanager
    def _logging(self) -> Iterator[None]:
        """Let a disk that refuses the log end the log, not the run."""
        try:
            yield
        except OSError as error:
            self._log = None
            self.say(f"warning: cannot write curves to {self.logs} ({error}); training goes on without them")
