"""Prior of latents that a context predicts: all channels are standardised by its mean and scale."""

from __future__ import annotations

from torch import Tensor, nn

from invflow.layers.folded import FoldedAffine
from invflow.layers.folding import folding
from invflow.layers.injector import AffineInjector
from invflow.layers.networks import NetFactory
from invflow.layers.zero_conv import ZeroConv2d
from invflow.ops import AffineForm
from invflow.ops._gaussian_split import PRIOR_FORM

__all__ = ["ContextPrior"]


class ContextPrior(AffineInjector):
    r"""Gaussian prior with mean and scale from a context: :math:`(\mu, s) = \text{net}(u)`,
    :math:`\epsilon = (x - \mu) / s`, :math:`\log\det = -\sum \log s`
    (Liang et al., Hierarchical Conditional Flow, 2021, section 3.3).

    The prior of :math:`\epsilon` is N(0, I), so :math:`\log p(x | u) = \log N(\epsilon; 0, I) + \log\det`. It is the
    end of a flow whose latents depend on a context. :class:`Split` predicts the prior of channels from the others.

    Args:
        channels: C, at least 1.
        net: maps the context (B', context_channels, *) to h (B', 2C, *), or a factory ``net(in_channels,
            out_channels)`` of such a network; default :class:`ZeroConv2d`, which takes images only.
        context_channels: channels of the context, at least 1.
        form: rule by which h becomes shift :math:`\mu` and scale; default: :math:`e^r`, packing ``"cross"``.

    Raises:
        ValueError: numbers of channels out of range, or a form that shifts before it scales.

    Shape:
        x (B, C, *), context (B', context_channels, *) -> epsilon (B, C, *), log_det (B,). B' divides B: each context
        serves B / B' successive states. A context (B', context_channels) is the same at every pixel.
    """

    def __init__(
        self,
        channels: int,
        net: nn.Module | NetFactory = ZeroConv2d,
        *,
        context_channels: int,
        form: AffineForm | None = None,
    ) -> None:
        form = PRIOR_FORM if form is None else form
        if form.order != "scale_then_shift":
            raise ValueError(f"ContextPrior: form must have the order 'scale_then_shift', got {form.order!r}")
        super().__init__(channels, net, context_channels=context_channels, form=form)

    @folding
    def folded(self) -> FoldedAffine:
        """Return a copy for inference and export: see :class:`~invflow.layers.Foldable`."""
        return FoldedAffine(self, standardises=True)

    def _map(self, x: Tensor, h: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        return super()._map(x, h, inverse=not inverse)
