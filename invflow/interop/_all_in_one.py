"""The block of FrEIA's ``AllInOneBlock``, computed by our kernels; it needs no FrEIA."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invflow.interop._hard_permutation import order_of, permuted
from invflow.interop._subnets import perceptron_of, shift_and_scale
from invflow.interop._vector_block import VectorBlock, scale_of
from invflow.layers._current import current
from invflow.ops import AffineForm, affine_coupling, channel_affine, flow_step
from invflow.ops._transforms import is_exported

__all__ = ["AllInOne"]

#: Clamps that the kernels take; others are computed before.
_LEAST_CLAMP, _LARGEST_CLAMP = 1e-30, 80.0
_SCALES = ("SIGMOID", "SOFTPLUS", "EXP")


class AllInOne(nn.Module):
    """Coupling, global affine map and permutation with the parameters, options and outputs of FrEIA's block.

    See :class:`invflow.interop.freia.AllInOneBlock`, which is this as a module of FrEIA.
    """

    def __init__(
        self,
        dims_in: Sequence[Sequence[int]],
        dims_c: Sequence[Sequence[int]] | None = None,
        subnet_constructor: Callable[[int, int], nn.Module] | None = None,
        affine_clamping: float = 2.0,
        gin_block: bool = False,
        global_affine_init: float = 1.0,
        global_affine_type: str = "SOFTPLUS",
        permute_soft: bool = False,
        learned_householder_permutation: int = 0,
        reverse_permutation: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.dims_in = list(dims_in)
        self.dims_c = list(dims_c or ())
        if len(self.dims_in) != 1:
            raise ValueError(f"dims_in must have one shape, got {len(self.dims_in)}")
        channels, *pixels = self.dims_in[0]
        if len(pixels) > 3:
            raise ValueError(f"dims_in must hold a shape of 1 to 4 dimensions, got {tuple(self.dims_in[0])}")
        for shape in self.dims_c:
            if list(shape[1:]) != pixels:
                raise ValueError(
                    f"dims_c must have the sizes of dims_in beyond channels, {tuple(pixels)}, got {tuple(shape)}"
                )
        if not callable(subnet_constructor):
            raise ValueError(
                "subnet_constructor must be a function (in_channels, out_channels) that returns a torch.nn.Module, got "
                f"{subnet_constructor!r}"
            )
        if global_affine_type not in _SCALES:
            raise ValueError(f"global_affine_type must be one of {', '.join(_SCALES)}, got {global_affine_type!r}")
        self.in_channels, self.input_rank = channels, len(pixels)
        self.splits = [channels - channels // 2, channels // 2]
        self.conditional = bool(self.dims_c)
        self.condition_channels = sum(shape[0] for shape in self.dims_c)
        self.clamp, self.GIN = affine_clamping, gin_block
        self.reverse_pre_permute, self.householder = reverse_permutation, learned_householder_permutation
        self.global_affine_type = global_affine_type

        ones = [1] * self.input_rank
        raw = _raw_scale(global_affine_init, global_affine_type)
        self.global_scale = nn.Parameter(torch.full((1, channels, *ones), raw))
        self.global_offset = nn.Parameter(torch.zeros(1, channels, *ones))
        matrix = torch.from_numpy(_rotation(channels) if permute_soft else _permutation(channels)).float()
        self.w_perm: Any
        self.w_perm_inv: Any
        if self.householder:
            self.vk_householder = nn.Parameter(0.2 * torch.randn(self.householder, channels))
            self.w_perm = self.w_perm_inv = None  # derived from the reflections
            self.w_0 = nn.Parameter(matrix, requires_grad=False)
        else:
            self.w_perm = nn.Parameter(matrix.view(channels, channels, *ones), requires_grad=False)
            inverse = matrix.T.contiguous().view(channels, channels, *ones)
            self.w_perm_inv = nn.Parameter(inverse, requires_grad=False)
        self.subnet = subnet_constructor(self.splits[0] + self.condition_channels, 2 * self.splits[1])

    def forward(
        self, x: Sequence[Tensor], c: Sequence[Tensor] | None = None, rev: bool = False, jac: bool = True
    ) -> tuple[tuple[Tensor], Tensor]:
        """Return the output (B, C, *), or the input if ``rev``, in a tuple, and log_det (B,) of the map that is called.

        Args:
            x: the state (B, C, *), in a tuple or list.
            c: the conditions, each (B, K, *) of the same pixels.
            rev: compute the inverse.
            jac: the log-determinant is returned in any case, as by FrEIA.
        """
        (state,) = x
        if state.dim() == 2:
            block = self._vector_block("w_perm_inv" if rev else "w_perm")
            if block is not None:
                condition = None if not c else c[0] if len(c) == 1 else torch.cat([*c], 1)
                found = (block.inverse if rev else block.forward)(state, condition)
                if found is not None:
                    return (found[0],), found[1]
        forwards, backwards = self._matrices(state)
        offset = self._weights(self.global_offset, state).flatten()
        scale = None if self.GIN else self.global_scale_activation(self._weights(self.global_scale, state)).flatten()
        form = self._form()
        if rev:
            inverse, shift = backwards, -offset
            if scale is not None:
                inverse, shift = inverse / scale[:, None], shift / scale
            state = _mapped(state, inverse, shift)
            h = self._raw(state, c or ())
            y, log_det = self._coupled(state, h, form, inverse=True)
            if self.reverse_pre_permute:
                y = _mapped(y, forwards)
        else:
            if self.reverse_pre_permute:
                state = _mapped(state, backwards)
            h = self._raw(state, c or ())
            order = order_of(forwards, state)
            matrix, shift = forwards if scale is None else forwards * scale, forwards.mv(offset)
            if order is not None:
                state, log_det = self._coupled(state, h, form, inverse=False)
                y = _scaled(permuted(state, order), scale if scale is None else scale[order], shift)
            elif h is None or _is_rows(state, matrix):
                state, log_det = self._coupled(state, h, form, inverse=False)
                y = _mapped(state, matrix, shift)
            else:
                y, log_det = flow_step(
                    state, matrix, shift, h, coupling_form=form, start=self.splits[0], backend=_backend()
                )
        if scale is not None:
            term = scale.log().sum() * math.prod(y.shape[2:])
            log_det = log_det - term if rev else log_det + term
        return (y,), log_det

    def output_dims(self, input_dims: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """Return the shapes of the outputs, which are those of the inputs."""
        return input_dims

    def global_scale_activation(self, raw: Tensor) -> Tensor:
        """Return the global scale of its raw parameter."""
        return scale_of(raw, self.global_affine_type)

    def _vector_block(self, name: str) -> VectorBlock | None:
        """Return what computes vectors in few calls, or ``None`` where they go the general way."""
        if self.householder or self.reverse_pre_permute or self._is_computed_before() or not self.splits[1]:
            return None
        layers = perceptron_of(self.subnet)
        if layers is None:
            return None
        matrix = current(self, name)
        if matrix.requires_grad:
            return None
        scale, offset = current(self, "global_scale"), current(self, "global_offset")
        return VectorBlock(scale, offset, matrix, layers, self.global_affine_type, float(self.clamp))

    def _coupled(self, state: Tensor, h: Tensor | None, form: AffineForm, *, inverse: bool) -> tuple[Tensor, Tensor]:
        if h is None:
            return state, _no_log_det(state)
        if _is_rows(state, h) and self.splits[0] == self.splits[1] and _backend() is None:
            # to the kernels the halves of a vector are two channels with pixels side by side
            halves = state.unflatten(1, (2, -1)), h.unflatten(1, (2, -1))
            y, log_det = affine_coupling(*halves, form, start=1, inverse=inverse, backend=_backend())
            return y.flatten(1), log_det
        return affine_coupling(state, h, form, start=self.splits[0], inverse=inverse, backend=_backend())

    def _raw(self, state: Tensor, conditions: Sequence[Tensor]) -> Tensor | None:
        """Return shifts and raw scales, or ``None`` where one channel leaves none to transform."""
        if not self.splits[1]:
            return None
        half = state[:, : self.splits[0]]
        h = shift_and_scale(self.subnet, torch.cat([half, *conditions], 1) if self.conditional else half)
        if not self._is_computed_before():
            return h
        shift, raw = h.chunk(2, 1)
        raw = self.clamp * torch.tanh(raw)
        if self.GIN:
            # the mean is that of a sample, not of a pixel as in a volume-preserving AffineForm
            raw = raw - raw.mean(tuple(range(1, raw.dim())), keepdim=True)
        return torch.cat([shift, raw], 1)

    def _is_computed_before(self) -> bool:
        return self.GIN or not _LEAST_CLAMP <= self.clamp <= _LARGEST_CLAMP

    def _form(self) -> AffineForm:
        if self._is_computed_before():
            return AffineForm("exp", order="scale_then_shift", packing="split")
        return _tanh_form(float(self.clamp))

    def _matrices(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the permutation (C, C) and its inverse."""
        channels = self.in_channels
        if not self.householder:
            return (
                self._weights(current(self, "w_perm"), state).view(channels, channels),
                self._weights(current(self, "w_perm_inv"), state).view(channels, channels),
            )
        matrix = self._weights(current(self, "w_0"), state)
        for vector in self._weights(current(self, "vk_householder"), state):
            matrix = matrix - 2 / vector.dot(vector) * (matrix @ vector).outer(vector)
        return matrix, matrix.T.contiguous()

    @staticmethod
    def _weights(parameter: Tensor, state: Tensor) -> Tensor:
        """Return a parameter in the dtype that the kernels take for the state."""
        dtype = torch.float64 if state.dtype == torch.float64 else torch.float32
        return parameter if parameter.dtype == dtype else parameter.to(dtype)


