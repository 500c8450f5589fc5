"""The order of crops in a training run."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

__all__ = ["StepSampler", "crops_of_step"]


def crops_of_step(step: int, batch_size: int) -> range:
    """Return the indices of the crops of a step, over all processes and parts."""
    return range(step * batch_size, (step + 1) * batch_size)


class StepSampler(Sampler[list[int]]):
    """Indices of the crops that one process trains on, step after step.

    Step ``s`` has the indices ``s * batch_size`` to ``(s + 1) * batch_size - 1``, whoever computes them. They are
    handed out in order: the first part to the first process, to the second, ..., then the second part.

    Args:
        batch_size: crops a step, over all processes and parts.
        steps: the steps to train, counted from 0.
        rank: number of this process.
        world: number of processes.
        parts: lists a step, computed one after another (accumulation of gradients).

    Yields:
        ``parts`` lists a step, each of ``batch_size / (world * parts)`` indices.

    Raises:
        ValueError: a batch that processes and parts do not divide, or a rank out of range.
    """

    def __init__(self, batch_size: int, steps: range, *, rank: int = 0, world: int = 1, parts: int = 1) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0..{world - 1} for {world} processes, got {rank}")
        if parts < 1:
            raise ValueError(f"parts must be at least 1, got {parts}")
        if batch_size < 1 or batch_size % (world * parts):
            raise ValueError(
                f"batch_size must be a multiple of {world * parts} ({world} devices x {parts} parts), got {batch_size}"
            )
        self.batch_size, self.steps = batch_size, steps
        self.rank, self.world, self.parts = rank, world, parts

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // (self.world * self.parts)
        for step in self.steps:
            for part in range(self.parts):
                start = (part * self.world + self.rank) * share
                yield list(crops_of_step(step, self.batch_size)[start : start + share])

    def __len__(self) -> int:
        return len(self.steps) * self.parts
