"""``channel_affine``: one channel map at every pixel, such as an actnorm followed by a 1x1 convolution."""

from __future__ import annotations

from torch import Tensor

from invflow.backends import select_backend
from invflow.backends.protocol import Call, Settings
from invflow.ops._checks import check_affine, check_same_device, check_state
from invflow.ops._kernel import NO_MAP, run
from invflow.ops._ordinary import ordinary_call

__all__ = ["channel_affine"]

_SETTINGS = Settings(NO_MAP, NO_MAP, 0, False)


def channel_affine(x: Tensor, matrix: Tensor, shift: Tensor, *, backend: str | None = None) -> Tensor:
    r"""Apply a channel map, the same at every pixel p: :math:`y_{bop} = v_o + \sum_i M_{oi} x_{bip}`.

    An actnorm followed by a 1x1 convolution is this map with :math:`M = W \operatorname{diag}(e^s)`,
    :math:`v = M b`. Its inverse has :math:`M^{-1}` and :math:`-M^{-1} v`. The log-determinant
    of N pixels, :math:`N \log|\det M|`, does not depend on ``x``. The caller computes it (Kingma & Dhariwal, Glow,
    2018, table 1).

    Args:
        x: (B, C, *), a state of any rank from 2 on, any floating dtype and strides.
        matrix: (C, C), float64 if ``x`` is, else float32.
        shift: (C,), the same dtype as ``matrix``.
        backend: overrides :func:`invflow.use_backend` for this call.

    Returns:
        (B, C, *), dtype and memory format of ``x``. Half-precision states are computed in float32.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape or device, or an unknown backend.
        RuntimeError: an explicitly chosen backend that cannot run this.
    """
    found = ordinary_call(x, matrix, shift, None, None, backend=backend)
    if found is not None:
        return found[0]
    check_state(x)
    check_affine(x, matrix, shift)
    check_same_device(x, matrix=matrix, shift=shift)
    return run(Call(x, matrix, shift, None, None, _SETTINGS), select_backend(backend, "channel_affine", x))[0]
