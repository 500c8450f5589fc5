"""Steps of single pixels of an 8-bit image, until its reduction has the given values."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array

from sr_models.io.resize import axis_weights
from sr_models.randomness import random_stream

__all__ = ["repair"]

#: A reduced value this near to the wanted one, in grey levels, certainly rounds to it.
_LIMIT = 0.499
#: Reduced pixels, in each direction, that depend on a pixel beside another one.
_REACH = 4
#: Largest step of a pixel, in grey levels.
_LARGEST_STEP = 80
#: Wrong values that are worked on in one go: the arrays then fit into a cache.
_TOGETHER = 32
#: Rounds without fewer wrong values before giving up.
_PATIENCE = 20
#: Wrong values that are worked on in all, as a part of all values: more would take longer than sampling.
_EFFORT = 1 / 32
#: Grey levels of error that a value's being wrong counts for, beside what is missing until it rounds as wanted.
_PER_VALUE = 0.1
#: Steps are chosen with random handicaps of about this error, so that no two undo each other forever.
_HANDICAP = 0.03


def repair(pixels: np.ndarray, lr: np.ndarray, scale: int) -> np.ndarray:
    """Change pixels so that fewer values of the reduced image differ from those wanted; none, if it succeeds.

    The reduction is the one of :func:`sr_models.io.resize.imresize` for uint8, which rounds after each axis. For every
    wrong value, all steps of one pixel near it are tried that make the rounded value of one column change as needed.
    The step is made that leaves the least error around.

    Args:
        pixels: (C, scale h, scale w), uint8.
        lr: (C, h, w), uint8.
        scale: factor of both sides.

    Returns:
        Pixels like those given: the best that were seen. The same arguments give the same pixels.
    """
    state = _State(pixels, lr, scale)
    random = random_stream(0, "pixels")
    best, fewest, since = pixels, None, 0
    effort = max(500, int(_EFFORT * lr.size))
    while since < _PATIENCE and effort > 0:
        wrong = np.argwhere(_excess(state.reduced, state.wanted) > 0)
        if fewest is None or len(wrong) < fewest:
            best, fewest, since = state.pixels.astype(np.uint8), len(wrong), 0
        if not len(wrong):
            break
        since += 1
        order = torch.randperm(len(wrong), generator=random, device="cpu").numpy()
        chosen = _apart(wrong[order], state.wanted.shape)
        effort -= len(chosen)
        for start in range(0, len(chosen), _TOGETHER):
            state.step(chosen[start : start + _TOGETHER], random)
    return best


class _Axis(NamedTuple):
    """The matrix of one axis, whose row j begins at column ``scale (j - 2)``: (length, 5 scale)."""

    weights: np.ndarray
    scale: int

    @property
    def length(self) -> int:
        return len(self.weights)

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return weights at rows and columns that broadcast with each other; 0 outside the matrix."""
        offset = columns - self.scale * (rows - 2)
        inside = (offset >= 0) & (offset < 5 * self.scale) & (rows >= 0) & (rows < self.length) & (columns >= 0)
        return np.where(inside, self.weights[rows.clip(0, self.length - 1), offset.clip(0, 5 * self.scale - 1)], 0.0)


