"""Calls of ordinary tensors, which one function in C++ runs: they compute what the general way computes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import invflow
from invflow import AffineForm
from invflow.backends import cpu
from invflow.layers import _factors, _group
from invflow.ops import _ordinary

pytestmark = pytest.mark.skipif(cpu.extension is None, reason="needs the CPU kernels")

FORMS = [AffineForm(), AffineForm("none"), AffineForm("atan_exp", order="scale_then_shift", packing="split")]


class Given(nn.Module):
    """A network whose output is a parameter."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.h = nn.Parameter(torch.randn(shape))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.h * 1


def step_of(form: AffineForm, pixels: tuple[int, ...], *, conv: type = invflow.InvertibleConv1x1) -> invflow.FlowStep:
    step = invflow.FlowStep(
        6,
        conv1x1=conv(6),
        injector=invflow.AffineInjector(6, Given(2, form.outputs * 6, *pixels), context_channels=3, form=form),
        coupling=invflow.AffineCoupling(6, Given(2, form.outputs * 2, *pixels), start=4, form=form),
    ).double()
    nn.init.normal_(step.actnorm.bias)
    nn.init.normal_(step.actnorm.log_scale, std=0.3)
    step.actnorm.mark_initialized()
    return step


def general_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ordinary, "cpu", SimpleNamespace(extension=None))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.scale)
@pytest.mark.parametrize("pixels", [(), (9,), (3, 4)], ids=str)
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_a_step_computes_what_it_computes_the_general_way(form, pixels, frozen, monkeypatch):
    torch.manual_seed(0)
    step, x, context = step_of(form, pixels), torch.randn(4, 6, *pixels).double(), torch.randn(4, 3, *pixels).double()
    if frozen:
        step.actnorm.requires_grad_(False)
        step.conv1x1.requires_grad_(False)
    x.requires_grad_()
    leaves = [x, *(parameter for parameter in step.parameters() if parameter.requires_grad)]
    weights = torch.randn(2, *x.shape).double(), torch.randn(2, len(x)).double()

    def results() -> list[list[Tensor]]:
        found = []
        for i, method in enumerate((step, step.inverse)):
            y, log_det = method(x, context)
            grads = torch.autograd.grad((y * weights[0][i]).sum() + (log_det * weights[1][i]).sum(), leaves)
            with torch.no_grad():
                found.append([y, log_det, *grads, *method(x, context)])
        return found

    quick = results()
    general_way(monkeypatch)
    for actual, expected in zip(quick, results(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_a_trained_step_is_one_node_with_its_map():
    step = step_of(AffineForm(), (3, 4))
    step.coupling = None
    y, log_det = step(torch.randn(2, 6, 3, 4).double(), torch.randn(2, 3, 3, 4).double())
    assert y.grad_fn is log_det.grad_fn
    assert y.grad_fn.name() == "_FlowStepBackward"  # as the general way is named in profiles
    assert {type(node).__name__ for node, _ in y.grad_fn.next_functions if node} == {"AccumulateGrad", "MulBackward0"}


ODD_GRADIENTS = {
    "log_det alone": lambda y, log_det: log_det.sum(),
    "y alone": lambda y, log_det: y.sin().sum(),
    "rows apart": lambda y, log_det: (y.transpose(2, 3) * torch.arange(96.0).view(2, 6, 4, 2)).sum() + log_det.sum(),
    "one sample": lambda y, log_det: y[0].sum() + log_det[0],
}


@pytest.mark.parametrize("name", ODD_GRADIENTS)
def test_gradients_that_come_in_other_ways(name, monkeypatch):
    torch.manual_seed(0)
    step, x, context = step_of(AffineForm(), (2, 4)), torch.randn(2, 6, 2, 4).double(), torch.randn(2, 3, 2, 4).double()
    leaves = list(step.parameters())

    def grads() -> tuple[Tensor, ...]:
        return torch.autograd.grad(ODD_GRADIENTS[name](*step(x, context)), leaves, materialize_grads=True)

    quick = grads()
    general_way(monkeypatch)
    torch.testing.assert_close(quick, grads(), rtol=1e-10, atol=1e-10)


def test_second_and_batched_derivatives_of_the_map():
    torch.manual_seed(0)
    step = invflow.FlowStep(3).double()
    step.actnorm.mark_initialized()
    x, parameters = torch.randn(2, 3, 2, 2).double(), [step.actnorm.bias, step.actnorm.log_scale, step.conv1x1.weight]

    def outputs(*unused: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = step(x)
        return y.sin(), log_det

    assert torch.autograd.gradcheck(outputs, parameters, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(outputs, parameters)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_have_layout_and_dtype_of_the_state(layout, dtype):
    x, matrix = torch.randn(2, 4, 3, 5).to(dtype).contiguous(memory_format=layout), torch.eye(4)
    h = torch.zeros(2, 4, 3, 5)
    found = _ordinary.ordinary_call(x, matrix, matrix[0], h, None)
    assert found is not None
    y, log_det = found
    assert (y.dtype, y.stride(), log_det.dtype) == (dtype, x.stride(), torch.float32)


X, MATRIX, H = torch.randn(2, 4, 3, 5), torch.eye(4), torch.randn(2, 4, 3, 5)
DECLINED = {
    "another dtype of the matrix": (X, MATRIX.double(), MATRIX[0].double(), H),
    "a matrix of other size": (X, torch.eye(5), torch.zeros(5), H),
    "h of other pixels": (X, MATRIX, MATRIX[0], H[..., 1:]),
    "h of too many channels": (X, MATRIX, MATRIX[0], torch.randn(2, 10, 3, 5)),
    "h of a batch that is no divisor": (X, MATRIX, MATRIX[0], torch.randn(3, 4, 3, 5)),
    "integers": (X.int(), MATRIX, MATRIX[0], H),
    "rows apart": (torch.randn(2, 4, 5, 3).transpose(2, 3), MATRIX, MATRIX[0], H),
    "no pixels": (X[..., :0], MATRIX, MATRIX[0], H[..., :0]),
    "another device": (X, MATRIX, MATRIX[0], H.to("meta")),
    "no tensor": (X, MATRIX, [0.0] * 4, H),
    "no matrix and no coupling": (X, None, None, None),
}


@pytest.mark.parametrize("name", DECLINED)
@pytest.mark.parametrize("graph", [False, True], ids=["no graph", "graph"])
def test_what_is_wrong_or_out_of_the_ordinary_is_declined(name, graph):
    x, matrix, shift, h = DECLINED[name]
    with torch.set_grad_enabled(graph):
        matrix = None if matrix is None else matrix.clone().requires_grad_(graph)
        assert _ordinary.ordinary_call(x, matrix, shift, h, None) is None


def test_numbers_are_compared_bit_by_bit():
    tensors = [torch.tensor([0.0, float("nan")]), torch.eye(3).double(), torch.tensor(1.0)]
    numbers = _ordinary.numbers_of(tensors)
    assert _ordinary.have_numbers([tensor.clone() for tensor in tensors], numbers)
    for i, other in ((0, torch.tensor([-0.0, float("nan")])), (1, torch.eye(3)), (2, torch.tensor([1.0]))):
        assert not _ordinary.have_numbers([*tensors[:i], other, *tensors[i + 1 :]], numbers)
    assert not _ordinary.have_numbers(tensors[:2], numbers)
    assert not _ordinary.have_numbers([*tensors, tensors[0]], numbers)
    assert _ordinary.numbers_of([torch.eye(3)[:, 1]]) is None


def test_the_weights_of_a_flow_are_factorised_together_when_they_have_changed(monkeypatch):
    flow = invflow.FlowSequential([invflow.FlowStep(3) for _ in range(4)])
    for step in flow:
        step.actnorm.mark_initialized()
    shapes = []

    def counted(weight: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(weight.shape))
        return _factors.factorize(weight)

    monkeypatch.setattr(_group, "factorize", counted)
    x = torch.randn(2, 3, 4, 4)
    for _ in range(2):
        flow(x)
    assert shapes == [(4, 3, 3)]
    with torch.no_grad():
        flow[2].conv1x1.weight.data[0] *= 2
    log_det = flow(x)[1]
    assert shapes == [(4, 3, 3)] * 2
    expected = sum(16 * torch.linalg.slogdet(step.conv1x1.weight).logabsdet for step in flow)
    torch.testing.assert_close(log_det, expected.expand(2))


@pytest.mark.parametrize("inverse", [1, 0, torch.tensor(True)], ids=repr)
def test_inverse_may_be_anything_that_is_true_or_not(inverse):
    found, expected = (
        invflow.affine_coupling(X, H, inverse=inverse, backend=backend) for backend in ("auto", "reference")
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("start", [2**63 - 1, 2**70, -1, 3])
def test_any_start_out_of_range_is_refused(start):
    with pytest.raises(ValueError, match=r"start must be in 0\.\.2"):
        invflow.affine_coupling(X, H, start=start)


def test_second_derivatives_beside_the_form_of_a_coupling_that_is_not_there():
    x, form = X.clone().requires_grad_(), AffineForm("exp", volume_preserving=True)
    y, _ = invflow.flow_step(x, 2 * MATRIX, MATRIX[0], coupling_form=form, injector_form=form)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(grad.sum(), x)[0], torch.full_like(x, 8))


@pytest.mark.parametrize("case", ["pixels", "rows of vectors", "rows of pixels"])
def test_defaults_of_torch_do_not_touch_what_is_computed(case):
    shape = {"pixels": (2, 6, 4, 4), "rows of vectors": (300, 6), "rows of pixels": (300, 6, 2, 2)}[case]
    torch.manual_seed(0)
    x, h, matrix = torch.randn(shape, requires_grad=True), torch.randn(shape), torch.randn(6, 6, requires_grad=True)

    def results() -> list[Tensor]:
        y, log_det = invflow.flow_step(x, matrix, matrix[0], h)
        return [y, log_det, *torch.autograd.grad(y.sum() + log_det.sum(), [x, matrix])]

    expected = results()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            found = results()
    finally:
        torch.set_default_dtype(torch.float32)
    for actual, other in zip(found, expected, strict=True):
        assert (actual.dtype, actual.device) == (other.dtype, other.device)
        assert torch.equal(actual, other)


def test_a_weight_that_is_edited_within_a_call_is_looked_at_again():
    class Edits(nn.Module):
        """A network that writes to the weight of another layer without a sign."""

        def forward(self, x: Tensor) -> Tensor:
            flow[1].conv1x1.weight.data.copy_(torch.tensor([[0.0, 3.0], [2.0, 0.0]]))
            return torch.cat([x, x], 1)

    flow = invflow.FlowSequential([invflow.FlowStep(2, coupling=invflow.AffineCoupling(2, Edits())), *two_steps()])
    flow[0].actnorm.mark_initialized()
    x = torch.randn(4, 2)
    edited, again = flow(x), flow(x)
    torch.testing.assert_close(edited, again, rtol=0, atol=0)


def two_steps() -> list[invflow.FlowStep]:
    steps = [invflow.FlowStep(2), invflow.FlowStep(2)]
    for step in steps:
        step.actnorm.mark_initialized()
    return steps
