"""Methods are compared on the images that all have, or not at all."""

from __future__ import annotations

import dataclasses

import pytest
from report_methods import bicubic, model

from sr_models.evaluation.report.method import on_common_images


def test_methods_are_compared_on_the_images_that_all_have() -> None:
    fewer = dataclasses.replace(model(), rows=model().rows[:0:-1])
    first, second = on_common_images([bicubic(), fewer])
    assert [row.image for row in first.rows] == [row.image for row in second.rows] == [f"{n}.png" for n in (1, 2, 3, 4)]
    assert second.rows[0].distance == 0.12


def test_methods_that_cannot_be_compared_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one method, got none"):
        on_common_images([])
    with pytest.raises(ValueError, match="got 'm' twice"):
        on_common_images([model(), model()])
    with pytest.raises(ValueError, match="bicubic was with lpips, m with mse; score one again"):
        on_common_images([bicubic(), dataclasses.replace(model(), distance_name="mse")])
    other = dataclasses.replace(model(), rows=[dataclasses.replace(model().rows[0], image="other.png")])
    with pytest.raises(ValueError, match="an image in common, got none that all of bicubic, m have"):
        on_common_images([bicubic(), other])
