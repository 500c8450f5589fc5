"""The functional API: every operator with its reference. One file an operator, all of the same shape."""

from invflow.ops._affine_coupling import AffineForm, affine_coupling, affine_coupling_reference
from invflow.ops._channel_affine import channel_affine, channel_affine_reference
from invflow.ops._flow_step import flow_step, flow_step_reference
from invflow.ops._gaussian_split import gaussian_split

__all__ = [
    "AffineForm",
    "affine_coupling",
    "affine_coupling_reference",
    "channel_affine",
    "channel_affine_reference",
    "flow_step",
    "flow_step_reference",
    "gaussian_split",
]
