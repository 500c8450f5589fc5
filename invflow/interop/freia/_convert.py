"""Sequences of FrEIA's ``AllInOneBlock`` as flows of our layers, and back."""

from __future__ import annotations

import copy
from typing import Any

import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn

from invflow.bases import StandardNormal
from invflow.flow import Flow
from invflow.interop.freia import _adapters as adapters
from invflow.interop.freia._all_in_one import AllInOneBlock as OurBlock
from invflow.layers import AffineCoupling, FlowSequential, FlowStep, InvertibleConv1x1
from invflow.layers._current import current
from invflow.layers.protocol import Shape, output_shapes_of
from invflow.ops import AffineForm

__all__ = ["convert", "convert_back"]


@torch.no_grad()
def convert(inn: nn.Module) -> Flow:
    """Return a trained ``SequenceINN`` as a flow of our layers, with the base N(0, I) and the same values both ways.

    Every ``AllInOneBlock`` becomes a coupling and the actnorm and fixed rotation of a :class:`invflow.FlowStep`, which
    the coupling of the next block joins. All its options are taken: hard, soft and learned permutations, conditions,
    clamping, GIN, global scales. Any other module stays what it is, in an adapter (:func:`layer_of`). Parameters are
    copied.

    FrEIA counts the determinant of a soft permutation as 1, and its transpose as its inverse. So does the flow.

    Args:
        inn: its conditions, if any, are all one and the same, which the flow takes as context.

    Raises:
        TypeError: not a ``SequenceINN``.
        ValueError: blocks with different conditions.
    """
    if not isinstance(inn, SequenceINN):
        raise TypeError(f"convert: inn must be a FrEIA.framework.SequenceINN, got {type(inn).__name__}")
    conditions = {index for index in inn.conditions if index is not None}
    if len(conditions) > 1:
        raise ValueError(f"convert: a flow has one context, but the blocks have conditions {sorted(conditions)}")
    layers: list[nn.Module] = []
    before: FlowStep | None = None  # the end of the last block, which waits for a coupling
    for module in inn.module_list:
        if type(module) not in (AllInOneBlock, OurBlock) or module.in_channels < 2:
            layers += [] if before is None else [before]
            layers.append(adapters.layer_of(copy.deepcopy(module)))
            before = None
            continue
        coupling, end = _coupling_of(module), _end_of(module)
        if module.reverse_pre_permute:
            layers += [] if before is None else [before]
            before = None
            rotation: Any = end.conv1x1
            layers.append(_Rotation(rotation.weight, rotation.vectors, undone=True))
        if before is None:
            layers.append(coupling)
        else:
            before.coupling = coupling
            layers.append(before)
        before = end
    layers += [] if before is None else [before]
    converted = Flow(FlowSequential(layers), event_shape=tuple(inn.shapes[0]))
    return converted.train(inn.training)


@torch.no_grad()
def convert_back(flow: Flow) -> nn.Module:
    """Return a flow as a ``SequenceINN``, with the same values both ways.

    What :func:`convert` made of an ``AllInOneBlock`` becomes one again, with global scales of type ``"EXP"``. Any other
    layer stays ours, in a :class:`Block`. Parameters are copied.

    Args:
        flow: has one latent, the base N(0, I), and an ``event_shape``.

    Raises:
        ValueError: several latents, another base, or no ``event_shape``.
    """
    if type(flow.base) is not StandardNormal:
        raise ValueError(f"convert_back: base must be StandardNormal, got {type(flow.base).__name__}")
    if flow.event_shape is None or len(flow.latent_shapes()) > 1:
        raise ValueError("convert_back: flow must have an event_shape and one latent, as a SequenceINN has")
    parts = [part for layer in flow.transform for part in _parts_of(layer)]
    inn, shape = SequenceINN(*flow.event_shape), flow.event_shape
    while parts:
        reverse = _is_rotation(parts[0], undone=True)
        coupling, end = (*parts[reverse:], None, None)[:2]
        if _is_converted(coupling) and isinstance(end, FlowStep) and _is_rotation(end.conv1x1, undone=False):
            _append_block(inn, shape, coupling, end, reverse=reverse)
            parts = parts[reverse + 2 :]
        else:
            layer = parts.pop(0)
            _append_layer(inn, shape, layer)
            shape = output_shapes_of(layer, shape)[-1]
    back: nn.Module = inn.train(flow.training)
    return back


