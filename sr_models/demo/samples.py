"""Samples that are drawn once: a demonstration that begins again finds them in its folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from sr_models.checkpoints.files import weights_fingerprint
from sr_models.flow.explosions import ExplosionError
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import read_image, to_tensor, to_uint8, write_image

__all__ = ["KeptSamples"]

#: Name of the text in a sample's PNG file that says how it was made, as JSON.
_KEY = "sr-models demo"


class KeptSamples:
    """Draw samples of photographs and keep them as PNG files.

    Args:
        model: in evaluation mode.
        folder: of the files, which exists.
        seed: that of the first sample; the next one has the next seed.
        prefix: begins the names of the files, after the photograph's.
    """

    def __init__(self, model: SuperResolutionFlow, folder: Path, seed: int, prefix: str = "") -> None:
        self._model, self._folder, self._seed, self._prefix = model, folder, seed, prefix
        self._weights = weights_fingerprint(model)

    def file(self, name: str, temperature: float, index: int) -> Path:
        """Return where a sample is kept."""
        return self._folder / f"{name}_{self._prefix}t{temperature:g}_sample{index:03d}.png"

    def __call__(self, name: str, lr: np.ndarray, temperature: float, index: int) -> np.ndarray | None:
        """Return a sample (scale h, scale w, 3), uint8, from its file if it is there.

        Args:
            name: of the photograph.
            lr: (h, w, 3), uint8.
            temperature: standard deviation of the latents.
            index: number of the sample, from 0.

        Returns:
            The sample; ``None`` if it explodes, whatever latents are drawn.
        """
        file = self.file(name, temperature, index)
        digest = hashlib.sha256(lr.tobytes()).hexdigest()[:32]
        described = {"image": digest, "weights": self._weights, "temperature": temperature, "seed": self._seed + index}
        if _read_description(file) == described:
            return read_image(file)
        like = next(self._model.parameters())
        try:
            drawn = self._model.sample(to_tensor(lr)[None].to(like), temperature=temperature, seed=self._seed + index)
        except ExplosionError:
            return None
        sample = to_uint8(drawn[0, 0])
        write_image(file, sample, text={_KEY: json.dumps(described)})
        return sample


def _read_description(file: Path) -> dict[str, object] | None:
    try:
        with Image.open(file, formats=("PNG",)) as image:
            found = json.loads(image.info[_KEY])
    # damaged files are reported with exceptions of many types
    except Exception:
        return None
    return found if isinstance(found, dict) else None
