"""``gaussian_split``: variables standardised by a Gaussian prior that a network predicted, and back."""

from __future__ import annotations

from torch import Tensor

from invflow.backends import select_backend
from invflow.backends.protocol import Call, Settings
from invflow.ops._affine_form import AffineForm
from invflow.ops._checks import check_raw_output, check_same_device, check_state
from invflow.ops._kernel import NO_MAP, run

__all__ = ["PRIOR_FORM", "gaussian_split"]

#: The form that makes x of epsilon; its inverse standardises.
PRIOR_FORM = AffineForm("exp", order="scale_then_shift", packing="cross")
_FOR_KERNELS = PRIOR_FORM.for_kernels()


def gaussian_split(x: Tensor, h: Tensor, *, inverse: bool = False, backend: str | None = None) -> tuple[Tensor, Tensor]:
    r"""Standardise variables by their Gaussian prior: :math:`\epsilon = (x - \mu) e^{-l}`,
    :math:`\log\det = -\sum l`. Then :math:`\log p(x) = \log N(\epsilon; 0, I) + \log\det`
    (Dinh et al., Real NVP, 2017, section 3.6; Kingma & Dhariwal, Glow, 2018).

    It is the inverse of an affine coupling with the scale :math:`e^l` and the shift :math:`\mu`, and runs its kernel.

    Args:
        x: (B, C, *), a state of any rank from 2 on, any floating dtype and strides; :math:`\epsilon` if ``inverse``.
        h: (B', 2C, *), the network's output: means in even, log standard deviations :math:`l` in odd channels. B' is
            B or a divisor of it, as in :func:`affine_coupling`.
        inverse: compute :math:`x = \epsilon e^l + \mu` and its log-determinant :math:`\sum l` instead.
        backend: overrides :func:`invflow.use_backend` for this call.

    Returns:
        :math:`\epsilon` (or x) like ``x``, and log_det (B,), float64 if ``x`` is float64, else float32.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape or device, or an unknown backend.
        RuntimeError: an explicitly chosen backend that cannot run this.
    """
    check_state(x)
    check_state(h, "h")
    if h.shape[1] != 2 * x.shape[1]:
        raise ValueError(f"h must have {2 * x.shape[1]} channels for x with {x.shape[1]}, got {h.shape[1]}")
    check_raw_output(x, h)
    check_same_device(x, h=h)
    settings = Settings(_FOR_KERNELS, NO_MAP, 0, not inverse)
    return run(Call(x, None, None, h, None, settings), select_backend(backend, "gaussian_split", x))
