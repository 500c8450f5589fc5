"""Messages for wrong arguments, one row each."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from layer_cases import coupling, injector
from torch import nn

import invflow
from invflow import (
    ActNorm,
    AffineCoupling,
    AffineForm,
    AffineInjector,
    FlowSequential,
    FlowStep,
    InvertibleConv1x1,
    InvertibleConv1x1LU,
    Split,
    Squeeze,
    affine_coupling,
    bits_per_dim,
    channel_affine,
    gaussian_split,
    standard_normal_log_prob,
)
from invflow.testing import assert_invertible, assert_log_det


def state(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(*(shape or (2, 4, 3, 3)), **options)


def affine(x=None, matrix=None, shift=None):
    return channel_affine(
        state() if x is None else x,
        torch.eye(4) if matrix is None else matrix,
        torch.zeros(4) if shift is None else shift,
    )


def step(matrix=None, shift=None, **options):
    matrix = torch.eye(4) if matrix is None else matrix
    return invflow.flow_step(state(), matrix, torch.zeros(4) if shift is None else shift, **options)


def conditional(context=None, x=None):
    return coupling(4, context_channels=3)(state() if x is None else x, context)


def split_inverse(*latents):
    return Split(4).inverse(list(latents))


class NoInverse(nn.Module):
    pass


class WrongNet(nn.Module):
    def forward(self, x):
        return torch.zeros(x.shape[0], 6, *x.shape[2:])


class Broken(nn.Module):
    """An "invertible" layer of which one thing is wrong."""

    def __init__(self, **wrong):
        super().__init__()
        self.wrong = wrong

    def forward(self, x, context=None):
        return x, torch.full(x.shape[:1], self.wrong.get("log_det", 0.0))

    def inverse(self, z, context=None):
        x = z + self.wrong.get("shift", 0.0)
        return self.wrong.get("change", lambda x: x)(x), z.new_zeros(self.wrong.get("size", len(z)))


@dataclass
class Row:
    """A call and what it raises; ``message`` is a part of it, exactly."""

    call: Any
    error: type[Exception]
    message: str


RANK = "must have at least 2 dimensions (batch, channels, ...), got shape (4,)"
NAMES = "must be one of 'auto', 'cpu', 'cuda', 'triton', 'reference', got 'gpu'"

ROWS = [
    # the operators
    Row(lambda: affine(state(4)), ValueError, f"x {RANK}"),
    Row(lambda: affine([1.0]), TypeError, "x must be a torch.Tensor, got list"),
    Row(lambda: affine(state(dtype=torch.long)), TypeError, "x must have a floating-point dtype, got torch.int64"),
    Row(lambda: affine(state(dtype=torch.cfloat)), TypeError, "a floating-point dtype, got torch.complex64"),
    Row(
        lambda: affine(matrix=torch.eye(3)),
        ValueError,
        "matrix must have shape (4, 4) for x with 4 channels, got (3, 3)",
    ),
    Row(lambda: affine(matrix=torch.zeros(4)), ValueError, "matrix must have shape (4, 4) for x with 4 channels"),
    Row(lambda: affine(shift=torch.zeros(3)), ValueError, "shift must have shape (4,) for x with 4 channels, got (3,)"),
    Row(
        lambda: affine(matrix=torch.eye(4).double()),
        TypeError,
        "matrix and shift must be torch.float32 for x of torch.float32, got torch.float64 and torch.float32",
    ),
    Row(lambda: affine(state().double()), TypeError, "matrix and shift must be torch.float64 for x of torch.float64"),
    Row(
        lambda: affine(state().half(), torch.eye(4).half(), torch.zeros(4).half()),
        TypeError,
        "matrix and shift must be torch.float32 for x of torch.float16",
    ),
    Row(
        lambda: affine(matrix=torch.eye(4, device="meta")),
        ValueError,
        "matrix must be on the device of x, cpu, got meta",
    ),
    Row(lambda: affine(state(device="meta")), ValueError, "matrix must be on the device of x, meta, got cpu"),
    Row(lambda: channel_affine(state(), torch.eye(4), torch.zeros(4), backend="gpu"), ValueError, f"backend {NAMES}"),
    Row(lambda: affine_coupling(state(4), state()), ValueError, f"x {RANK}"),
    Row(lambda: affine_coupling(state(), state(4)), ValueError, f"h {RANK}"),
    Row(lambda: affine_coupling(state(), state(dtype=torch.int32)), TypeError, "h must have a floating-point dtype"),
    Row(lambda: affine_coupling(state(), None), TypeError, "h must be a torch.Tensor, got NoneType"),
    Row(
        lambda: affine_coupling(state(), state(2, 5, 3, 3)),
        ValueError,
        "h must have shape (2 or a divisor, an even number, 3, 3) for x of shape (2, 4, 3, 3), got (2, 5, 3, 3)",
    ),
    Row(lambda: affine_coupling(state(), state(3, 4, 3, 3)), ValueError, "got (3, 4, 3, 3)"),
    Row(lambda: affine_coupling(state(), state(0, 4, 3, 3)), ValueError, "got (0, 4, 3, 3)"),
    Row(lambda: affine_coupling(state(), state(2, 4, 3, 1)), ValueError, "got (2, 4, 3, 1)"),
    Row(
        lambda: affine_coupling(state(), state(), start=3),
        ValueError,
        "start must be in 0..2 for x with 4 channels and h with 4, got 3",
    ),
    Row(lambda: affine_coupling(state(), state(), start=-1), ValueError, "got -1"),
    Row(
        lambda: affine_coupling(state(), state(2, 10, 3, 3)),
        ValueError,
        "h must have at most 8 channels for x with 4 channels, got 10",
    ),
    Row(
        lambda: affine_coupling(state(), state(device="meta")),
        ValueError,
        "h must be on the device of x, cpu, got meta",
    ),
    Row(lambda: affine_coupling(state(), state(), backend="gpu"), ValueError, f"backend {NAMES}"),
    Row(
        lambda: step(coupling=state(2, 6, 3, 1)), ValueError, "coupling must have shape (2 or a divisor, an even number"
    ),
    Row(lambda: step(coupling=state(2, 4, 3, 3), start=3), ValueError, "start must be in 0..2 for x with 4 channels"),
    Row(lambda: step(injector=state(2, 6, 3, 3)), ValueError, "injector must have 8 channels, got 6"),
    Row(lambda: step(injector=state(2, 8, 3, 1)), ValueError, "injector must have shape (2 or a divisor, an even numb"),
    Row(
        lambda: step(injector=state(2, 8, 3, 3, device="meta")), ValueError, "injector must be on the device of x, cpu"
    ),
    Row(
        lambda: step(matrix=torch.eye(3)), ValueError, "matrix must have shape (4, 4) for x with 4 channels, got (3, 3)"
    ),
    Row(lambda: step(shift=torch.zeros(4).double()), TypeError, "matrix and shift must be torch.float32"),
    Row(lambda: step(backend="gpu"), ValueError, f"backend {NAMES}"),
    Row(lambda: gaussian_split(state(), state()), ValueError, "h must have 8 channels for x with 4, got 4"),
    Row(lambda: gaussian_split(state(), None), TypeError, "h must be a torch.Tensor, got NoneType"),
    Row(
        lambda: FlowSequential([ActNorm(2)], memory="none"),
        ValueError,
        "memory must be 'store' or 'invert', got 'none'",
    ),
    Row(lambda: invflow.use_backend("gpu"), ValueError, f"backend {NAMES}"),
    # the affine form
    Row(
        lambda: AffineForm("tanh"),
        ValueError,
        "scale must be one of 'sigmoid', 'exp', "
        "'bounded_exp', 'tanh_exp', 'bounded_atan_exp', 'atan_exp', 'none', got 'tanh'",
    ),
    Row(
        lambda: AffineForm(order="scale"),
        ValueError,
        "order must be one of 'shift_then_scale', 'scale_then_shift', got 'scale'",
    ),
    Row(lambda: AffineForm(packing="half"), ValueError, "packing must be one of 'cross', 'split', got 'half'"),
    Row(lambda: AffineForm(eps=-1e-3), ValueError, "eps must be finite and at least 0, got -0.001"),
    Row(lambda: AffineForm(eps=float("nan")), ValueError, "eps must be finite and at least 0, got nan"),
    Row(lambda: AffineForm(bound=0.0), ValueError, "bound must be finite and greater than 0, got 0.0"),
    Row(lambda: AffineForm(bound=float("inf")), ValueError, "bound must be finite and greater than 0, got inf"),
    Row(lambda: AffineForm(eps=1e-42), ValueError, "eps must be 0 or between 1e-30 and 1e4, got 1e-42"),
    Row(lambda: AffineForm(eps=1.1e4), ValueError, "eps must be 0 or between 1e-30 and 1e4, got 11000.0"),
    Row(lambda: AffineForm(bound=81), ValueError, "bound must be between 1e-30 and 80, got 81.0"),
    Row(lambda: AffineForm(bound=1e-31), ValueError, "bound must be between 1e-30 and 80, got 1e-31"),
    Row(lambda: AffineForm(eps=True), TypeError, "eps must be a number, got bool"),
    Row(lambda: AffineForm(eps="1e-4"), TypeError, "eps must be a number, got str"),
    Row(lambda: AffineForm(bound=torch.tensor(2.0)), TypeError, "bound must be a number, got Tensor"),
    Row(lambda: AffineForm(bound=None), TypeError, "bound must be a number, got NoneType"),
    Row(
        lambda: affine_coupling(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3).to(torch.float8_e4m3fn)),
        TypeError,
        "h must be float32, float64, bfloat16 or float16, got torch.float8_e4m3fn",
    ),
    # channels and factors
    Row(lambda: ActNorm(0), ValueError, "ActNorm: channels must be at least 1, got 0"),
    Row(lambda: InvertibleConv1x1(0), ValueError, "InvertibleConv1x1: channels must be at least 1, got 0"),
    Row(lambda: InvertibleConv1x1LU(-1), ValueError, "InvertibleConv1x1LU: channels must be at least 1, got -1"),
    Row(lambda: AffineCoupling(1, WrongNet()), ValueError, "AffineCoupling: channels must be at least 2, got 1"),
    Row(
        lambda: AffineInjector(0, WrongNet(), context_channels=1),
        ValueError,
        "AffineInjector: channels must be at least 1, got 0",
    ),
    Row(
        lambda: AffineInjector(4, WrongNet(), context_channels=0),
        ValueError,
        "AffineInjector: context_channels must be at least 1, got 0",
    ),
    Row(lambda: FlowStep(0), ValueError, "FlowStep: channels must be at least 1, got 0"),
    Row(lambda: FlowStep(4, coupling=coupling(6)), ValueError, "FlowStep: coupling must have 4 channels, got 6"),
    Row(lambda: FlowStep(4, injector=injector(2)), ValueError, "FlowStep: injector must have 4 channels, got 2"),
    Row(lambda: FlowStep(4, conv1x1=InvertibleConv1x1(3)), ValueError, "FlowStep: conv1x1 must have 4 channels, got 3"),
    Row(lambda: Split(1), ValueError, "Split: channels must be at least 2, got 1"),
    Row(lambda: Squeeze(1), ValueError, "Squeeze: factor must be at least 2, got 1"),
    Row(
        lambda: Squeeze()(state(1, 1, 4, 3)),
        ValueError,
        "Squeeze: height and width must be divisible by 2, got (4, 3)",
    ),
    Row(lambda: Squeeze(3)(state(1, 1, 4, 3)), ValueError, "must be divisible by 3, got (4, 3)"),
    Row(
        lambda: Squeeze().inverse(state(1, 6, 2, 2)),
        ValueError,
        "Squeeze: channels of z must be divisible by 4, got 6",
    ),
    # the context
    Row(conditional, ValueError, "AffineCoupling: context with 3 channels is required, got None"),
    Row(lambda: injector(4)(state()), ValueError, "AffineInjector: context with 3 channels is required, got None"),
    Row(lambda: injector(4).inverse(state()), ValueError, "AffineInjector: context with 3 channels is required"),
    Row(
        lambda: conditional(state(3, 3, 3, 3)),
        ValueError,
        "AffineCoupling: context must have shape (2 or a divisor, 3, 3, 3) or (2 or a divisor, 3) for x of shape "
        "(2, 4, 3, 3), got (3, ",
    ),
    Row(lambda: conditional(state(2, 3, 6, 6)), ValueError, "got (2, 3, 6, 6)"),
    Row(lambda: conditional(state(2, 5, 3, 3)), ValueError, "got (2, 5, 3, 3)"),
    Row(lambda: conditional(state(4)), ValueError, f"context {RANK}"),
    Row(lambda: conditional(state(2, 3, 3, 3, dtype=torch.uint8)), TypeError, "context must have a floating-point"),
    Row(
        lambda: conditional(state(2, 3, 3, 3, device="meta")),
        ValueError,
        "context must be on the device of x, cpu, got meta",
    ),
    # the networks
    Row(
        lambda: AffineCoupling(4, WrongNet())(state()),
        ValueError,
        "AffineCoupling: net must return 4 channels, got shape (2, 6, 3, 3)",
    ),
    Row(
        lambda: AffineInjector(4, WrongNet(), context_channels=4)(state(), state()),
        ValueError,
        "AffineInjector: net must return 8 channels, got shape (2, 6, 3, 3)",
    ),
    Row(
        lambda: Split(4, WrongNet())(state()),
        ValueError,
        "Split: net must return shape (2, 4, 3, 3), got (2, 6, 3, 3)",
    ),
    # latents
    Row(lambda: split_inverse(state()), ValueError, "Split: the inverse takes the 2 latents [epsilon, z], got 1"),
    Row(lambda: Split(4).inverse(state()), ValueError, "takes the 2 latents [epsilon, z], got a tensor"),
    Row(
        lambda: split_inverse(state(2, 3, 3, 3), state(2, 2, 3, 3)),
        ValueError,
        "Split: epsilon must have shape (2, 2, 3, 3), got (2, 3, 3, 3)",
    ),
    Row(lambda: split_inverse(state(4), state(2, 2, 3, 3)), ValueError, f"epsilon {RANK}"),
    Row(
        lambda: split_inverse(state(2, 2, 3, 3), state()),
        ValueError,
        "Split: z must have 2 channels, got shape (2, 4, 3, 3)",
    ),
    Row(lambda: FlowSequential([]), ValueError, "FlowSequential: layers must not be empty"),
    Row(
        lambda: FlowSequential([Squeeze(), NoInverse()]),
        TypeError,
        "FlowSequential: layer 1, NoInverse, has no inverse method",
    ),
    Row(
        lambda: FlowSequential([Split(4)]).inverse(state()),
        ValueError,
        "FlowSequential: z must hold 2 latents, got 1",
    ),
    Row(
        lambda: FlowSequential([ActNorm(4)]).inverse([state(), state()]),
        ValueError,
        "FlowSequential: z must hold 1 latents, got 2",
    ),
    # initialisation, likelihood, assertions
    Row(
        lambda: ActNorm(4).initialize(state(0, 4, 3, 3)),
        ValueError,
        "ActNorm: cannot be initialised from an empty batch, got shape (0, 4, 3, 3)",
    ),
    Row(lambda: standard_normal_log_prob([]), ValueError, "z must hold at least one latent, got an empty list"),
    Row(lambda: bits_per_dim(torch.zeros(1), 0), ValueError, "dims must be at least 1, got 0"),
    Row(lambda: assert_invertible(Broken(shift=1.0), state()), AssertionError, "Broken: round-trip error 1 exceeds"),
    Row(
        lambda: assert_invertible(Broken(log_det=2.0), state()),
        AssertionError,
        "Broken: log-determinants of forward and inverse differ by 2",
    ),
    Row(
        lambda: assert_invertible(Broken(size=1), state()),
        AssertionError,
        "Broken: log_det of inverse must have shape (2,), got (1,)",
    ),
    Row(
        lambda: assert_invertible(Broken(change=torch.Tensor.double), state()),
        AssertionError,
        "Broken: inverse must return torch.float32 of shape (2, 4, 3, 3), got torch.float64 of (2, 4, 3, 3)",
    ),
    Row(lambda: assert_invertible(Broken(shift=float("nan")), state()), AssertionError, "round-trip error nan"),
    Row(
        lambda: assert_log_det(Broken(log_det=0.5), state(1, 1, 2, 2)),
        AssertionError,
        "Broken: log_det differs from the Jacobian's by 0.5",
    ),
]

# Messages of every layer of four channels on its state, in both directions.
FOUR_CHANNELS = {
    "ActNorm": lambda: ActNorm(4),
    "InvertibleConv1x1": lambda: InvertibleConv1x1(4),
    "InvertibleConv1x1LU": lambda: InvertibleConv1x1LU(4),
    "AffineCoupling": lambda: coupling(4),
    "AffineInjector": lambda: injector(4),
    "FlowStep": lambda: FlowStep(4),
    "Split": lambda: Split(4),
}


def raises_exactly(row):
    return pytest.raises(row.error, match=re.escape(row.message))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.message)
def test_message(row):
    with raises_exactly(row):
        row.call()
    assert invflow.current_backend() == "auto"


@pytest.mark.parametrize("kind", FOUR_CHANNELS)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_a_wrong_state_is_named_where_it_enters(kind, direction):
    layer = FOUR_CHANNELS[kind]()
    name = "x" if direction == "forward" else "z"
    channels = layer.kept if kind == "Split" and direction == "inverse" else 4

    def call(x):
        if kind == "Split" and direction == "inverse":
            return layer.inverse([state(2, 2, 3, 3), x])
        return getattr(layer, direction)(x)

    for x, error, message in (
        (state(4), ValueError, f"{name} {RANK}"),
        (state(2, 5, 3, 3), ValueError, f"{kind}: {name} must have {channels} channels, got shape (2, 5, 3, 3)"),
        (state(2, channels, 3, 3, dtype=torch.long), TypeError, f"{name} must have a floating-point dtype"),
        (None, TypeError, f"{name} must be a torch.Tensor, got NoneType"),
    ):
        with raises_exactly(Row(None, error, message)):
            call(x)