class _State:
    """An image and its reduction, in grey levels, float64."""

    def __init__(self, pixels: np.ndarray, lr: np.ndarray, scale: int) -> None:
        matrices = [axis_weights(scale * length, length, 1 / scale) for length in lr.shape[1:]]
        self.vertical, self.horizontal = (_axis(matrix, scale) for matrix in matrices)
        self.scale = scale
        self.pixels = pixels.astype(np.float64)
        self.wanted = lr.astype(np.float64)
        #: reduced vertically, before and after rounding, and then horizontally, before rounding
        self.sums = np.stack([matrices[0] @ plane for plane in self.pixels])
        self.rounded = _to_levels(self.sums)
        self.reduced = np.stack([(matrices[1] @ plane.T).T for plane in self.rounded])

    def step(self, places: np.ndarray, random: torch.Generator) -> None:
        """Make the best step for each of some values (N, 3) that are far enough apart, if it improves something."""
        plane, row, column = (values[:, None, None] for values in places.T)
        near, inner = np.arange(-_REACH, _REACH + 1), np.arange(-self.scale // 2, self.scale + self.scale // 2)
        low_rows, low_columns = row + near[:, None], column + near  # (N, 9, 1), (N, 1, 9)
        high_rows, high_columns = self.scale * row + inner[:, None], self.scale * column + inner  # (N, M, 1), (N, 1, M)
        (h, w), (high, wide) = self.wanted.shape[1:], self.pixels.shape[1:]
        within = _inside(low_rows, h) & _inside(low_columns, w)
        at_rows, at_columns = low_rows.clip(0, h - 1), low_columns.clip(0, w - 1)
        at_high_rows, at_high_columns = high_rows.clip(0, high - 1), high_columns.clip(0, wide - 1)

        down = self.vertical.at(low_rows, high_rows.swapaxes(1, 2))  # (N, 9, M)
        across = self.horizontal.at(low_columns.swapaxes(1, 2), high_columns)  # (N, 9, M)
        sums, rounded = (part[plane, at_rows, at_high_columns] for part in (self.sums, self.rounded))  # (N, 9, M)
        pixels = self.pixels[plane, at_high_rows, at_high_columns]  # (N, M, M)
        reduced, wanted = (part[plane, at_rows, at_columns] for part in (self.reduced, self.wanted))  # (N, 9, 9)

        # the least step of each pixel that changes the rounded sum of its column in the value's row
        sign = np.where(self.reduced[plane, row, column] < self.wanted[plane, row, column], 1.0, -1.0)
        gap = rounded[:, _REACH, None] - sums[:, _REACH, None] + 0.5001 * sign  # (N, 1, M)
        weight = down[:, _REACH, :, None]
        steps = sign * np.ceil(np.abs(gap) / np.where(weight > 0, weight, np.nan))  # (N, M, M)
        allowed = _inside(high_rows, high) & _inside(high_columns, wide) & (np.abs(steps) <= _LARGEST_STEP)
        allowed &= (pixels + steps >= 0) & (pixels + steps <= 255)
        steps = np.where(allowed, steps, 0)

        changed = _to_levels(sums[:, :, None] + down[..., None] * steps[:, None]) - rounded[:, :, None]  # (N, 9, M, M)
        after = reduced[..., None, None] + changed[:, :, None] * across[:, None, :, None]  # (N, 9, 9, M, M)
        cost = (_excess(after, wanted[..., None, None]) * within[..., None, None]).sum((1, 2))
        before = (_excess(reduced, wanted) * within).sum((1, 2))
        handicap = torch.empty(cost.shape, dtype=torch.float64).exponential_(1 / _HANDICAP, generator=random).numpy()
        cost = np.where(allowed, cost + handicap, np.inf).reshape(len(cost), -1)
        best = cost.argmin(1)
        for number in np.flatnonzero(cost.min(1) < before + 3 * _HANDICAP):
            m, k = np.unravel_index(best[number], steps.shape[1:])
            self._apply(places[number], high_rows[number, m, 0], high_columns[number, 0, k], steps[number, m, k])

    def _apply(self, place: np.ndarray, row: int, column: int, step: float) -> None:
        plane, i, j = place
        rows = np.arange(max(i - _REACH, 0), min(i + _REACH + 1, self.vertical.length))
        columns = np.arange(max(j - _REACH, 0), min(j + _REACH + 1, self.horizontal.length))
        self.pixels[plane, row, column] += step
        self.sums[plane, rows, column] += step * self.vertical.at(rows, np.array(row))
        levels = _to_levels(self.sums[plane, rows, column])
        change = np.outer(levels - self.rounded[plane, rows, column], self.horizontal.at(columns, np.array(column)))
        self.reduced[plane, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += change
        self.rounded[plane, rows, column] = levels


def _axis(matrix: csr_array, scale: int) -> _Axis:
    entries = matrix.tocoo()
    weights = np.zeros((matrix.shape[0], 5 * scale))
    # entries that the border mirrors onto one pixel are added
    np.add.at(weights, (entries.row, entries.col - scale * (entries.row - 2)), entries.data)
    return _Axis(weights, scale)


def _apart(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Choose places, in the given order, whose surroundings do not touch each other."""
    taken = np.zeros(shape, bool)
    chosen = []
    for number, (plane, row, column) in enumerate(places):
        if not taken[plane, row, column]:
            chosen.append(number)
            top, left = max(row - 2 * _REACH, 0), max(column - 2 * _REACH, 0)
            taken[plane, top : row + 2 * _REACH + 1, left : column + 2 * _REACH + 1] = True
    return places[chosen]


def _excess(reduced: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return what each reduced value is wrong by, 0 if it rounds as wanted; brighter than white is white."""
    difference = reduced - wanted
    over = (difference - _LIMIT) * (wanted < 255)
    under = (-difference - _LIMIT) * (wanted > 0)
    excess = np.maximum(np.maximum(over, under), 0)
    return excess + _PER_VALUE * (excess > 0)


def _to_levels(sums: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(sums), 0, 255)


def _inside(places: np.ndarray, length: int) -> np.ndarray:
    return (places >= 0) & (places < length)
