"""Kinds of places follow the low-resolution image alone."""

from __future__ import annotations

import numpy as np

from sr_models.evaluation.uncertainty.texture import TEXTURES, textures


def test_contrast_tells_the_kind() -> None:
    lr = np.full((5, 12, 3), 128, dtype=np.uint8)
    # a checkerboard of deviation d in the middle, an edge at the right
    board = np.indices((5, 4)).sum(0) % 2
    lr[:, 4:8] = (128 + 8 * board)[..., None]
    lr[:, 11] = 255
    found = textures(lr, 2)
    assert found.shape == (10, 24)
    assert (found == found[::2, ::2].repeat(2, 0).repeat(2, 1)).all()
    names = np.array(list(TEXTURES))[found[4, ::2]]
    assert names.tolist() == ["flat"] * 3 + ["texture"] * 6 + ["flat"] + ["edges"] * 2


def test_colours_of_one_luminance_are_flat() -> None:
    lr = np.zeros((4, 4, 3), dtype=np.uint8)
    lr[:, :2], lr[:, 2:] = (100, 0, 0), (0, 0, 255)
    assert not textures(lr, 4).any()
