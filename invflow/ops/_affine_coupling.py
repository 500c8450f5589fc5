"""``affine_coupling``: an elementwise map whose shift and scale a network computed, and its log-determinant."""

from __future__ import annotations

import torch
from torch import Tensor

from invflow._numerics import compute_dtype
from invflow.backends import select_backend
from invflow.backends.protocol import Call, Settings
from invflow.ops._affine_form import PUBLISHED_FORM, AffineForm
from invflow.ops._checks import check_raw_output, check_same_device, check_start, check_state
from invflow.ops._kernel import NO_MAP, run
from invflow.ops._ordinary import ordinary_call

__all__ = ["affine_coupling"]


def affine_coupling(
    x: Tensor,
    h: Tensor,
    form: AffineForm | None = None,
    *,
    start: int | None = None,
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Apply an elementwise map to channels ``start`` to ``start + C'`` of the state; the others pass unchanged.

    ``form`` makes a shift :math:`t` and a scale :math:`s > 0` of ``h``. In its default order,
    :math:`y = (x + t) s` and :math:`\log\det = \sum \log s`; the inverse is :math:`x = y / s - t`. An affine coupling
    transforms half of the channels (Dinh et al., Real NVP, 2017, eq. 7), an affine injector all of them
    (Lugmayr et al., SRFlow, 2020, eq. 6).

    Args:
        x: (B, C, *), a state of any rank from 2 on, any floating dtype and strides.
        h: (B', 2C', *), the network's raw output, any floating dtype and strides. B' is B or a divisor of it: each
            sample of ``h`` then serves B / B' successive samples of ``x``. With the scale ``"none"``, C' channels.
        form: rule by which ``h`` becomes shift and scale; default :class:`AffineForm`.
        start: the first channel that is transformed, in 0..C - C'; default C - C', the last channels.
        inverse: apply the inverse map, and return its log-determinant.
        backend: overrides :func:`invflow.use_backend` for this call.

    Returns:
        y (B, C, *) with dtype and memory format of ``x``, and log_det (B,), float64 if ``x`` is float64, else
        float32.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape or device, or an unknown backend.
        RuntimeError: an explicitly chosen backend that cannot run this.
    """
    found = ordinary_call(x, None, None, h, None, coupling_form=form, start=start, inverse=inverse, backend=backend)
    if found is not None:
        return found
    check_state(x)
    form = form or PUBLISHED_FORM
    count = check_raw_output(x, h, outputs=form.outputs)
    start = x.shape[1] - count if start is None else start
    check_start(x, start, count, form.outputs)
    check_same_device(x, h=h)
    h, prepared = form.prepared(h, compute_dtype(x.dtype))
    settings = Settings(prepared.for_kernels(), NO_MAP, start, inverse)
    y, log_det = run(Call(x, None, None, h, None, settings), select_backend(backend, "affine_coupling", x))
    return y, torch.zeros_like(log_det) if form.volume_preserving else log_det
