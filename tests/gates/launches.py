"""Calls of the operators that between them launch every CUDA kernel, and the launches that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from invflow import AffineForm, affine_coupling, flow_step
from invflow._numerics import state_format
from tests.emulator.drivers.cuda import cuda_on_cpu, library
from tests.emulator.through_ptx import HostLaunch, launches_go_to

#: Numbers of channels with kernels of their own.
CHANNELS = (12, 24, 48, 96, 192)
#: And some without: the fewest, one that fills no tile, and as many as SRFlow's state has at most.
OTHER_CHANNELS = (3, 40, 192)


@dataclass(frozen=True)
class Call:
    """An operator on a state of ``channels`` channels and side x side pixels: a flow step with coupling and injector,
    or a coupling alone.

    ``contiguous``: else the channels are sliced, so that pixels are accessed one by one. ``channels_last``: the layout
    of every state and h. ``published``: the form of the maps, for which there are kernels of their own; else another.
    ``h_dtype``: that of h, by default ``dtype``.
    """

    channels: int
    step: bool = True
    dtype: torch.dtype = torch.float32
    contiguous: bool = True
    inverse: bool = False
    backward: bool = False
    batch: int = 2
    side: int = 16
    channels_last: bool = False
    published: bool = True
    h_dtype: torch.dtype | None = None

    def tensors(self) -> list[Tensor]:
        """Return x and h of the coupling and, for a step, the matrix, its shift and h of the injector.

        The coupling transforms half the channels. Every call of that shape gets the same values.
        """
        generator = torch.Generator().manual_seed(self.channels)
        half = self.channels - self.channels // 2

        def random(channels: int) -> Tensor:
            values = torch.randn(self.batch, channels, self.side, self.side, generator=generator).to(self.dtype)
            if self.channels_last:
                return values.contiguous(memory_format=torch.channels_last)
            return values if self.contiguous else torch.stack([values, values], -1)[..., 0]

        x, coupling, injector = random(self.channels), random(2 * half), random(2 * self.channels)
        if self.h_dtype is not None:
            coupling, injector = coupling.to(self.h_dtype), injector.to(self.h_dtype)
        matrix = torch.linalg.qr(torch.randn(self.channels, self.channels, generator=generator))[0]
        arithmetic = torch.float64 if self.dtype == torch.float64 else torch.float32
        shift = torch.randn(self.channels, generator=generator)
        step = [matrix.to(arithmetic), shift.to(arithmetic), injector] if self.step else []
        return [x, coupling, *step]

    def run(self, backend: str, tensors: Sequence[Tensor] | None = None) -> list[Tensor]:
        """y and log_det, and with ``backward`` the gradients of all ``tensors`` (default: :meth:`tensors`)."""
        form = None if self.published else AffineForm("exp", "scale_then_shift")
        leaves = [tensor.detach().requires_grad_(self.backward) for tensor in tensors or self.tensors()]
        if self.step:
            x, coupling, matrix, shift, injector = leaves
            maps: dict[str, Any] = {"coupling": coupling, "injector": injector}
            maps |= {"coupling_form": form, "injector_form": form}
            y, log_det = flow_step(x, matrix, shift, **maps, inverse=self.inverse, backend=backend)
        else:
            x, coupling = leaves
            start = self.channels // 2
            y, log_det = affine_coupling(x, coupling, form, start=start, inverse=self.inverse, backend=backend)
        if not self.backward:
            return [y, log_det]
        grads = [
            torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y).contiguous(memory_format=state_format(y)),
            torch.linspace(0.5, 1, self.batch).to(log_det),
        ]
        return [y, log_det, *torch.autograd.grad([y, log_det], leaves, grads)]


def every_kernel() -> list[Call]:
    """Calls that launch every kernel, in both directions where the direction chooses the kernel."""
    calls = []
    for backward in (False, True):
        for dtype in (torch.float32, torch.float16):
            general = [Call(c, dtype=dtype, backward=backward) for c in (*CHANNELS, *OTHER_CHANNELS[:2])]
            general.append(Call(12, step=False, dtype=dtype, backward=backward))
            calls += [replace(call, published=False) for call in general]
        for dtype in (torch.float32, torch.float64):
            calls += [Call(c, dtype=dtype, contiguous=False, backward=backward) for c in OTHER_CHANNELS]
            calls.append(Call(12, step=False, dtype=dtype, contiguous=False, backward=backward))
    return calls + known_kernels()


def known_kernels() -> list[Call]:
    """Calls that launch every kernel for maps of the published form."""
    calls = []
    for dtype, h_dtype in ((torch.float32, None), (torch.float32, torch.float16), (torch.float16, None)):
        for backward, inverse in product((False, True), (False, True)):
            call = Call(12, dtype=dtype, h_dtype=h_dtype, backward=backward, inverse=inverse)
            alone = ((12, False), (12, True), (24, True))
            calls += [replace(call, step=False, channels=c, channels_last=last) for c, last in alone]
            calls += [replace(call, channels=c, channels_last=last) for c in CHANNELS for last in (False, True)]
    return calls


def launches_of(call: Call, device: int, **options: Any) -> list[HostLaunch]:
    """The launches of a call on a GPU of that architecture, of which none is run; ``options`` of ``cuda_on_cpu``."""
    found: list[HostLaunch] = []
    with (
        cuda_on_cpu(device=device, **options),
        launches_go_to(library(), lambda launch, parameters: found.append(launch)),
    ):
        call.run("cuda")
    return found
