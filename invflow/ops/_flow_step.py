"""``flow_step``: everything between two coupling networks of a flow, in one pass over the state."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from invflow._numerics import compute_dtype
from invflow.backends import select_backend
from invflow.backends.protocol import Call, Settings
from invflow.ops._affine_form import PUBLISHED_FORM, AffineForm
from invflow.ops._checks import check_affine, check_raw_output, check_same_device, check_start, check_state
from invflow.ops._kernel import NO_MAP, run
from invflow.ops._ordinary import ordinary_call

__all__ = ["flow_step", "general_flow_step"]


def flow_step(
    x: Tensor,
    matrix: Tensor,
    shift: Tensor,
    coupling: Tensor | None = None,
    injector: Tensor | None = None,
    *,
    coupling_form: AffineForm | None = None,
    injector_form: AffineForm | None = None,
    start: int | None = None,
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Compute everything between two coupling networks in one pass, which reads and writes the state once.

    Encoding applies the affine coupling of one step, then the channel map (actnorm and 1x1 convolution) and the affine
    injector of the next. Decoding applies the inverse coupling, the inverse injector and the inverse channel map of one
    step:

    ====================  ============================================================
    ``inverse=False``     coupling, then :math:`M x + v`, then injector
    ``inverse=True``      inverse coupling, then inverse injector, then :math:`M x + v`
    ====================  ============================================================

    In the second case ``matrix`` and ``shift`` are already those of the inverse map. Coupling and injector are as in
    :func:`affine_coupling`. The caller computes the log-determinant of the channel map, as in :func:`channel_affine`.

    Args:
        x: (B, C, *), a state of any rank from 2 on, any floating dtype and strides.
        matrix: M (C, C), float64 if ``x`` is, else float32.
        shift: v (C,), the same dtype as ``matrix``.
        coupling: (B, 2C', *), raw output of the coupling's network; ``None`` leaves the coupling out.
        injector: (B, 2C, *), raw output of the injector's network; ``None`` leaves the injector out.
        coupling_form: rule by which ``coupling`` becomes shift and scale; default :class:`AffineForm`.
        injector_form: likewise for ``injector``.
        start: the first channel that the coupling transforms; default C - C', the last channels.
        inverse: take the second order, with inverse coupling and injector.
        backend: overrides :func:`invflow.use_backend` for this call.

    With the scale ``"none"``, ``coupling`` has C' and ``injector`` C channels. The log-determinant of a
    volume-preserving form is zero up to rounding.

    The batch of ``coupling`` and ``injector`` may be a divisor B' of B: each of their samples then serves B / B'
    successive samples of ``x``.

    Returns:
        y (B, C, *) with dtype and memory format of ``x``, and log_det (B,) of coupling and injector, float64 if
        ``x`` is float64, else float32. Half-precision states are computed in float32 and rounded once.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape or device, or an unknown backend.
        RuntimeError: an explicitly chosen backend that cannot run this.
    """
    given = x, matrix, shift, coupling, injector
    forms: Any = {
        "coupling_form": coupling_form,
        "injector_form": injector_form,
        "start": start,
        "inverse": inverse,
        "backend": backend,
    }
    found = None if matrix is None else ordinary_call(*given, **forms)
    return general_flow_step(*given, **forms) if found is None else found


def general_flow_step(
    x: Tensor,
    matrix: Tensor,
    shift: Tensor,
    coupling: Tensor | None,
    injector: Tensor | None,
    *,
    coupling_form: AffineForm | None,
    injector_form: AffineForm | None,
    start: int | None,
    inverse: bool,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`flow_step` where :func:`ordinary_call` was tried; arguments and errors are the same."""
    check_state(x)
    check_affine(x, matrix, shift)
    coupling_form, injector_form = coupling_form or PUBLISHED_FORM, injector_form or PUBLISHED_FORM
    if coupling is not None:
        outputs = coupling_form.outputs
        count = check_raw_output(x, coupling, "coupling", outputs)
        start = x.shape[1] - count if start is None else start
        check_start(x, start, count, outputs)
        if coupling_form.volume_preserving:
            coupling, coupling_form = coupling_form.prepared(coupling, compute_dtype(x.dtype))
    if injector is not None:
        outputs = injector_form.outputs
        if check_raw_output(x, injector, "injector", outputs) != x.shape[1]:
            raise ValueError(f"injector must have {outputs * x.shape[1]} channels, got {injector.shape[1]}")
        if injector_form.volume_preserving:
            injector, injector_form = injector_form.prepared(injector, compute_dtype(x.dtype))
    check_same_device(x, matrix=matrix, shift=shift, coupling=coupling, injector=injector)
    settings = Settings(
        NO_MAP if coupling is None else coupling_form.for_kernels(),
        NO_MAP if injector is None else injector_form.for_kernels(),
        start or 0,
        inverse,
    )
    return run(Call(x, matrix, shift, coupling, injector, settings), select_backend(backend, "flow_step", x))