class _Subnet(nn.Module):
    """The network of an ``AllInOneBlock`` with its output as our coupling reads it: shifts first, all times 0.1."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.subnet = copy.deepcopy(block.subnet)
        self.clamp, self.gin = float(block.clamp), bool(block.GIN)

    @property
    def form(self) -> AffineForm:
        """The form of the coupling."""
        if self.gin:
            return AffineForm("exp", order="scale_then_shift", packing="split")
        return AffineForm("tanh_exp", order="scale_then_shift", packing="split", bound=self.clamp)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        a = 0.1 * self.subnet(x if context is None else torch.cat([x, context], 1))
        raw, shift = a.chunk(2, 1)
        if self.gin:
            # its mean is that of a sample; that of a volume-preserving AffineForm is of a pixel
            raw = self.clamp * torch.tanh(raw)
            raw = raw - raw.mean(tuple(range(1, raw.dim())), keepdim=True)
        return torch.cat([shift, raw], 1)


class _Rotation(InvertibleConv1x1):
    """The permutation of an ``AllInOneBlock``: a fixed orthogonal matrix, and reflections that are learned.

    Args:
        weight: (C, C), orthogonal, perhaps but for its rounding.
        vectors: (K, C), normal vectors of the reflections; ``None`` for none.
        undone: be the transpose.
    """

    def __init__(self, weight: nn.Parameter, vectors: nn.Parameter | None, *, undone: bool = False) -> None:
        super().__init__(len(weight))
        self.weight, self.vectors, self.undone = weight, vectors, undone

    def matrix(self) -> Tensor:
        """Return W (C, C) in float64."""
        matrix = self._rotation()
        return matrix.T.contiguous() if self.undone else matrix

    def inverse_matrix(self) -> Tensor:
        """Return the transpose of W (C, C) in float64."""
        matrix = self._rotation()
        return matrix if self.undone else matrix.T.contiguous()

    def log_abs_det(self) -> Tensor:
        """Return 0, a float64 scalar."""
        return torch.zeros((), dtype=torch.float64, device=self.weight.device)

    def sources(self) -> list[Tensor]:
        return [self.weight] if self.vectors is None else [self.weight, self.vectors]

    def _rotation(self) -> Tensor:
        matrix = current(self, "weight").to(torch.float64, copy=True)
        for vector in () if self.vectors is None else current(self, "vectors").double():
            matrix = matrix - 2 / vector.dot(vector) * (matrix @ vector).outer(vector)
        return matrix


def _coupling_of(block: Any) -> AffineCoupling:
    net = _Subnet(block)
    return AffineCoupling(
        block.in_channels,
        net,
        context_channels=block.condition_channels,
        form=net.form,
        start=block.splits[0],
    )


def _end_of(block: Any) -> FlowStep:
    """Return global scale, offset and permutation of a block as a flow step without coupling."""
    channels = block.in_channels
    weight = (block.w_0 if block.householder else block.w_perm).reshape(channels, channels)
    vectors = nn.Parameter(block.vk_householder.clone()) if block.householder else None
    rotation = _Rotation(nn.Parameter(weight.clone(), requires_grad=False), vectors)
    step = FlowStep(channels, conv1x1=rotation)
    step.actnorm.to(block.global_scale)
    scale = torch.ones_like(block.global_scale)
    if block.GIN:
        step.actnorm.log_scale.requires_grad_(False)
    else:
        scale = block.global_scale_activation(block.global_scale)
    step.actnorm.bias.copy_((block.global_offset / scale).flatten())
    step.actnorm.log_scale.copy_(scale.log().flatten())
    step.actnorm.mark_initialized()
    return step


def _parts_of(layer: nn.Module) -> list[nn.Module]:
    """Return a flow step with a rotation in two parts, before its coupling and the coupling; else the layer itself."""
    if type(layer) is not FlowStep or type(layer.conv1x1) is not _Rotation or layer.injector is not None:
        return [layer]
    end = FlowStep(layer.channels, conv1x1=layer.conv1x1)
    end.actnorm = layer.actnorm
    return [end] if layer.coupling is None else [end, layer.coupling]


def _is_rotation(layer: nn.Module | None, *, undone: bool) -> bool:
    return isinstance(layer, _Rotation) and layer.undone == undone


def _is_converted(layer: nn.Module | None) -> bool:
    return type(layer) is AffineCoupling and isinstance(layer.net, _Subnet)


def _append_block(inn: Any, shape: Shape, coupling: Any, end: Any, *, reverse: bool) -> None:
    rotation, actnorm, net = end.conv1x1, end.actnorm, coupling.net
    vectors, count = rotation.vectors, coupling.context_channels
    inn.append(
        AllInOneBlock,
        cond=0 if count else None,
        cond_shape=(count, *shape[1:]) if count else None,
        subnet_constructor=lambda *channels: copy.deepcopy(net.subnet),
        affine_clamping=net.clamp,
        gin_block=net.gin,
        global_affine_type="EXP",
        learned_householder_permutation=0 if vectors is None else len(vectors),
        reverse_permutation=reverse,
    )
    block = inn.module_list[-1].to(actnorm.bias)
    block.global_scale.copy_(actnorm.log_scale.reshape(block.global_scale.shape))
    block.global_offset.copy_((actnorm.bias * actnorm.log_scale.exp()).reshape(block.global_offset.shape))
    if vectors is None:
        block.w_perm.copy_(rotation.weight.reshape(block.w_perm.shape))
        block.w_perm_inv.copy_(rotation.weight.T.reshape(block.w_perm.shape))
    else:
        block.w_0.copy_(rotation.weight)
        block.vk_householder.copy_(vectors)


def _append_layer(inn: Any, shape: Shape, layer: nn.Module) -> None:
    if isinstance(layer, adapters.ModuleLayer):
        dims: Any = layer.module.dims_c
        condition = {"cond": 0, "cond_shape": dims[0]} if dims else {}
        inn.append(lambda dims_in, **options: copy.deepcopy(layer.module), **condition)
        return
    parts = (layer, getattr(layer, "injector", None), getattr(layer, "coupling", None))
    count = max(int(getattr(part, "context_channels", 0)) for part in parts)
    condition = {"cond": 0, "cond_shape": (count, *shape[1:])} if count else {}
    inn.append(adapters.Block, layer=copy.deepcopy(layer), **condition)
