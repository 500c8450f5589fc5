"""``python -m tests.gates.kill_suite LIBRARY``: a few of the properties of the operators, quickly.

It is what every mutant of the CUDA kernels must fail (see mutants.py), and the kernels themselves must pass. LIBRARY is
``invflow._CUDA`` compiled for the CPU. The process ends with 1 and a line that names the property at the first failure.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from invflow import AffineForm, affine_coupling, flow_step
from tests.emulator.drivers import cuda as cuda_driver
from tests.support.accuracy import assert_as_accurate

from .launches import Call

#: Whole and partial tiles, both ways to access pixels, kernels with and without a known number of channels.
CALLS = [
    Call(12, side=24),
    Call(12, side=24, inverse=True, backward=True),
    Call(24, side=8, dtype=torch.float16, backward=True),
    Call(96, side=10, backward=True),
    Call(192, side=6, backward=True),
    Call(192, side=6, backward=True, published=False),
    Call(40, side=8, backward=True),
    Call(7, side=5, backward=True),
    Call(7, side=5, inverse=True, contiguous=False),
    Call(12, side=8, step=False, backward=True),
    # kernels for the published form, and in the first lines; channels_last and half h beside them
    Call(12, side=24, published=False, backward=True),
    Call(24, side=18, published=False, inverse=True, backward=True),
    Call(96, side=10, published=False, backward=True),
    Call(12, side=20, channels_last=True, backward=True),
    Call(12, side=8, channels_last=True, dtype=torch.float64, h_dtype=torch.float16),
    Call(96, side=6, channels_last=True, inverse=True, backward=True),
    Call(24, side=12, channels_last=True, backward=True, h_dtype=torch.bfloat16),
    Call(12, side=9, step=False, channels_last=True, backward=True),
    Call(24, side=9, step=False, channels_last=True, inverse=True, backward=True, h_dtype=torch.float16),
    Call(192, side=6, channels_last=True, backward=True),
    Call(12, side=24, backward=True, h_dtype=torch.float16),
    Call(48, side=12, inverse=True, backward=True, dtype=torch.bfloat16),
    # sums of many parts
    Call(7, side=17, batch=8, backward=True),
    Call(8, step=False, contiguous=False, batch=1, side=72),
]
#: Smaller, because a sanitizer takes its time; the first lies at no multiple of 16 bytes.
SANITIZED = [
    Call(12, side=4, batch=1),
    Call(12, side=4, batch=1, published=False),
    Call(12, side=4, batch=1, channels_last=True, backward=True),
    Call(12, side=4, batch=1, backward=True),
    Call(7, side=3, batch=1, backward=True),
    Call(12, side=4, batch=1, step=False, backward=True),
    Call(12, side=3, batch=1, step=False, channels_last=True, backward=True),
]
#: Calls with log-determinants to which every warp of several blocks contributes.
ORDERED = [
    Call(24, batch=4, side=32),
    Call(12, batch=4, side=32, step=False),
    Call(12, side=24, backward=True),
    Call(7, side=5, backward=True),
]
ORDERS = ("descending", "random:1", "random:2", "random:3", "random:4")


def results_are_right() -> None:
    for call in CALLS:
        _check(call, call.tensors())


def contexts_are_shared() -> None:
    for call in (Call(12, batch=4, side=8, backward=True), Call(7, batch=4, side=3, backward=True)):
        x, coupling, matrix, shift, injector = call.tensors()
        _check(call, [x, coupling[:2], matrix, shift, injector[:2]])
    call = Call(12, batch=4, side=8, step=False, backward=True)
    x, coupling = call.tensors()
    _check(call, [x, coupling[:2]])


def every_order_gives_the_same_bits() -> None:
    for call in ORDERED:
        expected = call.run("cuda")
        for order in ORDERS:
            with mock.patch.dict(os.environ, CUDA_ON_CPU_ORDER=order):
                found = call.run("cuda")
            same = [torch.equal(a, b) for a, b in zip(found, expected, strict=True)]
            assert all(same), f"{call}: result {same.index(False)} depends on the order {order}"


def nothing_is_reported() -> None:
    """Run under a sanitizer, which ends the process."""
    first, *rest = SANITIZED
    x, *others = first.tensors()
    for moved in range(1 + len(others)):
        tensors = [x, *others]
        tensors[moved] = torch.cat([x.new_zeros(1), tensors[moved].flatten()])[1:].view(tensors[moved].shape)
        first.run("cuda", tensors)
    for call in rest:
        call.run("cuda")
    shifted = [torch.cat([t.new_zeros(1), t.permute(0, 2, 3, 1).flatten()])[1:] for t in (x, others[0], others[3])]
    last = [
        new.view(old.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        for new, old in zip(shifted, (x, others[0], others[3]), strict=True)
    ]
    for moved in range(3):
        tensors = [t.contiguous(memory_format=torch.channels_last) for t in (x, others[0], others[3])]
        tensors[moved] = last[moved]
        first.run("cuda", [tensors[0], tensors[1], others[1], others[2], tensors[2]])
    for gaps in ((1, 0), (0, 1)):
        tensors = [apart(torch.cat([t] * 2), *gaps) if t.dim() == 4 else t for t in (x, *others)]
        replace(first, batch=2).run("cuda", tensors)


def apart(tensor: Tensor, after_samples: int, after_channels: int) -> Tensor:
    """A copy (B, C, H, W) in memory with unused numbers after every sample and channel: few begin at 16 bytes."""
    _, channels, height, width = tensor.shape
    channel_stride = height * width + after_channels
    sample_stride = channels * channel_stride + after_samples
    memory = tensor.new_zeros(len(tensor) * sample_stride)
    return memory.as_strided(tensor.shape, (sample_stride, channel_stride, width, 1)).copy_(tensor)


def quotients_are_finite_where_factors_are_not() -> None:
    """Also where the scale is subnormal, or underflows; one by one and as a vector."""
    numbers = torch.tensor([0.0, 1e-5, 1e-30, 1e-20])
    for raw, count in product((-95.0, -120.0), (3, 4)):
        x = numbers[:count].view(1, 1, 1, count)
        h = torch.cat([torch.zeros_like(x), torch.full_like(x, raw)], 1).requires_grad_()
        for form in (AffineForm("exp"), AffineForm(eps=0.0)):
            y, _ = affine_coupling(x, h, form, inverse=True, backend="cuda")
            exact, _ = affine_coupling(x.double(), h.double(), form, inverse=True, backend="reference")
            expected = torch.where(exact < 3e38, exact, torch.inf)
            torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=0)
            (grad,) = torch.autograd.grad(y, h, torch.tensor([1.0, 0.0, 1e-30, 0.0])[:count].view(x.shape))
            assert grad.isfinite().all() or not y.isfinite().all(), "a gradient is not finite"


def maps_begin_at_any_channel() -> None:
    """Also inside of the channels that a thread reads at once."""
    call = Call(12, side=8, channels_last=True)
    x, _, matrix, shift, injector = call.tensors()
    for start, count in ((3, 4), (2, 7)):
        coupling = injector[:, : 2 * count].contiguous(memory_format=torch.channels_last)
        found = flow_step(x, matrix, shift, coupling=coupling, injector=injector, start=start, backend="cuda")
        tensors = [tensor.double() for tensor in (x, matrix, shift)]
        maps: dict[str, Any] = {"coupling": coupling.double(), "injector": injector.double()}
        exact = flow_step(*tensors, **maps, start=start, backend="reference")
        for one, other in zip(found, exact, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-4)


PROPERTIES = (
    results_are_right,
    contexts_are_shared,
    every_order_gives_the_same_bits,
    quotients_are_finite_where_factors_are_not,
    maps_begin_at_any_channel,
)


def _check(call: Call, tensors: Sequence[Tensor]) -> None:
    actual, plain = call.run("cuda", tensors), call.run("reference", tensors)
    exact = call.run("reference", [tensor.double() for tensor in tensors])
    for number, results in enumerate(zip(actual, plain, exact, strict=True)):
        # sums over pixels round like a random walk
        terms = 4 * call.batch * call.side**2 * (call.channels if number == 1 else 1)
        magnitude = terms**0.5 if results[0].dim() < 4 else 0.0
        assert_as_accurate(*results, f"{call}: result {number}", magnitude)


def main(arguments: list[str]) -> int:
    """Return the exit status: 1 if a property does not hold."""
    parser = argparse.ArgumentParser(prog="kill_suite")
    parser.add_argument("library", type=Path)
    parser.add_argument("--sanitize", choices=("address", "thread"))
    parser.add_argument("--multiprocessors", type=int, default=1, help="of the device; default: 1")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # and new memory is full of NaN
    properties: tuple[Callable[[], None], ...] = (nothing_is_reported,) if given.sanitize else PROPERTIES
    with (
        mock.patch.object(cuda_driver, "library", return_value=given.library),
        cuda_driver.cuda_on_cpu(multiprocessors=given.multiprocessors),
    ):
        for holds in properties:
            try:
                holds()
            except (AssertionError, RuntimeError) as error:
                print(f"{holds.__name__}: {' '.join(str(error).split())}")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
