"""``sr-models pack``."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["run"]


def run(images: str, output: str, strict: bool = False) -> None:
    """Decode images into one file, from which training reads crops without decoding.

    Training takes the file in the place of a folder. Its processes share it in memory. It holds 3 bytes a pixel: 6.6 GB
    for DIV2K. Low-resolution images, if you have them, go into a pack of their own.

    Example:
        sr-models pack --images DIV2K/DIV2K_train_HR --output div2k.pack
        sr-models train --model srflow-da --images div2k.pack --output run

    Args:
        images: a folder, also one with the folders of a data set in it, a pattern, or a list of images (.txt).
        output: the file to write; its name ends in .pack.
        strict: fail if an image cannot be used, instead of leaving it out.
    """
    from sr_models.data.layouts import find_high
    from sr_models.data.packing import check_pack_name, write_pack
    from sr_models.io.listing import list_images, one_line
    from sr_models.io.quantities import quantity

    path = check_pack_name(output)
    listing = list_images(find_high(images, split="train"), strict=strict)
    print("\n".join(listing.summary()))
    with _stopped_by_exceptions():
        damaged = write_pack(listing, path, strict=strict)
    for entry in damaged:
        print(f"not used: {one_line(entry.path)}: {one_line(entry.reason)}")
    print(f"wrote {len(listing) - len(damaged)} images, {quantity(path.stat().st_size, 'B')}, to {one_line(path)}")


@contextlib.contextmanager
def _stopped_by_exceptions() -> Iterator[None]:
    """Let a signal that ends the process pass through the code that removes the unfinished file.

    A signal that the process ignores, as ``nohup`` lets it, stays ignored.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    heard = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    former = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
