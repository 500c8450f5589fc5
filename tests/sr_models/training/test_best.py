"""Which of two figures is the better one."""

from __future__ import annotations

import math

from sr_models.training.best import better


def test_the_better_figure() -> None:
    first = better(None, "val_nll", {"val_nll": -1.0, "val_psnr": 9.0}, 4)
    assert first == {"figure": "val_nll", "value": -1.0, "step": 4}
    assert better(first, "val_nll", {"val_nll": -1.0}, 5) is first
    assert better(first, "val_nll", {"val_nll": math.nan}, 5) is first
    assert better(first, "val_nll", {"val_nll": math.inf}, 5) is first
    assert better(first, "val_nll", {}, 5) is first
    assert better(first, "val_nll", {"val_nll": -2.0}, 5)["step"] == 5
    other = better(first, "val_psnr", {"val_psnr": 9.0}, 6)
    assert other == {"figure": "val_psnr", "value": 9.0, "step": 6}
    assert better(other, "val_psnr", {"val_psnr": 8.0}, 7) is other
    assert better(other, "val_psnr", {"val_psnr": 9.5}, 7)["value"] == 9.5
