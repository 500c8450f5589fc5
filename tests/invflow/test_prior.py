"""A prior of a context: in a flow step, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from layer_cases import CONTEXT_CHANNELS, coupling, prior

from invflow import AffineForm, FlowSequential, FlowStep
from invflow.flow import _Rows


@pytest.mark.parametrize("folded", [False, True], ids=["as it is", "folded"])
def test_a_step_computes_it_as_it_does_itself(folded: bool) -> None:
    """A step computes with what the network of an injector returns. A prior means the inverse by it."""
    step = FlowStep(4, injector=prior(4), coupling=coupling(4)).double()
    torch.nn.init.normal_(step.injector.net.last.weight)
    step.actnorm.mark_initialized()
    parts = FlowSequential([step.actnorm, step.conv1x1, step.injector, step.coupling])
    x, context = torch.randn(4, 4, 3, 2).double(), torch.randn(2, CONTEXT_CHANNELS, 3, 2).double()
    computed = step.folded() if folded else step
    expected = parts(x, context)
    torch.testing.assert_close(computed(x, context), expected)
    torch.testing.assert_close(computed.inverse(x, context), parts.inverse(x, context))
    if not folded:
        inverse = step.conditioned_inverse(_Rows(context))
        torch.testing.assert_close(inverse(expected[0], slice(0, 2)), x)


def test_a_form_that_shifts_first_is_refused() -> None:
    with pytest.raises(ValueError, match="ContextPrior: form must have the order 'scale_then_shift'"):
        prior(4, AffineForm(order="shift_then_scale"))
