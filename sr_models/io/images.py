"""Writing and converting 8-bit RGB images; reading is in :mod:`sr_models.io.reading`.

Images on disk and in metrics are numpy arrays of shape (H, W, 3), uint8. Images in networks are tensors of shape
(3, H, W), float32 in [0, 1].
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sr_models.io.files import write_bytes
from sr_models.io.reading import ImageHeader, read_header, read_image

__all__ = [
    "IMAGE_SUFFIXES",
    "PNG_SRGB",
    "ImageHeader",
    "check_pair",
    "check_rgb",
    "crop_to_multiple",
    "encode_png",
    "find_images",
    "read_header",
    "read_image",
    "to_tensor",
    "to_uint8",
    "write_image",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff")
#: Chunk of a PNG, as name and content, that says that its colours are sRGB; 0: for photographs.
PNG_SRGB = (b"sRGB", b"\0")


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the images directly inside a folder, sorted by name.

    Args:
        folder: The folder. A file is an image if its suffix, in either case, is one of ``IMAGE_SUFFIXES``.

    Returns:
        The paths, at least one.

    Raises:
        FileNotFoundError: If the folder does not exist, or holds no image.
        NotADirectoryError: If ``folder`` is a file.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"image folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"image folder {folder} is not a folder")
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not images:
        raise FileNotFoundError(f"image folder {folder} holds no image; accepted suffixes: {' '.join(IMAGE_SUFFIXES)}")
    return images


def write_image(path: str | os.PathLike[str], image: np.ndarray, *, text: Mapping[str, str] | None = None) -> None:
    """Write an image as PNG, atomically: the file appears complete or not at all.

    Args:
        path: File to write, with the suffix ``.png``; an existing file is replaced.
        image: Array (H, W, 3), uint8, RGB.
        text: Texts that the file carries, by name; nobody sees them in the picture.

    Raises:
        TypeError: If ``image`` is not a uint8 array.
        ValueError: If ``image`` is not (H, W, 3), or ``path`` has another suffix.
        FileNotFoundError: If the folder of ``path`` does not exist.
    """
    path = Path(path)
    check_rgb("image", image)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {path}")
    write_bytes(path, encode_png(image, text))


def encode_png(image: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """Encode an image, uint8, RGB or RGBA, as a PNG file, which says that it is sRGB, with texts by name."""
    info = PngInfo()
    info.add(*PNG_SRGB)
    for name, value in (text or {}).items():
        info.add_text(name, value)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def to_tensor(image: np.ndarray) -> Tensor:
    """Convert an 8-bit image to a network input, ``image / 255``.

    Args:
        image: Array (H, W, 3), uint8.

    Returns:
        Tensor (3, H, W), float32 in [0, 1], contiguous, on the CPU.

    Raises:
        TypeError: If ``image`` is not a uint8 array.
        ValueError: If ``image`` is not (H, W, 3).
    """
    check_rgb("image", image)
    channels_first = np.ascontiguousarray(image.transpose(2, 0, 1))
    return torch.from_numpy(channels_first.astype(np.float32)) / 255


def to_uint8(image: Tensor) -> np.ndarray:
    """Convert a network output to an 8-bit image: clamp to [0, 1], multiply by 255, round.

    Inverse of :func:`to_tensor` on its outputs.

    Args:
        image: Tensor (3, H, W), floating point, on any device.

    Returns:
        Array (H, W, 3), uint8.

    Raises:
        TypeError: If ``image`` is not a floating-point tensor.
        ValueError: If ``image`` is not (3, H, W), or contains NaN, which a diverged model makes.
    """
    if not isinstance(image, Tensor):
        raise TypeError(f"image must be a tensor, got {type(image).__name__}")
    if not image.is_floating_point():
        raise TypeError(f"image must be a floating-point tensor, got dtype {image.dtype}")
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image must be (3, H, W), got shape {tuple(image.shape)}")
    values = image.detach().cpu().float()
    if values.isnan().any():
        raise ValueError(f"image contains {int(values.isnan().sum())} NaN among {values.numel()} values")
    rounded = (values.clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(rounded.permute(1, 2, 0).numpy())


def crop_to_multiple(image: np.ndarray, multiple: int) -> np.ndarray:
    """Cut rows off the bottom and columns off the right until both sides are multiples of a number.

    Args:
        image: Array (H, W) or (H, W, C).
        multiple: Positive integer, at most H and at most W.

    Returns:
        A view of ``image``.

    Raises:
        ValueError: If ``image`` has other dimensions or is smaller than ``multiple``, or ``multiple`` is not positive.
    """
    if image.ndim not in (2, 3):
        raise ValueError(f"image must be (H, W) or (H, W, C), got shape {image.shape}")
    if multiple < 1:
        raise ValueError(f"multiple must be positive, got {multiple}")
    height, width = image.shape[:2]
    if min(height, width) < multiple:
        raise ValueError(f"image of {height}x{width} pixels (height x width) is smaller than multiple={multiple}")
    return image[: height - height % multiple, : width - width % multiple]


def check_pair(lr: np.ndarray, hr: np.ndarray, scale: int) -> None:
    """Check that a high-resolution image is exactly ``scale`` times as large as its low-resolution counterpart.

    Args:
        lr: Array (h, w, 3), uint8.
        hr: Array (scale * h, scale * w, 3), uint8.
        scale: Positive integer.

    Raises:
        TypeError: If one of the images is not a uint8 array.
        ValueError: If one of the images is not (H, W, 3), the sizes do not match, or ``scale`` is not positive.
    """
    check_rgb("lr", lr)
    check_rgb("hr", hr)
    if scale < 1:
        raise ValueError(f"scale must be positive, got {scale}")
    wanted = (lr.shape[0] * scale, lr.shape[1] * scale)
    if hr.shape[:2] != wanted:
        raise ValueError(
            f"hr must be {wanted[0]}x{wanted[1]} pixels (height x width), {scale} times lr of "
            f"{lr.shape[0]}x{lr.shape[1]}, got {hr.shape[0]}x{hr.shape[1]}"
        )


def check_rgb(name: str, image: np.ndarray) -> None:
    """Check that an array is an 8-bit RGB image.

    Args:
        name: Name in the error message.
        image: Array (H, W, 3), uint8, not empty.

    Raises:
        TypeError: If it is not a uint8 array.
        ValueError: If it is not (H, W, 3), or empty.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        found = f"dtype {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"{name} must be a uint8 numpy array, got {found}")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"{name} must be (H, W, 3) and not empty, got shape {image.shape}")
