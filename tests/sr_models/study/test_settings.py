"""Places and orders are random, repeatable and blind."""

from __future__ import annotations

from collections import Counter

import pytest

from sr_models.study.settings import CROPS, SIDE, Settings, crop_positions, image_order, method_order

SETTINGS = Settings(("a", "b", "c"), tuple(map(str, range(7))), ("0", "1", "2", "3"), seed=5)


def overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(one[0] - other[0]) < SIDE and abs(one[1] - other[1]) < SIDE


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (SIDE, 1000), (260, 250), (1356, 2040)])
def test_crops_lie_in_the_image_and_apart_where_there_is_room(height: int, width: int) -> None:
    seen = set()
    for image in range(20):
        places = crop_positions(height, width, image, seed=0)
        assert len(places) == CROPS
        assert all(0 <= row <= height - SIDE and 0 <= column <= width - SIDE for row, column in places)
        assert places == crop_positions(height, width, image, seed=0)
        if height * width > 10 * SIDE**2:
            assert not any(overlap(places[i], places[j]) for i in range(CROPS) for j in range(i))
        seen.update(places)
    assert len(seen) == 1 if height == width == SIDE else len(seen) > 50
    assert crop_positions(1356, 2040, 0, seed=0) != crop_positions(1356, 2040, 0, seed=1)


def test_every_method_comes_as_often_at_every_place() -> None:
    orders = [tuple(method_order(SETTINGS, rater, image)) for rater in range(1, 61) for image in range(7)]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    # 420 orders, 70 of each of six: standard deviation 7.6
    counts = Counter(orders)
    assert len(counts) == 6
    assert all(40 < count < 100 for count in counts.values())
    assert orders == [tuple(method_order(SETTINGS, rater, image)) for rater in range(1, 61) for image in range(7)]


def test_raters_get_the_images_in_orders_of_their_own() -> None:
    orders = {tuple(image_order(SETTINGS, rater)) for rater in range(1, 21)}
    assert len(orders) > 15
    assert all(sorted(order) == list(range(7)) for order in orders)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, []),
        ({"seed": 6}, ["seed was 5, now 6"]),
        ({"reference": False}, ["reference was True, now False"]),
        ({"methods": ("a", "d", "c")}, ["methods were a, b, c, now a, d, c"]),
        ({"images": ("0", "1")}, ["there were 7 images, now 2, or their names are others"]),
        ({"fingerprints": ("0", "1", "x", "y")}, ["files of b, c are others"]),
    ],
)
def test_what_has_changed_is_named(changed: dict[str, object], told: list[str]) -> None:
    given = Settings(**{**vars(SETTINGS), **changed})
    assert SETTINGS.changes(given) == told
    assert Settings.from_json(given.to_json()) == given
