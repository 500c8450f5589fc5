"""The functional API: operators and their references in plain PyTorch.

There is one kernel, :func:`flow_step`; the other operators on states are that kernel with parts left out.
:func:`conv3x3` is a convolution for the networks between them.
"""

from invflow.ops._affine_coupling import affine_coupling
from invflow.ops._affine_form import AffineForm
from invflow.ops._channel_affine import channel_affine
from invflow.ops._conv3x3 import conv3x3, conv3x3_gradients
from invflow.ops._flow_step import flow_step
from invflow.ops._gaussian_split import gaussian_split
from invflow.ops._reference import affine_coupling_reference, channel_affine_reference, flow_step_reference

__all__ = [
    "AffineForm",
    "affine_coupling",
    "affine_coupling_reference",
    "channel_affine",
    "channel_affine_reference",
    "conv3x3",
    "conv3x3_gradients",
    "flow_step",
    "flow_step_reference",
    "gaussian_split",
]
