"""Distances between two images, pixel by pixel: squared error and LPIPS."""

import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sr_models.evaluation.metrics._arguments import check_same_rgb

Distance: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Maps two uint8 images (H, W, 3) to a floating-point map (H, W) of non-negative distances."""

_ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
# Index of each convolution in torchvision's `alexnet().features`; LPIPS numbers its slices from 1 in this order.
_CONVOLUTIONS = (0, 3, 6, 8, 10)
# Below 31 pixels nothing is left to the second of AlexNet's poolings: (31 - 7) // 4 + 1 = 7, 7 -> 3, 3 -> 1.
_SMALLEST_IMAGE = 31


def mse_distance(sr: np.ndarray, hr: np.ndarray) -> np.ndarray:
    r"""Return the squared error of each pixel on images scaled to [-1, 1].

    .. math:: d(x) = \frac13 \sum_c \left( \frac{2}{255} \left(sr_c(x) - hr_c(x)\right) \right)^2

    Args:
        sr: Array (H, W, 3), uint8.
        hr: Array (H, W, 3), uint8.

    Returns:
        Array (H, W), float64, from 0 to 4.

    Raises:
        TypeError: If one of the images is not a uint8 array.
        ValueError: If the images are not (H, W, 3), or differ in shape.
    """
    check_same_rgb(sr, hr)
    return np.mean((2 / 255 * (sr.astype(np.float64) - hr)) ** 2, axis=2)


class LPIPSDistance:
    r"""Learned perceptual image patch similarity (LPIPS) version 0.1 with AlexNet, as a map.

    .. math:: d(x) = \sum_l \mathrm{up}\Big( \sum_c w_{lc} \big(\hat y_{lc}(sr) - \hat y_{lc}(hr)\big)^2 \Big)(x)

    with AlexNet's activations :math:`\hat y_l` after its five convolutions, normalised over the channels, and bilinear
    upsampling to the size of the image. Wraps ``lpips.LPIPS(net="alex", spatial=True)``, but takes the weights
    as arguments: that class would download them, and unpickle files without the safeguards of ``torch.load``.

    References:
        Zhang, Isola, Efros, Shechtman, Wang, *The unreasonable effectiveness of deep features as a perceptual metric*,
        CVPR 2018.

    Args:
        alexnet: State dict of torchvision's AlexNet; only the convolutions ``features.<i>.{weight,bias}`` are used.
        linear: Weights :math:`w_l`, ``lin<l>.model.1.weight`` of shape (1, C_l, 1, 1) for l = 0 to 4.
        device: Device that computes.

    Raises:
        ModuleNotFoundError: If the package lpips or torchvision is missing.
        ValueError: If a weight is missing or has another shape.
    """

    def __init__(
        self, alexnet: Mapping[str, Tensor], linear: Mapping[str, Tensor], device: torch.device | str = "cpu"
    ) -> None:
        import lpips

        # On the meta device no random weights are drawn: neither time nor the state of the random generator is spent.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The parameter 'pretrained' is deprecated")
            warnings.filterwarnings("ignore", message="Arguments other than a weight enum")
            model = lpips.LPIPS(
                net="alex", version="0.1", spatial=True, pretrained=False, pnet_rand=True, verbose=False
            )
        model.scaling_layer = lpips.ScalingLayer()
        _assign(
            model.net,
            {
                f"slice{number}.{index}.{kind}": (f"features.{index}.{kind}", alexnet)
                for number, index in enumerate(_CONVOLUTIONS, start=1)
                for kind in ("weight", "bias")
            },
        )
        _assign(model.lins, {f"{level}.model.1.weight": (f"lin{level}.model.1.weight", linear) for level in range(5)})
        self._device = torch.device(device)
        self._model = model.eval().requires_grad_(False).to(self._device)

    @classmethod
    def from_local_files(cls, device: torch.device | str = "cpu") -> "LPIPSDistance":
        """Load the published weights from this machine, without any download.

        The linear weights come with the package lpips. AlexNet's must lie where torchvision would put them,
        ``checkpoints/alexnet-owt-7be5be79.pth`` in ``torch.hub.get_dir()`` (``$TORCH_HOME/hub``).

        Raises:
            FileNotFoundError: If they are not there, or the package lpips is missing; says which.
            ValueError: If a file is damaged, or holds anything but plain weights.
        """
        available, reason = lpips_available()
        if not available:
            raise FileNotFoundError(reason)
        import lpips

        linear_file = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
        return cls(_load_weights(_alexnet_path()), _load_weights(linear_file), device)

    @torch.inference_mode()
    def __call__(self, sr: np.ndarray, hr: np.ndarray) -> np.ndarray:
        """Return the distance map.

        Args:
            sr: Array (H, W, 3), uint8, at least 31 pixels high and wide.
            hr: Array (H, W, 3), uint8.

        Returns:
            Array (H, W), float32.

        Raises:
            TypeError: If one of the images is not a uint8 array.
            ValueError: If the images are not (H, W, 3), differ in shape, or are too small.
        """
        check_same_rgb(sr, hr)
        if min(sr.shape[:2]) < _SMALLEST_IMAGE:
            raise ValueError(f"LPIPS needs images of at least 31x31 pixels, got {sr.shape[0]}x{sr.shape[1]}")
        # Without this, validation inside a mixed-precision trainer would measure in bfloat16.
        with torch.autocast(self._device.type, enabled=False):
            map_: Tensor = self._model(self._to_input(sr), self._to_input(hr))
        return map_[0, 0].cpu().numpy()

    def _to_input(self, image: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(image)).to(self._device)
        return 2 * tensor.permute(2, 0, 1)[None].float() / 255 - 1


def lpips_available() -> tuple[bool, str]:
    """Tell whether :meth:`LPIPSDistance.from_local_files` finds all it needs, and why not.

    Returns:
        ``(True, path)`` with the path of the AlexNet weights, or ``(False, reason)``. Imports and downloads nothing.
    """
    for package in ("lpips", "torchvision"):
        if find_spec(package) is None:
            return False, f"LPIPS needs the package {package}, which is not installed"
    path = _alexnet_path()
    if not path.is_file():
        return False, f"LPIPS needs the AlexNet weights of torchvision in {path}, which does not exist"
    return True, str(path)


def best_available_distance(device: torch.device | str = "cpu") -> tuple[str, Distance]:
    """Return LPIPS if its weights are on this machine, and otherwise the squared error.

    Args:
        device: Device that computes LPIPS.

    Returns:
        ``("lpips", distance)`` or ``("mse", distance)``. Scores by different distances cannot be compared, so report
        the name with the score.

    Raises:
        ValueError: If the weights are there but damaged.
    """
    available, _ = lpips_available()
    return ("lpips", LPIPSDistance.from_local_files(device)) if available else ("mse", mse_distance)


def _alexnet_path() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / _ALEXNET_FILE


def _load_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights: Any = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file makes torch.load raise nearly anything, UnicodeDecodeError and KeyError included.
    except Exception as error:
        raise ValueError(f"cannot load weights from {path}: {error}") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} must hold a state dict of tensors, got {type(weights).__name__}")
    return dict(weights)


def _assign(module: torch.nn.Module, sources: dict[str, tuple[str, Mapping[str, Tensor]]]) -> None:
    """Give each parameter of the module, by its name there, the value of a named entry of a state dict."""
    parameters = dict(module.named_parameters())
    state = {}
    for name, (source, weights) in sources.items():
        if source not in weights:
            raise ValueError(f"LPIPS needs the weight {source}, which the given state dict lacks")
        value, wanted = weights[source], tuple(parameters[name].shape)
        if tuple(value.shape) != wanted:
            raise ValueError(f"LPIPS needs {source} of shape {wanted}, got {tuple(value.shape)}")
        state[name] = value.detach().to(torch.float32, copy=True)
    module.load_state_dict(state, strict=True, assign=True)
