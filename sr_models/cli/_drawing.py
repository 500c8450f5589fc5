"""Samples of many images, block by block, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor
from tqdm import tqdm

from sr_models.cli._errors import users_error
from sr_models.cli._inputs import say, shown
from sr_models.cli._memory import fitting_tile, free_memory, smaller_tile, surely_fits
from sr_models.cli._memory_cost import DecodingCost
from sr_models.cli._warnings import warnings_as_lines
from sr_models.flow.consistency import ConsistencyWarning
from sr_models.flow.decoding import sample_blocks
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.encoding import check_side
from sr_models.io.images import read_image, to_tensor, to_uint8
from sr_models.io.listing import one_line
from sr_models.io.reading import read_image_with_alpha
from sr_models.io.resize import imresize
from sr_models.io.transparency import enlarge_alpha, fill_transparent
from sr_models.memory import is_out_of_memory, release_large_blocks

__all__ = ["Block", "Request", "Tile", "draw_blocks"]

#: Side of tiles; ``None``: none; ``"auto"``: those that memory has room for, if the image does not fit.
Tile = int | Literal["auto"] | None
#: Bytes of the float32 images of a block; more would keep samples from their files for long.
_BLOCK_BYTES = 2**30


class Request(NamedTuple):
    """Samples of an image that are wanted.

    Attributes:
        path: the image.
        numbers: of the samples, rising.
        tile: how they are drawn.
        begin: tiles of the first of them; ``"auto"`` if memory decides about these, too.
    """

    path: Path
    numbers: Sequence[int]
    tile: Tile
    begin: Tile


class Block(NamedTuple):
    """Some samples of an image.

    Attributes:
        numbers: of the samples.
        samples: each (H, W, 3), or (H, W, 4) with alpha; uint8 or uint16.
        tile: side of the tiles in which they were decoded.
        size: rows and columns of the low-resolution image.
        last: no more samples of the image are wanted.
    """

    numbers: range
    samples: list[np.ndarray]
    tile: int | None
    size: tuple[int, int]
    last: bool


def draw_blocks(
    model: SuperResolutionFlow,
    requests: Mapping[str, Request],
    *,
    scale: int,
    format: str,
    options: Mapping[str, Any],
) -> Iterator[tuple[str, Block | str]]:
    """Draw the samples of each image, with a progress bar.

    Args:
        model: in evaluation mode.
        requests: name -> what is wanted.
        scale: of the samples; below the model's they are reduced.
        format: of the files that they are for.
        options: those of :meth:`SuperResolutionFlow.sample`.

    Yields:
        An image's name, and a block of its samples, or why there are no more.
    """
    # rates and times are of samples; layers move the bar between them
    shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} samples [{elapsed}<{remaining}{postfix}]"
    cost = DecodingCost(model, {name: options[name] for name in ("precision", "consistency")})
    redrawn = done = 0
    with tqdm(total=sum(len(request.numbers) for request in requests.values()), bar_format=shape) as bar:

        def advance(part: float) -> None:
            nonlocal redrawn
            if part < 0:
                redrawn += 1
                bar.set_postfix_str(f"{redrawn} drawn again", refresh=False)
            # sums of parts are rounded, and tqdm warns above the total
            bar.update(min(part, bar.total - bar.n))

        def settle() -> None:
            bar.n = bar.last_print_n = done
            bar.refresh()

        for name, request in requests.items():
            bar.set_description_str(f"sampling {one_line(Path(shown(str(request.path))).name)[:40]}")
            blocks = _Image(model, cost, request, scale, format, options, advance, settle)
            count = done + len(request.numbers)
            while done < count:
                try:
                    block = next(blocks)
                except Exception as error:
                    message = users_error(error, memory=blocks.advice())
                    if message is None:
                        raise
                    path = str(request.path)
                    yield name, message if path in message else f"{path}: {message}"
                    done = count
                else:
                    done += len(block.numbers)
                    settle()
                    yield name, block
            settle()


class _Image:
    """Iterator over the blocks of one image."""

    def __init__(
        self,
        model: SuperResolutionFlow,
        cost: DecodingCost,
        request: Request,
        scale: int,
        format: str,
        options: Mapping[str, Any],
        advance: Callable[[float], None],
        settle: Callable[[], None],
    ) -> None:
        self._model, self._cost, self._request, self._scale, self._format = model, cost, request, scale, format
        self._options, self._advance, self._settle = options, advance, settle
        self._tile = None if request.begin == "auto" else request.begin
        self._lr: Tensor | None = None
        self._alpha: np.ndarray | None = None
        self._blocks: list[range] = []

    def __next__(self) -> Block:
        lr = self._read() if self._lr is None else self._lr
        block = self._blocks.pop(0)
        samples = self._draw(lr, block)
        height, width = lr.shape[2:]
        return Block(block, [self._pixels(one) for one in samples], self._tile, (height, width), not self._blocks)

    def advice(self) -> str:
        """Say what to do where memory is too small."""
        if self._lr is None:
            return "the image cannot even be read; cut it into parts"
        height, width = self._lr.shape[2:]
        tile = smaller_tile(height, width, self._tile)
        given = f"{width} x {height} pixels" if self._tile is None else f"tiles of {self._tile} pixels"
        return f"{given} do not fit; choose {f'--tile {tile}' if tile else 'a smaller --n'}"

    def _read(self) -> Tensor:
        path, scale = self._request.path, self._scale
        if self._format == "jpeg":
            image = read_image(path)
        else:
            image, self._alpha = read_image_with_alpha(path)
            if self._alpha is not None:
                image = fill_transparent(image, self._alpha)
        height, width = image.shape[:2]
        check_side(self._format, scale * height, scale * width)
        self._lr = lr = to_tensor(image)[None].to(next(self._model.parameters()))
        self._blocks = _blocks(self._request.numbers, height * width * self._model.scale**2, on_cpu=lr.is_cpu)
        if self._request.begin == "auto":
            self._tile = self._fitting_tile(lr)
        elif self._request.begin is not None:
            release_large_blocks()
        return lr

    def _fitting_tile(self, lr: Tensor) -> int | None:
        height, width = lr.shape[2:]
        together, free = max(map(len, self._blocks)), free_memory(lr.device)
        if free is None or surely_fits(height, width, together, self._model.scale, free):
            return None
        release_large_blocks()
        pixel = self._cost.of(together)
        # weights that the measurement has prepared stay, and are no longer free
        free = free_memory(lr.device) or 0
        tile = fitting_tile(height, width, together, self._model.scale, free, pixel)
        if tile is not None:
            self._say_tile(tile, f"{free / 2**30:.1f} GiB of memory are free")
        return tile

    def _draw(self, lr: Tensor, block: range) -> Tensor:
        options = {**self._options, "on_progress": lambda part: self._advance(part * len(block))}
        while True:
            if self._tile is None:
                options.pop("overlap", None)
            try:
                with warnings_as_lines(ConsistencyWarning, shown(str(self._request.path))):
                    return self._model.sample(lr, len(block), first=block.start, tile=self._tile, **options)[0]
            except (MemoryError, RuntimeError) as error:
                height, width = lr.shape[2:]
                tile = smaller_tile(height, width, self._tile)
                if self._request.tile != "auto" or tile is None or not is_out_of_memory(error):
                    raise
            # outside of the handler, which keeps what the failed attempt holds
            self._tile = tile
            release_large_blocks()
            # the parts of the failed attempt would be counted twice
            self._settle()
            self._say_tile(tile, "there is not enough memory for more")

    def _say_tile(self, tile: int, reason: str) -> None:
        say(f"{self._request.path}: decoded in tiles of {tile} low-resolution pixels, because {reason}")

    def _pixels(self, sample: Tensor) -> np.ndarray:
        assert self._lr is not None
        height, width = (self._scale * side for side in self._lr.shape[2:])
        deep = self._format == "png16"
        if self._scale == self._model.scale and not deep:
            image = to_uint8(sample)
        else:
            values = sample.permute(1, 2, 0).double().cpu().numpy()
            image = _levels(
                values if values.shape[:2] == (height, width) else imresize(values, size=(height, width)), deep
            )
        if self._alpha is None:
            return image
        return np.dstack([image, _levels(enlarge_alpha(self._alpha, height, width), deep)])


def _levels(values: np.ndarray, deep: bool) -> np.ndarray:
    """Round values in [0, 1] to 8 bits, or to 16."""
    dtype = np.uint16 if deep else np.uint8
    return np.rint(np.clip(values, 0, 1) * np.iinfo(dtype).max).astype(dtype)


def _blocks(numbers: Sequence[int], pixels: int, *, on_cpu: bool) -> list[range]:
    """Divide the numbers of samples, each of so many pixels, into ranges that are drawn together."""
    most = max(_BLOCK_BYTES // (12 * max(pixels, 1)), 1)
    starts = [0, *(at for at, (one, next_) in enumerate(pairwise(numbers), 1) if next_ != one + 1), len(numbers)]
    blocks = []
    for start, stop in pairwise(starts):
        first = numbers[start]
        for block in sample_blocks(stop - start, pixels, on_cpu=on_cpu):
            blocks += [
                range(first + at, first + min(at + most, block.stop)) for at in range(block.start, block.stop, most)
            ]
    return blocks
