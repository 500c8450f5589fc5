"""Launches and waits of whole models: a training step waits for nothing, and what a step launches does not grow."""

from __future__ import annotations

import pytest

from tests.gates.waits import TINY, counts_of

#: Launches of a training step and of a sample of the tiny models, as counted when they were last changed.
LAUNCHES = {"srflow": (1125, 527), "srflow-da": (821, 421), "ncsr": (1365, 640)}


@pytest.mark.parametrize("name", LAUNCHES)
def test_no_step_waits_and_none_launches_more_than_it_did(name: str) -> None:
    overrides = {**TINY, **({"noise_steps": (0, 1, 1)} if name == "ncsr" else {})}
    counts = counts_of(name, **overrides)
    step, sample = counts["training step"], counts["sample"]
    most = LAUNCHES[name]
    assert step.waits == step.constants == sample.constants == 0
    assert sample.waits <= 2  # whether the image is one, and whether the sample exploded
    assert step.launches <= most[0]
    assert sample.launches <= most[1]
