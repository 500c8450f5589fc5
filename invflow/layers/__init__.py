"""Invertible layers: the vocabulary of flows, one concept a file.

Every layer is an ``nn.Module`` with ``forward(x, context=None) -> (z, log_det)`` and
``inverse(z, context=None) -> (x, log_det)``. ``log_det`` (B,) is the natural logarithm of the absolute Jacobian
determinant of the map that was called. It is float64 for a float64 state, else float32.

:class:`InvertibleLayer` is the whole contract. :class:`~invflow.layers.Reversible`, :class:`~invflow.layers.Fusable`
and :class:`~invflow.layers.Conditionable` are optional capabilities that save memory or time.
"""

from invflow.layers._factors import FactorStore
from invflow.layers.actnorm import ActNorm
from invflow.layers.checkerboard import CheckerboardCoupling
from invflow.layers.conditioning import condition
from invflow.layers.conv1x1 import InvertibleConv1x1, InvertibleConv1x1LU, check_weights
from invflow.layers.coupling import AffineCoupling
from invflow.layers.coupling_net import coupling_net
from invflow.layers.dequantization import UniformDequantization, VariationalDequantization
from invflow.layers.flow_step import FlowStep
from invflow.layers.folding import fold
from invflow.layers.haar import HaarSqueeze
from invflow.layers.injector import AffineInjector
from invflow.layers.inverse import Inverse
from invflow.layers.logit import Logit
from invflow.layers.networks import NetFactory, network_of
from invflow.layers.permutation import Permutation
from invflow.layers.prior import ContextPrior
from invflow.layers.protocol import (
    Conditionable,
    Foldable,
    Fusable,
    InvertibleLayer,
    PendingCoupling,
    Rerun,
    Reversible,
    SharedContext,
    Stage,
)
from invflow.layers.sequential import FlowSequential, InverseStep
from invflow.layers.spline import SplineCoupling
from invflow.layers.split import Split
from invflow.layers.squeeze import Squeeze
from invflow.layers.zero_conv import ZeroConv2d

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "AffineInjector",
    "CheckerboardCoupling",
    "Conditionable",
    "ContextPrior",
    "FactorStore",
    "FlowSequential",
    "FlowStep",
    "Foldable",
    "Fusable",
    "HaarSqueeze",
    "Inverse",
    "InverseStep",
    "InvertibleConv1x1",
    "InvertibleConv1x1LU",
    "InvertibleLayer",
    "Logit",
    "NetFactory",
    "PendingCoupling",
    "Permutation",
    "Rerun",
    "Reversible",
    "SharedContext",
    "SplineCoupling",
    "Split",
    "Squeeze",
    "Stage",
    "UniformDequantization",
    "VariationalDequantization",
    "ZeroConv2d",
    "check_weights",
    "condition",
    "coupling_net",
    "fold",
    "network_of",
]
