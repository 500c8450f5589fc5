"""Operators on states of any shape and strides against the reference: a process may end here without ending the tests.

``python odd_states.py EXAMPLES`` prints every example before it is tried: the last one is that which ended the process.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from invflow import AffineForm, affine_coupling, channel_affine, flow_step, gaussian_split

_SIZES = st.sampled_from([0, 1, 1, 2, 3, 4, 5, 17])
_STRIDES = st.sampled_from([0, 1, 2, 3, 4, 16, 17, 64, 100])
_HUGE = 2**61 - 1
_DTYPES = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16])
_EXP = AffineForm("exp", "scale_then_shift", "split")
_FORMS = st.sampled_from(
    [
        AffineForm(),
        AffineForm(eps=0.0),
        AffineForm(eps=1e-9),
        _EXP,
        AffineForm("bounded_exp"),
        AffineForm("atan_exp"),
        AffineForm("none"),
    ]
)
_SPECIAL = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, 3e38]
_Layout = tuple[tuple[int, ...], int, bool]


@st.composite
def _layouts(draw: st.DrawFn) -> _Layout:
    """Strides, offset of the first element, and whether a dimension of one element has a huge stride."""
    return tuple(draw(st.lists(_STRIDES, min_size=4, max_size=4))), draw(st.integers(0, 20)), draw(st.booleans())


def _strided(shape: tuple[int, ...], layout: _Layout, dtype: torch.dtype, seed: int, special: bool) -> Tensor:
    strides, offset, huge = layout
    used = [(_HUGE if huge else stride) if size <= 1 else stride for size, stride in zip(shape, strides, strict=True)]
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, used, strict=True) if size > 1)
    storage = torch.randn(last + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if special:
        storage[:: 1 + seed % 5] = _SPECIAL[seed % len(_SPECIAL)]
    return storage.to(dtype).as_strided(shape, used if all(shape) else strides, offset)


@st.composite
def _examples(draw: st.DrawFn) -> dict[str, Any]:
    batch, channels, height, width = (draw(_SIZES) for _ in range(4))
    repeats = [n for n in (1, 2, 3) if batch % n == 0] if batch else [1]
    return {
        "op": draw(st.sampled_from(["channel_affine", "affine_coupling", "flow_step", "gaussian_split"])),
        "shape": (batch, channels, height, width),
        "count": draw(st.integers(0, channels)),
        "contexts": batch // draw(st.sampled_from(repeats)) if batch else draw(st.sampled_from([0, 1, 3])),
        "dtypes": (draw(_DTYPES), draw(_DTYPES)),
        "layouts": tuple(draw(_layouts()) for _ in range(6)),
        "form": draw(_FORMS),
        "inverse": draw(st.booleans()),
        "place": draw(st.integers(0, 17)),
        "seed": draw(st.integers(0, 99)),
        "special": draw(st.sampled_from([False, False, True])),
    }


def run(example: dict[str, Any], backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return results and gradients of an example, in the dtype that it names or in another."""
    batch, channels, height, width = example["shape"]
    count, contexts, inverse, seed = example["count"], example["contexts"], example["inverse"], example["seed"]
    of_state, of_h = example["dtypes"]
    arithmetic = torch.float64 if torch.float64 in (of_state, dtype) else torch.float32

    def leaf(which: int, shape: tuple[int, ...], given: torch.dtype) -> Tensor:
        tensor = _strided(shape, example["layouts"][which], given, seed + which, example["special"])
        return tensor.to(dtype or given).detach().requires_grad_()

    x = leaf(0, (batch, channels, height, width), of_state)
    outputs = example["form"].outputs
    coupling = leaf(1, (contexts, outputs * count, height, width), of_h)
    outputs = 2 if example["op"] == "gaussian_split" else outputs
    injector = leaf(2, (contexts, outputs * channels, height, width), of_h)
    matrix = leaf(3, (channels, channels, 1, 1), torch.float32).detach().to(arithmetic)[:, :, 0, 0].requires_grad_()
    shift = leaf(4, (channels, 1, 1, 1), torch.float32).detach().to(arithmetic)[:, 0, 0, 0].requires_grad_()
    start = min(example["place"], channels - count)
    forms = {"coupling_form": example["form"], "injector_form": example["form"]}
    if example["op"] == "channel_affine":
        leaves, results = [x, matrix, shift], [channel_affine(x, matrix, shift, backend=backend)]
    elif example["op"] == "affine_coupling":
        leaves = [x, coupling]
        results = [*affine_coupling(*leaves, example["form"], start=start, inverse=inverse, backend=backend)]
    elif example["op"] == "flow_step":
        leaves = [x, matrix, shift, coupling, injector]
        results = [*flow_step(*leaves, **forms, start=start, inverse=inverse, backend=backend)]
    else:
        leaves = [x, injector]
        results = [*gaussian_split(*leaves, inverse=inverse, backend=backend)]
    grads = [
        _strided(tuple(results[0].shape), example["layouts"][5], results[0].dtype, seed, example["special"]),
        torch.ones((), dtype=arithmetic).expand(batch),
    ]
    # without scales the log-determinant is a constant
    outputs = [(result, grad) for result, grad in zip(results, grads, strict=False) if result.requires_grad]
    trained, of_trained = zip(*outputs, strict=True)
    found = torch.autograd.grad(trained, leaves, of_trained, allow_unused=True, materialize_grads=True)
    return [*(result.detach() for result in results), *found]


def check(example: dict[str, Any], backend: str) -> None:
    """Compare a backend with the reference in float64; of special numbers only the shapes."""
    found, exact = run(example, backend), run(example, "reference", torch.float64)
    for actual, truth in zip(found, exact, strict=True):
        assert actual.shape == truth.shape, f"{example}: {tuple(actual.shape)} instead of {tuple(truth.shape)}"
        if example["special"]:
            continue
        # a scale is up to e^5, and every sum has terms of that size
        rounding = max(torch.finfo(actual.dtype).eps, torch.finfo(example["dtypes"][0]).eps, 2**-23)
        size = truth.abs().max().item() if truth.numel() else 0.0
        difference = (actual.double() - truth).abs().max().item() if truth.numel() else 0.0
        assert difference <= 8 * rounding * max(1.0, size), f"{example}: {difference} of {size}"


def main(examples: int) -> None:
    """Check so many examples on the CPU."""

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(_examples())
    def every(example: dict[str, Any]) -> None:
        print(example, file=sys.stderr, flush=True)
        check(example, "cpu")

    torch.set_num_threads(2)
    every()
    print("all")


if __name__ == "__main__":
    main(int(sys.argv[1]))
