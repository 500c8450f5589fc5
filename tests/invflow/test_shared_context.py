"""A shared context in ``forward`` and ``inverse``: layers that take it, and layers that are given the joined one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from invflow import AffineCoupling, AffineInjector, FlowSequential, FlowStep, Split, Squeeze


class Sum:
    """The sum of two maps, which a network's first convolution sees one by one."""

    def __init__(self, one: Tensor, other: Tensor) -> None:
        self.one, self.other = one, other
        self.joins = self.networks = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.one.shape)

    def joined(self) -> Tensor:
        self.joins += 1
        return self.one + self.other

    def network(self, net: nn.Module) -> Callable[[Tensor | None, slice], Tensor]:
        self.networks += 1
        weight = net.weight[:, net.weight.shape[1] - self.shape[1] :]
        shared = nn.functional.conv2d(self.one, weight) + nn.functional.conv2d(self.other, weight)

        def output(passed: Tensor | None, part: slice) -> Tensor:
            if passed is None:
                return shared[part]
            return nn.functional.conv2d(passed, net.weight[:, : passed.shape[1]]) + shared[part]

        return output


_pytree.register_pytree_node(Sum, lambda context: ([context.one, context.other], None), lambda parts, _: Sum(*parts))


class Net(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1, bias=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(torch.cat(inputs, 1))


class Shift(nn.Module):
    """A layer of others, which knows tensors only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return x + self.net(context), x.new_zeros(len(x))

    def inverse(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return z - self.net(context), z.new_zeros(len(z))


class OwnOutput(AffineCoupling):
    """Overrides a method that is handed the context."""

    def raw_output(self, passed: Tensor, context: Tensor | None = None) -> Tensor:
        assert isinstance(context, Tensor)
        return 0.5 * super().raw_output(passed, context)


class OwnInjector(AffineInjector):
    def raw_output(self, context: Tensor | None) -> Tensor:
        assert isinstance(context, Tensor)
        return 0.5 * super().raw_output(context)


class OwnForward(AffineCoupling):
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert isinstance(context, Tensor)
        return super().forward(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert isinstance(context, Tensor)
        return super().inverse(z, context)


def coupling(kind: type[AffineCoupling] = AffineCoupling) -> AffineCoupling:
    return kind(4, Net(2 + 3, 4), context_channels=3)


def injector(kind: type[AffineInjector] = AffineInjector) -> AffineInjector:
    return kind(4, Net(3, 8), context_channels=3)


def watched(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, args, output: None)
    return layer


#: Layers, how many networks ask for their part of the context, and how often a sequence joins it.
LAYERS: dict[str, tuple[Callable[[], list[nn.Module]], int, int]] = {
    "injector and coupling": (lambda: [injector(), coupling()], 2, 0),
    "steps": (lambda: [FlowStep(4, injector=injector(), coupling=coupling()), FlowStep(4, coupling=coupling())], 3, 0),
    "without context": (lambda: [Squeeze(2), FlowStep(16), Split(16)], 0, 0),
    "foreign": (lambda: [Shift(4), coupling(), Shift(4), FlowSequential([injector(), Shift(4)])], 2, 2),
    "own output": (lambda: [coupling(OwnOutput), injector(OwnInjector), FlowStep(4, coupling=coupling())], 1, 1),
    "own parts": (lambda: [FlowStep(4, injector=injector(OwnInjector), coupling=coupling(OwnOutput))], 0, 2),
    "own forward": (lambda: [FlowStep(4, injector=injector(), coupling=coupling(OwnForward))], 1, 1),
    "watched": (lambda: [watched(FlowStep(4, coupling=coupling())), coupling()], 1, 1),
}


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[FlowSequential, int, int]:
    torch.manual_seed(0)
    layers, networks, joins = LAYERS[request.param]
    flow = FlowSequential(layers()).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow.eval(), networks, joins


def given() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(2, c, 4, 6, dtype=torch.float64, requires_grad=True) for c in (4, 3, 3))  # type: ignore[return-value]


def test_values_and_number_of_evaluations(case: tuple[FlowSequential, int, int]) -> None:
    flow, networks, joins = case
    x, one, other = given()
    with torch.no_grad():
        expected = flow(x, one + other)
        for call, argument, wanted in (
            (flow, x, expected),
            (flow.inverse, expected[0], flow.inverse(expected[0], one + other)),
        ):
            context = Sum(one, other)
            torch.testing.assert_close(call(argument, context), wanted)
            assert (context.networks, context.joins) == (networks, joins)


@pytest.mark.parametrize("memory", ["store", "invert"])
@pytest.mark.filterwarnings("ignore:FlowSequential.memory='invert'. stores:UserWarning")
def test_gradients(case: tuple[FlowSequential, int, int], memory: str) -> None:
    flow = case[0]
    x, one, other = given()
    inputs = [x, one, other, *flow.parameters()]

    def gradients(context: Sum | Tensor) -> tuple[Tensor | None, ...]:
        z, log_det = flow(x, context)
        latents = z if isinstance(z, list) else [z]
        loss = sum(latent.square().sum() for latent in latents) + (log_det * log_det).sum()
        return torch.autograd.grad(loss, inputs, allow_unused=True)

    expected = gradients(one + other)
    flow.memory = memory
    for actual, wanted in zip(gradients(Sum(one, other)), expected, strict=True):
        assert (actual is None) == (wanted is None)
        if actual is not None:
            torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)


def test_a_context_that_does_not_fit_is_named() -> None:
    flow = FlowSequential([coupling()])
    with pytest.raises(ValueError, match=r"context must have shape \(2 or a divisor, 3, 4, 4\).*got \(2, 5, 4, 4\)"):
        flow(torch.randn(2, 4, 4, 4), Sum(torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4)))
