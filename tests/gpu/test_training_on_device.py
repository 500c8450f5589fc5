"""Training steps on a CUDA device: those of a graph are those without one, and nothing waits within a step."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from training_steps import Model, batches, device_step

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("parts", [1, 2])
def test_a_graph_takes_the_same_steps(parts: int) -> None:
    found = {}
    for graph in (False, True):
        model = Model().cuda()
        step, average = device_step(model, clip=0.5, graph=graph)
        figures = [
            step([*zip(x.chunk(parts), target.chunk(parts), strict=True)], (0.1 / (1 + number), 0.05), 0.1)
            for number, (x, target) in enumerate(batches("cuda"))
        ]
        assert (step._graph is not None) == graph
        found[graph] = figures, list(model.parameters()), average
    torch.testing.assert_close(found[True], found[False])


def test_a_graph_leaves_out_a_step_that_is_not_finite_and_goes_on() -> None:
    model = Model().cuda()
    step, average = device_step(model, graph=True)
    good = batches("cuda")
    for batch in good[:6]:
        step([batch], (0.1, 0.1), 0.5)
    kept = copy.deepcopy([list(model.parameters()), average])
    assert step([(good[6][0] * math.nan, good[6][1])], (0.1, 0.1), 0.5).loss.isnan()
    torch.testing.assert_close([list(model.parameters()), average], kept, rtol=0, atol=0)
    other = step([(good[7][0][:4], good[7][1][:4])], (0.1, 0.1), 0.5)  # another shape: without the graph
    assert other.loss.isfinite()
    assert step([good[7]], (0.1, 0.1), 0.5).loss.isfinite()


def test_nothing_waits_within_a_step() -> None:
    model = Model().cuda()
    step, _ = device_step(model)
    (batch, *_) = batches("cuda")
    step([batch], (0.1, 0.1), 0.5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step([batch], (0.1, 0.1), 0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