def _backend() -> str | None:
    """Return the backend of plain PyTorch operations for exporters, which know no others."""
    return "reference" if is_exported() else None


def _is_rows(state: Tensor, weights: Tensor) -> bool:
    """Return whether vectors are mapped by a product of matrices and coupled by themselves: faster on a CPU."""
    if state.dim() != 2 or not state.is_cpu or state.dtype != weights.dtype:
        return False
    return not torch.is_autocast_enabled("cpu")  # which would give a product its own dtype


def _mapped(state: Tensor, matrix: Tensor, shift: Tensor | None = None) -> Tensor:
    if _is_rows(state, matrix):
        return F.linear(state, matrix, shift)
    return channel_affine(state, matrix, matrix.new_zeros(len(matrix)) if shift is None else shift, backend=_backend())


def _scaled(state: Tensor, scale: Tensor | None, shift: Tensor) -> Tensor:
    """Return a state times the scales of its channels, plus their shifts."""
    places = (-1, *[1] * (state.dim() - 2))
    shift = shift.to(state.dtype).view(places)
    return state + shift if scale is None else torch.addcmul(shift, state, scale.to(state.dtype).view(places))


_FORMS: dict[float, AffineForm] = {}


def _tanh_form(clamp: float) -> AffineForm:
    """Return the form of a clamp; made once, since its checks take as long as a small state."""
    form = _FORMS.get(clamp)
    if form is None:
        form = _FORMS[clamp] = AffineForm("tanh_exp", order="scale_then_shift", packing="split", bound=clamp)
    return form


