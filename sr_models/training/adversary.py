"""A discriminator that learns beside a model, and what it says of the model's samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_models.randomness import random_stream
from sr_models.training.state import gather, gather_optimizer, restore_optimizer

__all__ = ["Adversary", "Discriminator"]

#: Channels after every halving.
_WIDTHS = (64, 128, 256, 512, 512)


class Discriminator(nn.Module):
    """Network that tells photographs from samples, ESRGAN's for HCFlow++ (Wang et al., ESRGAN, 2018; Liang et al.,
    Hierarchical Conditional Flow, 2021): five halvings, then two linear layers.

    Args:
        side: side of its images, a multiple of 32.

    Shape:
        (B, 3, side, side) in [0, 1] -> logits (B, 1), positive for photographs.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        if side < 32 or side % 32:
            raise ValueError(f"Discriminator: side must be a multiple of 32, got {side}")
        layers: list[nn.Module] = []
        inputs = 3
        for width in _WIDTHS:
            first = inputs == 3
            layers.append(nn.Conv2d(inputs, width, 3, padding=1, bias=first))
            layers += [] if first else [nn.BatchNorm2d(width)]
            layers += [nn.LeakyReLU(0.2), nn.Conv2d(width, width, 4, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
            inputs = width
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Sequential(nn.Linear(inputs * (side // 32) ** 2, 100), nn.LeakyReLU(0.2), nn.Linear(100, 1))

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.linear(self.layers(images).flatten(1)))


class Adversary:
    """A discriminator and its optimizer.

    Args:
        side: as of :class:`Discriminator`.
        seed: determines its first weights.
        device: where it computes.
        state: what :meth:`state` returned; ``None``: a new one.
    """

    def __init__(self, side: int, seed: int, device: torch.device, state: dict[str, Any] | None = None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(random_stream(seed, "weights", 1).get_state())
            self.network = Discriminator(side)
        if state is not None:
            self.network.load_state_dict(state["model"])
        self.network.to(device).train()
        self._optimizer = torch.optim.Adam(self.network.parameters(), betas=(0.9, 0.99))
        if state is not None:
            restore_optimizer(state["optimizer"], self._optimizer, self.network)

    def loss(self, samples: Tensor) -> Tensor:
        """Return the loss of samples (B, 3, side, side), a scalar; 0 if all pass for photographs."""
        self.network.requires_grad_(False)
        try:
            return _cross_entropy(self.network(samples), 1.0)
        finally:
            self.network.requires_grad_(True)

    def learn(self, pairs: Iterable[tuple[Tensor, Tensor]], rate: float) -> Tensor:
        """Take a step.

        Args:
            pairs: photographs and samples of every part of a batch, (B, 3, side, side) each.
            rate: learning rate.

        Returns:
            The mean loss; no step was taken if it is not finite.
        """
        pairs = list(pairs)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.zero_grad()
        total = torch.zeros((), device=pairs[0][0].device)
        for photographs, samples in pairs:
            real, made = self.network(photographs), self.network(samples.detach())
            loss = (_cross_entropy(real, 1.0) + _cross_entropy(made, 0.0)) / len(pairs)
            loss.backward()
            total += loss.detach()
        if torch.isfinite(total):
            self._optimizer.step()
        return total

    def state(self) -> dict[str, Any]:
        """Return all that :meth:`learn` changes, on the CPU."""
        optimizer = gather_optimizer(self._optimizer, self.network)
        return {"model": gather(self.network.state_dict()), "optimizer": optimizer}


def _cross_entropy(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
