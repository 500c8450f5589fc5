"""Parts from which the published models are assembled."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from invflow import AffineCoupling, AffineForm, AffineInjector, FlowSequential, FlowStep, Split, Squeeze

__all__ = [
    "NetClass",
    "conditional_coupling",
    "conditional_injector",
    "conditional_step",
    "flow_levels",
    "transition",
]

#: A network's class: ``net(in_channels, hidden_channels, out_channels)``.
NetClass = Callable[[int, int, int], nn.Module]


def transition(channels: int, steps: int) -> list[nn.Module]:
    """Build flow steps of actnorm and 1x1 convolution only, for the start of a level (Lugmayr et al., 2020, 3.4)."""
    return [FlowStep(channels) for _ in range(steps)]


def flow_levels(
    count: int, splits: int, transition_steps: int, steps: Callable[[int, int], list[nn.Module]]
) -> list[FlowSequential]:
    """Build levels of a squeeze by 2, transition steps and conditional steps, and a split in the first ``splits``.

    Args:
        count: number of levels.
        splits: number of levels that factor half of their channels out.
        transition_steps: as in :func:`transition`.
        steps: ``steps(level, channels)``, level from 0: the conditional steps.
    """
    levels, channels = [], 3
    for level in range(count):
        channels *= 4
        layers = [Squeeze(2), *transition(channels, transition_steps), *steps(level, channels)]
        if level < splits:
            split = Split(channels)
            layers.append(split)
            channels = split.kept
        levels.append(FlowSequential(layers))
    return levels


def conditional_step(
    channels: int, context_channels: int, hidden_channels: int, net: NetClass, form: AffineForm | None = None
) -> FlowStep:
    """Build a step of actnorm, 1x1 convolution, injector and coupling (Lugmayr et al., SRFlow, 2020, figure 2).

    Args:
        channels: channels of the state.
        context_channels: channels of the context.
        hidden_channels: width of the networks.
        net: class of the networks.
        form: rule by which the network's output becomes shift and scale; default :class:`invflow.AffineForm`.
    """
    return FlowStep(
        channels,
        injector=conditional_injector(channels, context_channels, hidden_channels, net, form),
        coupling=conditional_coupling(channels, context_channels, hidden_channels, net, form),
    )


def conditional_injector(
    channels: int, context_channels: int, hidden_channels: int, net: NetClass, form: AffineForm | None = None
) -> AffineInjector:
    """Build an elementwise map of all channels that depends on the context only.

    Args:
        channels: channels of the state.
        context_channels: channels of the context.
        hidden_channels: width of the network.
        net: the network's class.
        form: rule by which the network's output becomes shift and scale; default :class:`invflow.AffineForm`.
    """
    network = net(context_channels, hidden_channels, 2 * channels)
    return AffineInjector(channels, network, context_channels=context_channels, form=form)


def conditional_coupling(
    channels: int, context_channels: int, hidden_channels: int, net: NetClass, form: AffineForm | None = None
) -> AffineCoupling:
    """Build an elementwise map of the second half of the channels that depends on the first half and the context.

    Args:
        channels: channels of the state.
        context_channels: channels of the context.
        hidden_channels: width of the network.
        net: the network's class.
        form: rule by which the network's output becomes shift and scale; default :class:`invflow.AffineForm`.
    """
    passed = channels // 2
    network = net(passed + context_channels, hidden_channels, 2 * (channels - passed))
    return AffineCoupling(channels, network, context_channels=context_channels, form=form)
