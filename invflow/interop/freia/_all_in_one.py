"""FrEIA's ``AllInOneBlock`` by our kernels, as a module of FrEIA."""

from __future__ import annotations

from invflow.interop._all_in_one import AllInOne
from invflow.interop._contract import missing_library

try:
    from FrEIA.modules import InvertibleModule
except ModuleNotFoundError as error:
    raise missing_library(error, "FrEIA") from None

__all__ = ["AllInOneBlock"]


class AllInOneBlock(AllInOne, InvertibleModule):
    r"""Stands in for ``FrEIA.modules.AllInOneBlock``: change the import, and nothing else.

    .. math::

        y = W \left(\Psi \odot \operatorname{coupling}(W^{-1} x) + t\right)

    where :math:`W^{-1}` is applied with ``reverse_permutation`` only. The coupling keeps the first ceil(C / 2)
    channels, and transforms the others by :math:`x e^{a \tanh(0.1 r)} + 0.1 t'` with the subnet's output (r, t').

    Names and shapes in the state dict are those of FrEIA, and so are the outputs. Coupling, scale and soft permutation
    are one pass over the state; hard ones of images reorder channels. A subnet that is an ``nn.Sequential`` of plain
    layers has its 3x3 convolutions computed by :func:`invflow.ops.conv3x3`. Blocks can be pickled if their subnets can.

    Soft permutations are drawn from another sequence of random numbers than FrEIA's, and also with more than 512
    channels at once.

    Args:
        dims_in: shape (C, \*) of the state without its batch, in a list; given by FrEIA.
        dims_c: shapes of the conditions; given by FrEIA.
        subnet_constructor: function ``(in_channels, out_channels)`` that returns a module.
        affine_clamping: a, the largest absolute log-scale of the coupling.
        gin_block: preserve volume: log-scales have the mean 0 in a sample, and there is no global scale (Sorrenson et
            al., GIN, 2020).
        global_affine_init: first value of :math:`\Psi`.
        global_affine_type: ``"SIGMOID"``, ``"SOFTPLUS"`` or ``"EXP"``, the activation that makes :math:`\Psi`.
        permute_soft: draw W from SO(C), not from the permutations.
        learned_householder_permutation: number of learned reflections that W is multiplied with.
        reverse_permutation: apply :math:`W^{-1}` before the coupling.

    Raises:
        ValueError: an argument out of its range.
    """
