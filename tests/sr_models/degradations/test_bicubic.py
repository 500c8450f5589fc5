"""The bicubic degradation is imresize, and draws nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sr_models.degradations import degrade
from sr_models.io.resize import imresize
from sr_models.randomness import random_stream


@pytest.mark.parametrize("scale", [2, 3, 4, 7, 8, 49])
def test_bicubic_is_imresize(scale: int) -> None:
    hr = np.random.default_rng(0).integers(0, 256, (5 * scale, 6 * scale, 3), dtype=np.uint8)
    stream = random_stream(0, "crops", 0)
    before = stream.get_state()
    np.testing.assert_array_equal(degrade("bicubic")(hr, scale, stream), imresize(hr, size=(5, 6)))
    if scale <= 8:
        np.testing.assert_array_equal(degrade("bicubic")(hr, scale, stream), imresize(hr, 1 / scale))
    assert torch.equal(stream.get_state(), before)
