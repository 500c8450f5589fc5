"""Flow steps of vectors in one call of a kernel: the same as plain PyTorch in every form."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

import invflow
from invflow import AffineForm, affine_coupling, flow_step
from invflow.backends import cpu
from invflow.ops._affine_form import OrderName, PackingName, ScaleName
from invflow.ops._ordinary import ordinary_call

pytestmark = pytest.mark.skipif(cpu.extension is None, reason="needs the CPU kernels")

FORMS = [
    AffineForm(scale, order=order, packing=packing)
    for scale, order, packing in itertools.product(*map(get_args, (ScaleName, OrderName, PackingName)))
]
#: Channels of the state, and the first that the coupling transforms.
SIZES = [(8, 4), (33, 17), (40, 0), (64, 32)]


def check(tensors: list[Tensor | None], grads: tuple[Tensor, Tensor], tolerance: float = 1e-11, **options: Any) -> None:
    """Compare results and gradients of one call in C++ with those of plain PyTorch."""
    x, matrix, shift, coupling, injector = tensors
    assert x is not None
    leaves = [each.requires_grad_() for each in tensors if each is not None]
    found = ordinary_call(x, matrix, shift, coupling, injector, **options)
    assert found is not None
    if matrix is None or shift is None:
        assert coupling is not None
        form = options.pop("coupling_form")
        expected = affine_coupling(x, coupling, form, backend="reference", **options)
    else:
        expected = flow_step(x, matrix, shift, coupling, injector, backend="reference", **options)
    results = []
    for y, log_det in (found, expected):
        outputs, of_outputs = (y, log_det) if log_det.requires_grad else (y,), grads
        given = of_outputs[: len(outputs)]
        results.append([y, log_det, *torch.autograd.grad(outputs, leaves, given, allow_unused=True)])
    for actual, wanted in zip(*results, strict=True):
        wanted = torch.zeros_like(actual) if wanted is None else wanted
        size = max(1.0, wanted.abs().max().item())
        torch.testing.assert_close(actual, wanted, rtol=0, atol=tolerance * size)


def tensors_of(form: AffineForm, channels: int, start: int, *, batch: int = 40, samples: int = 40) -> list[Tensor]:
    count = form.outputs * (channels - start)
    shapes = ((batch, channels), (channels, channels), (channels,), (samples, count), (batch, form.outputs * channels))
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def grads_of(batch: int, channels: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, channels, dtype=torch.float64), torch.randn(batch, dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.scale}-{form.order}-{form.packing}")
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_every_form(form: AffineForm, inverse: bool) -> None:
    torch.manual_seed(0)
    options = {"coupling_form": form, "start": None, "inverse": inverse}
    for channels, start in SIZES:
        x, matrix, shift, coupling, injector = tensors_of(form, channels, start)
        options["start"] = start
        check([x, matrix, shift, coupling, injector], grads_of(40, channels), injector_form=form, **options)
        x, matrix, shift, coupling, _ = tensors_of(form, channels, start)
        check([x, matrix, shift, coupling, None], grads_of(40, channels), **options)
        x, *_, coupling, _ = tensors_of(form, channels, start, batch=200, samples=200)
        check([x, None, None, coupling, None], grads_of(200, channels), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_strides_and_shared_contexts(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    form, batch, channels = AffineForm(), 700, 20
    tensors: list[Any] = [each.to(dtype) for each in tensors_of(form, channels, 8, batch=batch, samples=14)]
    tensors[0] = torch.randn(channels, batch, dtype=dtype).t()
    tensors[3] = torch.randn(28, 24, dtype=dtype)[::2]
    grads = torch.randn(1, channels, dtype=dtype).expand(batch, channels), torch.randn(2 * batch, dtype=dtype)[::2]
    for each in tensors:
        each.requires_grad_()
    check(tensors, grads, 1e-11 if dtype == torch.float64 else 1e-4, start=8)


def test_a_map_alone() -> None:
    x, matrix, shift, *_ = tensors_of(AffineForm(), 64, 32)
    y, log_det = ordinary_call(x, matrix, shift, None, None) or (None, None)
    torch.testing.assert_close(y, torch.addmm(shift, x, matrix.t()))
    torch.testing.assert_close(log_det, torch.zeros(40, dtype=torch.float64))


@pytest.mark.parametrize("channels", [64, 130])
def test_steps_of_layers(channels: int) -> None:
    """Derive the map of the narrower one in C++."""
    torch.manual_seed(0)
    step = invflow.FlowStep(
        channels, coupling=invflow.AffineCoupling(channels, lambda a, b: torch.nn.Linear(a, b))
    ).double()
    x = torch.randn(30, channels, dtype=torch.float64)
    step(x)
    results = []
    for backend in ("auto", "reference"):
        x.requires_grad_()
        with invflow.use_backend(backend):
            y, log_det = step(x)
            results.append(
                [y, log_det, *torch.autograd.grad((y.sin().sum(1) * log_det).sum(), [x, *step.parameters()])]
            )
    torch.testing.assert_close(results[0], results[1], atol=1e-9, rtol=1e-9)


def test_gradients_of_gradients() -> None:
    form = AffineForm("tanh_exp", bound=2.0)
    x, matrix, shift, coupling, _ = tensors_of(form, 6, 3, batch=40, samples=40)
    leaves = [each.requires_grad_() for each in (x, matrix, shift, coupling)]
    seconds = []
    for backend in ("auto", "reference"):
        y, log_det = flow_step(x, matrix, shift, coupling, coupling_form=form, backend=backend)
        firsts = torch.autograd.grad(y.square().sum() + log_det.square().sum(), leaves, create_graph=True)
        seconds.append(torch.autograd.grad(sum(each.square().sum() for each in firsts), leaves))
    torch.testing.assert_close(seconds[0], seconds[1])
