"""Layers as another package writes them: ``nn.Module``s that keep the written contract and import nothing of ours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]


class Doubling(nn.Module):
    """A layer that knows the two methods only: it counts as one latent of the shape it was given."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return 2 * x, x.new_full((len(x),), x[0].numel() * 0.6931471805599453 if len(x) else 0.0)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z / 2, z.new_full((len(z),), -z[0].numel() * 0.6931471805599453 if len(z) else 0.0)


class Cut(nn.Module):
    """Lets the first channels leave, scaled, in several unequal parts; the rest goes on."""

    def __init__(self, channels: int, *leaving: int) -> None:
        super().__init__()
        self.sizes = [*leaving, channels - sum(leaving)]
        self.log_scale = nn.Parameter(0.1 * torch.ones(sum(leaving)))

    @property
    def num_latents(self) -> int:
        return len(self.sizes)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return [(size, *shape[1:]) for size in self.sizes]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        *leaving, rest = x.split(self.sizes, 1)
        scales = self.log_scale.exp()[:, None, None].split(self.sizes[:-1])
        return [part * scale for part, scale in zip(leaving, scales, strict=True)] + [rest], self._log_det(x)

    def inverse(self, z: list[Tensor], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        *leaving, rest = z
        scales = self.log_scale.exp()[:, None, None].split(self.sizes[:-1])
        x = torch.cat([part / scale for part, scale in zip(leaving, scales, strict=True)] + [rest], 1)
        return x, -self._log_det(x)

    def _log_det(self, x: Tensor) -> Tensor:
        return (self.log_scale.sum() * x.shape[2] * x.shape[3]).expand(len(x))


class Unshuffle(nn.Module):
    """Space to channels, by a factor of its own name."""

    def __init__(self, ratio: int = 2) -> None:
        super().__init__()
        self.ratio = ratio

    def output_shapes(self, shape: Shape) -> list[Shape]:
        channels, height, width = shape
        return [(channels * self.ratio**2, height // self.ratio, width // self.ratio)]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return nn.functional.pixel_unshuffle(x, self.ratio), x.new_zeros(len(x))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return nn.functional.pixel_shuffle(z, self.ratio), z.new_zeros(len(z))


class Shift(nn.Module):
    """Adds a convolution of a context of as many samples as states. Its attributes have names that are ours too."""

    def __init__(self, channels: int, context_channels: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(context_channels, channels, 1)])
        self.encode = self.rerun = self.reverse_stages = self.forward_fused = self.conditioned_inverse = self.folded = (
            "mine"
        )

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return self._add(x, context, 1), x.new_zeros(len(x))

    def inverse(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return self._add(z, context, -1), z.new_zeros(len(z))

    def _add(self, x: Tensor, context: Tensor, sign: int) -> Tensor:
        shift = self.stages[0](context)
        if shift.shape != x.shape:
            raise ValueError(f"shift of shape {tuple(shift.shape)} for {tuple(x.shape)}")
        return x + sign * shift
