"""Sheets of pictures with captions."""

from __future__ import annotations

import numpy as np
import pytest

from sr_models.io.contact_sheet import contact_sheet


@pytest.mark.parametrize("count", [1, 4, 5, 9])
@pytest.mark.parametrize("size", [(2, 3), (100, 60), (900, 1200)])
def test_every_picture_is_seen(count: int, size: tuple[int, int]) -> None:
    levels = [30 + 20 * number for number in range(count)]
    sheet = contact_sheet({f"sample {level}": np.full((*size, 3), level, np.uint8) for level in levels})
    assert sheet.dtype == np.uint8
    shown = min(480 / max(size), 1)
    expected = round(size[0] * shown) * round(size[1] * shown)
    for level in levels:
        assert (sheet == level).all(2).sum() >= expected
    # captions stand beside them
    assert (sheet.min(2) < 128).sum() > sum(expected for level in levels if level < 128)
