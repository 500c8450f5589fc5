"""The layers on a CUDA device: the same results as on the CPU."""

import pytest
import torch
from layer_cases import LAYERS, latents_of

from invflow.testing import assert_invertible

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_results_are_those_of_the_cpu(case):
    layer, (x, context) = case.build(torch.float64), case.inputs(dtype=torch.float64)
    expected, expected_log_det = layer(x, context)
    x, context = x.cuda(), None if context is None else context.cuda()
    layer.cuda()
    z, log_det = layer(x, context)
    torch.testing.assert_close([latent.cpu() for latent in latents_of(z)], latents_of(expected))
    torch.testing.assert_close(log_det.cpu(), expected_log_det)
    assert_invertible(layer, x, context)
