"""``sr-models sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

__all__ = ["run"]


def run(
    checkpoint: str,
    images: str,
    output: str,
    n: int = 10,
    temperature: float | list[float] = 0.9,
    seed: int = 0,
    on_explode: Literal["error", "resample", "clamp"] = "resample",
    tile: int | None = None,
    device: str = "cpu",
) -> None:
    """Draw super-resolved samples of every low-resolution image in a folder.

    Example:
        sr-models sample --checkpoint model.safetensors --images low_resolution --output samples --n 4

    Args:
        checkpoint: model.safetensors with model.json beside it.
        images: folder of low-resolution images.
        output: folder that receives NAME_sample000.png, NAME_sample001.png, ...; created if needed.
        n: samples an image.
        temperature: standard deviation of the latents; 0 gives the most regular image, 0.9 is published. A list such as
            [0.9,0.5] has one for each latent, the finest first.
        seed: same seed, same samples.
        on_explode: what becomes of a sample whose activations grow beyond 1e5: an error, other latents (five times,
            then an error), or limited activations.
        tile: for images that do not fit into memory: side of overlapping tiles, in low-resolution pixels.
        device: cpu, cuda, ...
    """
    from tqdm import tqdm

    from sr_models.checkpoints.files import load_model
    from sr_models.cli._device import usable_device
    from sr_models.io.images import find_images, read_image, to_tensor, to_uint8, write_image

    model = load_model(checkpoint).to(usable_device(device))
    paths = find_images(images)
    like = next(model.parameters())
    for path in tqdm(paths, desc="sampling", unit="image"):
        lr = to_tensor(read_image(path))[None].to(like)
        samples = model.sample(lr, n, temperature=temperature, seed=seed, on_explode=on_explode, tile=tile)[0]
        Path(output).mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(samples):
            write_image(Path(output) / f"{path.stem}_sample{index:03d}.png", to_uint8(image))
    print(f"wrote {n * len(paths)} images to {output}")
