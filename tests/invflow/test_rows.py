"""States of few pixels: rows compute what the kernels of pixels compute, and are chosen where they are faster."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
from torch import Tensor

from invflow import AffineForm, flow_step
from invflow.backends import _cpu, cpu
from invflow.backends.protocol import Call, Settings
from invflow.backends.rows import rows_backward, rows_forward, suits_rows
from invflow.ops._affine_form import OrderName, PackingName, ScaleName
from invflow.ops._kernel import NO_MAP

pytestmark = pytest.mark.skipif(cpu.extension is None, reason="needs the CPU kernels")

FORMS = [
    AffineForm(scale, order=order, packing=packing)
    for scale, order, packing in itertools.product(*map(get_args, (ScaleName, OrderName, PackingName)))
]
FORMS += [AffineForm(eps=0.0), AffineForm(eps=1e-6)]
#: Channels of the state, and the first that the coupling transforms: parts of a vector, whole ones, and both.
SIZES = [(2, 1), (5, 2), (19, 0), (33, 17), (40, 8)]


def images(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> Tensor:
    x = torch.randn(shape).to(dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels last" else x


def call_of(
    form: AffineForm,
    *,
    sizes: tuple[int, int] = (5, 2),
    samples: int = 6,
    batch: int = 6,
    pixels: tuple[int, int] = (1, 1),
    layout: str = "contiguous",
    dtype: torch.dtype = torch.float64,
    matrix: bool = True,
    injector: bool = True,
    inverse: bool = False,
) -> Call:
    channels, start = sizes
    count = (channels - start) // 2 + 1
    x = images((batch, channels, *pixels), layout, dtype)
    h = images((samples, form.outputs * count, *pixels), layout, dtype)
    injected = images((batch, form.outputs * channels, *pixels), layout, dtype) if injector else None
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    m, v = torch.randn(channels, channels, dtype=exact), torch.randn(channels, dtype=exact)
    kernels = form.for_kernels()
    settings = Settings(kernels, kernels if injector else NO_MAP, start, inverse)
    return Call(x, m if matrix else None, v if matrix else None, h, injected, settings)


def of_pixels(call: Call, grads: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    monkeypatch.setattr(_cpu, "suits_rows", lambda call: False)
    return [*cpu.flow_step(call), *cpu.flow_step_backward(*grads, call)]


def of_rows(call: Call, grads: tuple[Tensor, Tensor]) -> list[Tensor | None]:
    forward = rows_forward(call, cpu.extension)
    return [*forward, *rows_backward(*grads, call, cpu.extension)]


def grads_for(call: Call) -> tuple[Tensor, Tensor]:
    x = call.x
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.randn(x.shape).to(x.dtype), torch.randn(len(x), dtype=exact)


def assert_same(call: Call, monkeypatch: pytest.MonkeyPatch, tolerance: float = 1e-11) -> None:
    grads = grads_for(call)
    for name, actual, expected in zip(
        ("y", "log_det", "x", "matrix", "shift", "coupling", "injector"),
        of_rows(call, grads),
        of_pixels(call, grads, monkeypatch),
        strict=True,
    ):
        assert (actual is None) == (expected is None), name
        if actual is not None and expected is not None:
            assert actual.stride() == expected.stride(), name
            size = max(1.0, expected.abs().max().item())
            torch.testing.assert_close(
                actual, expected, rtol=0, atol=tolerance * size, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.scale}-{form.order}-{form.packing}-{form.eps}")
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_rows_are_pixels_in_every_form(form, inverse, monkeypatch):
    for sizes in SIZES:
        assert_same(call_of(form, sizes=sizes, inverse=inverse), monkeypatch)
    assert_same(call_of(form, sizes=(19, 6), samples=2, inverse=inverse), monkeypatch)


@pytest.mark.parametrize("pixels", [(1, 1), (2, 2), (1, 7)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_are_pixels_in_every_layout_and_dtype(pixels, layout, dtype, monkeypatch):
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    given = {"pixels": pixels, "layout": layout, "dtype": dtype, "sizes": (19, 6)}
    for matrix, injector, inverse in [
        (True, True, True),
        (True, True, False),
        (True, False, False),
        (False, False, True),
    ]:
        call = call_of(AffineForm(), **given, matrix=matrix, injector=injector, inverse=inverse)
        assert_same(call, monkeypatch, tolerance)


def test_rows_of_a_map_alone(monkeypatch):
    for pixels in ((1, 1), (2, 2)):
        call = call_of(AffineForm(), pixels=pixels)._replace(coupling=None, injector=None)
        assert_same(call, monkeypatch)


def test_rows_of_strided_states_and_gradients(monkeypatch):
    call = call_of(AffineForm(), sizes=(19, 6))
    x = torch.randn(19, 6, dtype=torch.float64).t()[:, :, None, None]
    h = torch.randn(12, 2 * call.coupling.shape[1], 1, 1, dtype=torch.float64)[::2, ::2]
    call = call._replace(x=x, coupling=h)
    grads = torch.ones((), dtype=torch.float64).expand(x.shape), torch.ones((), dtype=torch.float64).expand(6)
    for actual, expected in zip(of_rows(call, grads), of_pixels(call, grads, monkeypatch), strict=True):
        torch.testing.assert_close(actual, expected)


def test_arguments_are_left_as_they_are():
    call = call_of(AffineForm(), sizes=(19, 6))
    grads = grads_for(call)
    given = [tensor for tensor in (*call[:-1], *grads) if tensor is not None]
    copies = [tensor.clone() for tensor in given]
    of_rows(call, grads)
    assert all(map(torch.equal, given, copies))


@pytest.mark.parametrize("pixels", [(1, 1), (2, 2)], ids=str)
def test_autocast_leaves_rows_in_their_dtype(pixels):
    """A backward pass may be called where autocast is on, which turns products of matrices to bfloat16."""
    call = call_of(AffineForm(), sizes=(19, 6), pixels=pixels, dtype=torch.float32)
    grads = grads_for(call)
    expected = of_rows(call, grads)
    with torch.autocast("cpu", torch.bfloat16):
        found = of_rows(call, grads)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


LARGE = {"sizes": (64, 32), "batch": 32, "samples": 32}
CHOICES = [
    (LARGE, True),
    ({**LARGE, "samples": 2}, True),
    ({**LARGE, "pixels": (2, 2)}, True),
    ({**LARGE, "pixels": (1, 7)}, True),
    ({**LARGE, "pixels": (2, 2), "samples": 2}, False),
    ({**LARGE, "pixels": (2, 4)}, False),
    ({**LARGE, "pixels": (0, 1)}, False),
    ({**LARGE, "batch": 0, "samples": 0}, False),
    ({**LARGE, "batch": 2, "samples": 2, "pixels": (2, 2)}, False),
    ({"sizes": (2, 1)}, False),
    ({**LARGE, "matrix": False, "injector": False}, True),
    ({"sizes": (64, 32), "matrix": False, "injector": False}, False),
]


@pytest.mark.parametrize(("given", "expected"), CHOICES, ids=lambda value: str(value))
def test_rows_are_chosen_where_they_are_faster(given, expected):
    assert suits_rows(call_of(AffineForm(), **given)) == expected


def test_wide_vectors_go_through_rows_with_the_gradients_of_plain_pytorch(monkeypatch):
    count = []
    monkeypatch.setattr(_cpu, "rows_backward", lambda *args: count.append(1) or rows_backward(*args))
    found = []
    for backend in ("cpu", "reference"):
        torch.manual_seed(1)
        tensors = [
            torch.randn(size, dtype=torch.float64) for size in ((4, 520), (520, 520), (520,), (4, 520), (2, 1040))
        ]
        tensors = [tensor.requires_grad_() for tensor in tensors]
        y, log_det = flow_step(*tensors, backend=backend)
        (y.square().mean() + log_det.square().mean()).backward()
        found.append([y, log_det, *(tensor.grad for tensor in tensors)])
    assert count == [1]
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_a_state_whose_memory_was_freed_is_refused():
    x, h = torch.randn(4, 64), torch.randn(4, 64)
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="storage is empty"):
        flow_step(x, torch.eye(64), torch.zeros(64), h, backend="cpu")
