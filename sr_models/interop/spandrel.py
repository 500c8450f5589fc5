"""Models of this package in programs that load models by spandrel, such as ComfyUI and chaiNNer.

:func:`install` registers every model of :func:`sr_models.registry.list_models`, also those of plugins. Spandrel then
loads files of this package and published ``.pth`` files by their names of tensors. Needs the extra ``sr-tools``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from spandrel import MAIN_REGISTRY, Architecture, ArchRegistry, ArchSupport, ImageModelDescriptor, StateDict
from torch import Tensor

from sr_models.checkpoints.convert import model_of_published
from sr_models.checkpoints.detect import told_by
from sr_models.checkpoints.files import description_in, evaluated_tensors
from sr_models.checkpoints.plausible import create_stored_model
from sr_models.checkpoints.wrapped import plain_names
from sr_models.flow.latents import temperatures_of
from sr_models.flow.model import SuperResolutionFlow
from sr_models.interop.local_noise import sample_locally
from sr_models.registry import list_models
from sr_models.seeds import check_seed

__all__ = ["FlowArchitecture", "install", "model_name"]


def install(
    temperature: float | None = None, seed: int | None = None, registry: ArchRegistry = MAIN_REGISTRY
) -> list[str]:
    """Register the models with spandrel. A second call changes nothing, not even the temperature.

    Args:
        temperature: standard deviation of the latents of the one image that a program asks for. ``None``: the
            environment variable ``SR_MODELS_TEMPERATURE``, or else 0, the image of the zero latents. Above 0, the
            noise at a pixel depends on the pixels around it, so that overlapping tiles of a program agree.
        seed: of the noise, in 0..2^31 - 1. ``None``: the environment variable ``SR_MODELS_SEED``, or else 0.
        registry: the registry of spandrel to add to.

    Returns:
        Names of the models that were added.

    Raises:
        ValueError: a temperature that is negative or not finite, or a seed out of range.

    Example:
        >>> from spandrel import ModelLoader
        >>> names = install()
        >>> model = ModelLoader().load_from_file("4x_photo.safetensors")  # doctest: +SKIP
    """
    if temperature is None:
        temperature = _from_environment("SR_MODELS_TEMPERATURE", 0.0, float)
    if seed is None:
        seed = _from_environment("SR_MODELS_SEED", 0, int)
    temperatures_of(temperature, 1)
    check_seed(seed)
    supports = [
        ArchSupport.from_architecture(FlowArchitecture(plugin.name, temperature, seed)) for plugin in list_models()
    ]
    return [str(added.architecture.id) for added in registry.add(*supports, ignore_duplicates=True)]


def _from_environment(name: str, default: Any, read: Callable[[str], Any]) -> Any:
    given = os.environ.get(name)
    try:
        return default if given is None else read(given)
    except ValueError:
        raise ValueError(f"environment variable {name} must be a number, got {given!r}") from None


class FlowArchitecture(Architecture[SuperResolutionFlow]):
    """Describe one registered model to spandrel.

    Args:
        name: name of the model, which is the architecture's id.
        temperature, seed: as for :func:`install`.
    """

    def __init__(self, name: str, temperature: float = 0.0, seed: int = 0) -> None:
        super().__init__(id=name, detect=lambda state_dict: model_name(state_dict) == name)
        self._temperature = temperature
        self._seed = seed

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[SuperResolutionFlow]:
        """Build the model of a state dict, a published one or that of a file of this package.

        Raises:
            ValueError: tensors that do not fit the model, or a published file of sizes that no preset completes.
        """
        description = description_in(state_dict)
        if description is None:
            model = model_of_published(plain_names(state_dict))
            tensors = model.state_dict()
        else:
            tensors = evaluated_tensors(state_dict)
            model = create_stored_model(description, tensors).eval()
        sizes = {"hidden_channels": "hc", "features": "nf", "blocks": "nb"}
        tags = [f"{getattr(model.config, field)}{tag}" for field, tag in sizes.items() if hasattr(model.config, field)]
        return ImageModelDescriptor(
            model,
            tensors,
            architecture=self,
            purpose="SR",
            tags=tags,
            # in half precision a flow is no longer the inverse of itself
            supports_half=False,
            supports_bfloat16=False,
            scale=model.scale,
            input_channels=3,
            output_channels=3,
            call_fn=partial(_enlarge, temperature=self._temperature, seed=self._seed),
        )


def _enlarge(model: SuperResolutionFlow, image: Tensor, *, temperature: float, seed: int) -> Tensor:
    if temperature == 0:
        # an image that explodes has no other draw, and the program has no choice to offer
        return model.sample(image, 1, temperature=0.0, on_explode="clamp")[:, 0]
    return sample_locally(model, image, temperature, seed)


def model_name(state_dict: Mapping[str, Any]) -> str | None:
    """Return the name of the model that a state dict belongs to; ``None`` if it is none of this package.

    Args:
        state_dict: names and tensors of a published file, or of a file of this package.
    """
    if not state_dict or not all(isinstance(tensor, Tensor) for tensor in state_dict.values()):
        return None
    try:
        description = description_in(state_dict)
        if description is not None:
            return str(description["model"]) if "config" in description else None
        return told_by(plain_names(dict(state_dict)))[0]
    except ValueError:
        return None
