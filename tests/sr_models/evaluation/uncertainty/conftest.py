"""Setup of the tests of uncertainty: truths that a model with a known distribution has drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import to_tensor, to_uint8, write_image
from tests.support.gaussian_model import gaussian_model

#: Temperature of the truths.
TRUE_TEMPERATURE = 0.7

Drawn = tuple[SuperResolutionFlow, Path, Path]


@pytest.fixture
def drawn(tmp_path: Path) -> Callable[..., Drawn]:
    """``drawn(deviation, grey, sides)``: a model, and folders of truths that it drew at 0.7 and of their low images."""

    def draw(deviation: float = 0.1, grey: int = 128, sides: tuple[int, ...] = (12, 16)) -> Drawn:
        model = gaussian_model(deviation)
        truths, low = tmp_path / "truths", tmp_path / "low"
        truths.mkdir()
        low.mkdir()
        for index, side in enumerate(sides):
            lr = np.full((side, 16, 3), grey, dtype=np.uint8)
            sample = model.sample(to_tensor(lr)[None], temperature=TRUE_TEMPERATURE, seed=100 + index)[0, 0]
            write_image(truths / f"{index}.png", to_uint8(sample))
            write_image(low / f"{index}.png", lr)
        return model, truths, low

    return draw