def _no_log_det(state: Tensor) -> Tensor:
    dtype = torch.float64 if state.dtype == torch.float64 else torch.float32
    return torch.zeros(len(state), dtype=dtype, device=state.device)


def _raw_scale(scale: float, kind: str) -> float:
    """Return the raw parameter whose activation is a scale."""
    largest = 10.0 if kind == "SIGMOID" else math.inf
    if not 0 < scale < largest:
        limit = f"between 0 and {largest:g}, exclusive," if kind == "SIGMOID" else "positive and finite"
        raise ValueError(f"global_affine_init must be {limit} for {kind}, got {scale}")
    if kind == "SIGMOID":
        return 2.0 - math.log(10.0 / scale - 1.0)
    if kind == "SOFTPLUS":
        half = 5.0 * scale  # log(exp(half) - 1) without overflow
        return 2.0 * (half + math.log(-math.expm1(-half)))
    return math.log(scale)


def _permutation(channels: int) -> Any:
    matrix = np.zeros((channels, channels))
    # from the generator that FrEIA draws from: a seed makes the same permutations
    matrix[np.arange(channels), np.random.permutation(channels)] = 1.0  # noqa: NPY002
    return matrix


def _rotation(channels: int) -> Any:
    """Return a matrix from the uniform distribution of SO(C) (Mezzadri, 2007)."""
    q, r = np.linalg.qr(np.random.standard_normal((channels, channels)))  # noqa: NPY002
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    if np.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    return q
