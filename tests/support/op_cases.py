"""The registry of operators under test, with small inputs, and how to draw large, odd and strided ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from hypothesis import strategies as st
from torch import Tensor
from under_test import INTERPRETED

from invflow import AffineForm, affine_coupling, channel_affine, flow_step, gaussian_split
from invflow.ops._affine_form import ScaleName

Results = tuple[Tensor, ...]


@dataclass(frozen=True)
class OpCase:
    """An operator with everything but its tensors decided: ``call(*inputs, backend=...)`` returns all its results."""

    name: str
    call: Callable[..., Results]
    shapes: tuple[tuple[int, ...], ...]

    def inputs(self, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu") -> Results:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(shape, generator=generator).to(device, dtype) for shape in self.shapes)

    def on(self, backend: str) -> Callable[..., Results]:
        return lambda *inputs: self.call(*inputs, backend=backend)


def _affine(x: Tensor, matrix: Tensor, shift: Tensor, **options: Any) -> Results:
    return (channel_affine(x, matrix, shift, **options),)


def _coupling(form: AffineForm, **settings: Any) -> Callable[..., Results]:
    return lambda x, h, **options: affine_coupling(x, h, form, **settings, **options)


def _y_of_coupling(form: AffineForm, **settings: Any) -> Callable[..., Results]:
    """Without the log-determinant of a form without a scale, a constant."""
    return lambda x, h, **options: affine_coupling(x, h, form, **settings, **options)[:1]


def _coupling_from_state(x: Tensor, **options: Any) -> Results:
    """h computed from x: the gradient of x has two paths."""
    h = torch.cat([x[:, :2].sin(), x[:, :2] * x[:, 1:3]], 1)
    return affine_coupling(x, h, start=2, **options)


def step_of(coupling: bool, injector: bool, **settings: Any) -> Callable[..., Results]:
    """flow_step as a function of its tensors alone."""

    def call(x: Tensor, matrix: Tensor, shift: Tensor, *hs: Tensor, **options: Any) -> Results:
        rest = list(hs)
        given = {"coupling": rest.pop(0)} if coupling else {}
        given |= {"injector": rest.pop(0)} if injector else {}
        return flow_step(x, matrix, shift, **given, **settings, **options)

    return call


def _bare_step(*tensors: Tensor, **options: Any) -> Results:
    """Without the log-determinant, a constant that has no derivatives to compare."""
    return flow_step(*tensors, **options)[:1]


_PAPER_FORM = AffineForm("exp", "scale_then_shift", "split")

OPS = [
    OpCase("channel_affine", _affine, ((2, 3, 2, 2), (3, 3), (3,))),
    OpCase("coupling", _coupling(AffineForm(), start=1), ((2, 3, 2, 1), (2, 4, 2, 1))),
    OpCase("coupling-inverse", _coupling(AffineForm(), inverse=True), ((1, 2, 2, 2), (1, 4, 2, 2))),
    OpCase(
        "coupling-exp-inverse",
        _coupling(AffineForm("exp", "scale_then_shift", "split"), start=1, inverse=True),
        ((1, 2, 2, 2), (1, 2, 2, 2)),
    ),
    OpCase("coupling-bounded", _coupling(AffineForm("bounded_exp", "scale_then_shift")), ((2, 2, 1, 2), (2, 4, 1, 2))),
    OpCase("coupling-additive", _y_of_coupling(AffineForm("none"), start=1), ((4, 3, 1, 2), (2, 2, 1, 2))),
    OpCase("coupling-of-its-own-state", _coupling_from_state, ((2, 4, 2, 1),)),
    OpCase("coupling-shared", _coupling(AffineForm(), start=1), ((4, 3, 1, 2), (2, 4, 1, 2))),
    OpCase("gaussian-split", gaussian_split, ((2, 2, 1, 2), (2, 4, 1, 2))),
    OpCase("step-bare", _bare_step, ((2, 3, 2, 1), (3, 3), (3,))),
    OpCase("step-coupling", step_of(True, False), ((2, 3, 2, 1), (3, 3), (3,), (2, 4, 2, 1))),
    OpCase(
        "step-injector", step_of(False, True, injector_form=_PAPER_FORM), ((2, 2, 2, 1), (2, 2), (2,), (2, 4, 2, 1))
    ),
    OpCase(
        "step-both",
        step_of(True, True, injector_form=_PAPER_FORM, start=0),
        ((2, 3, 1, 2), (3, 3), (3,), (2, 2, 1, 2), (1, 6, 1, 2)),
    ),
    OpCase(
        "step-inverse",
        step_of(True, True, coupling_form=AffineForm("bounded_exp"), inverse=True),
        ((2, 3, 1, 2), (3, 3), (3,), (2, 4, 1, 2), (1, 6, 1, 2)),
    ),
]

# An h that is computed from x is rounded before the operator sees it.
OPS_GIVEN_H = [case for case in OPS if case.name != "coupling-of-its-own-state"]

FORMS = st.builds(
    AffineForm,
    scale=st.sampled_from(get_args(ScaleName)),
    order=st.sampled_from(["shift_then_scale", "scale_then_shift"]),
    packing=st.sampled_from(["cross", "split"]),
    eps=st.sampled_from([0.0, 1e-4, 0.3]),
    bound=st.sampled_from([0.5, 2.0, 5.0]),
)

# Weighted towards one pixel and towards the edges of vectors, tiles and blocks.
SIDES = st.one_of(st.sampled_from([1, 1, 2, 4, 16, 17]), st.integers(1, 40))
BATCHES = st.sampled_from([0, 1, 1, 2, 3])

LAYOUTS = ["contiguous", "sliced channels", "sliced pixels", "transposed", "channels_last", "expanded", "batch last"]


def laid_out(layout: str, tensor: Tensor) -> Tensor:
    """The values of ``tensor`` (B, C, H, W) in memory of another layout; an expanded one repeats the first sample."""
    if layout == "sliced channels":
        return torch.stack([tensor, torch.full_like(tensor, torch.nan)], 2).flatten(1, 2)[:, ::2]
    if layout == "sliced pixels":
        return torch.nn.functional.pad(tensor, (1, 2, 3, 1), value=torch.nan)[:, :, 3:-1, 1:-2]
    if layout == "transposed":
        return tensor.transpose(1, 3).contiguous().transpose(1, 3)
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "expanded":
        return tensor[:1].expand_as(tensor)
    if layout == "batch last":
        return tensor.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    return tensor


@dataclass(frozen=True)
class Drawn:
    """Drawn arguments of an operator and the layouts in which it gets them and the gradient of its result."""

    seed: int
    batch: int
    channels: int
    height: int
    width: int
    layouts: tuple[str, ...]
    start: int = 0
    count: int = 0
    form: AffineForm | None = None
    inverse: bool = False
    injector_form: AffineForm | None = None
    shared: tuple[int, int] = (1, 1)

    def random(self, which: int, channels: int, shared: int = 1, device: str = "cpu") -> Tensor:
        """(batch / shared, channels, height, width) in the layout number ``which``."""
        generator = torch.Generator().manual_seed(8 * self.seed + which)
        values = torch.randn(self.batch // shared, channels, self.height, self.width, generator=generator)
        return laid_out(self.layouts[which], values.to(device))


@st.composite
def drawn_affines(draw: st.DrawFn) -> Drawn:
    layouts = draw(st.tuples(*[st.sampled_from(LAYOUTS)] * 3))
    return Drawn(draw(st.integers(0, 999)), draw(BATCHES), draw(st.integers(1, 40)), draw(SIDES), draw(SIDES), layouts)


@st.composite
def drawn_couplings(draw: st.DrawFn) -> Drawn:
    channels = draw(st.integers(1, 40))
    count = draw(st.integers(0, channels))
    return Drawn(
        draw(st.integers(0, 999)),
        draw(BATCHES),
        channels,
        draw(SIDES),
        draw(SIDES),
        draw(st.tuples(*[st.sampled_from(LAYOUTS)] * 3)),
        start=draw(st.integers(0, channels - count)),
        count=count,
        form=draw(FORMS),
        inverse=draw(st.booleans()),
    )


@st.composite
def drawn_steps(draw: st.DrawFn) -> Drawn:
    """A flow step; ``count`` 0 is one without coupling, ``injector_form`` None one without injector, and ``shared``
    says how many successive states share a sample of either."""
    channels = draw(st.one_of(st.sampled_from([12, 24, 48, 96, 192]), st.integers(1, 40)))
    count = draw(st.one_of(st.just(channels - channels // 2), st.integers(0, channels)))
    batch = draw(st.sampled_from([0, 1, 2, 4]))
    sharing = st.sampled_from([1, 1, 2] if batch in (2, 4) else [1])
    # now and then more pixels than a tile holds
    width = draw(st.one_of(SIDES, st.sampled_from([130, 400]) if channels < 49 else SIDES))
    step = Drawn(
        draw(st.integers(0, 999)),
        batch,
        channels,
        draw(st.sampled_from([1, 3, 4, 8])),
        width,
        draw(st.tuples(*[st.sampled_from(LAYOUTS)] * 4)),
        start=draw(st.integers(0, channels - count)),
        count=count,
        form=draw(FORMS),
        inverse=draw(st.booleans()),
        injector_form=draw(st.one_of(st.none(), FORMS)),
        shared=(draw(sharing), draw(sharing)),
    )
    return _in_few_tiles(step) if INTERPRETED else step


def _in_few_tiles(step: Drawn) -> Drawn:
    """A step that the interpreter, which takes up to two seconds for a tile, runs in some seconds."""
    if step.channels > 48:
        return replace(step, height=1, width=min(step.width, 17))
    return replace(step, height=1) if step.height * step.width > 64 else step
