"""invflow: invertible (normalizing-flow) layers for PyTorch with fused kernels and exact inverses."""

from invflow.backends import BACKENDS, can_run, current_backend, use_backend
from invflow.bases import Base, ClassNormal, DiagonalNormal, StandardNormal
from invflow.builders import glow
from invflow.flow import Flow
from invflow.layers import (
    ActNorm,
    AffineCoupling,
    AffineInjector,
    CheckerboardCoupling,
    ContextPrior,
    FlowSequential,
    FlowStep,
    HaarSqueeze,
    InvertibleConv1x1,
    InvertibleConv1x1LU,
    InvertibleLayer,
    Logit,
    Permutation,
    SplineCoupling,
    Split,
    Squeeze,
    UniformDequantization,
    VariationalDequantization,
    ZeroConv2d,
    coupling_net,
)
from invflow.likelihood import bits_per_dim, standard_normal_log_prob
from invflow.ops import AffineForm, affine_coupling, channel_affine, flow_step, gaussian_split

__version__ = "0.1.0"

__all__ = [
    "BACKENDS",
    "ActNorm",
    "AffineCoupling",
    "AffineForm",
    "AffineInjector",
    "Base",
    "CheckerboardCoupling",
    "ClassNormal",
    "ContextPrior",
    "DiagonalNormal",
    "Flow",
    "FlowSequential",
    "FlowStep",
    "HaarSqueeze",
    "InvertibleConv1x1",
    "InvertibleConv1x1LU",
    "InvertibleLayer",
    "Logit",
    "Permutation",
    "SplineCoupling",
    "Split",
    "Squeeze",
    "StandardNormal",
    "UniformDequantization",
    "VariationalDequantization",
    "ZeroConv2d",
    "affine_coupling",
    "bits_per_dim",
    "can_run",
    "channel_affine",
    "coupling_net",
    "current_backend",
    "flow_step",
    "gaussian_split",
    "glow",
    "standard_normal_log_prob",
    "use_backend",
]
