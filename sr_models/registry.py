"""Names of models: built-in plugins, and those that installed packages register.

A package adds a model by an entry point of the group ``sr_models.plugins`` that names a module; importing that module
must call :func:`register_model`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from sr_models.model import SuperResolutionFlow

__all__ = ["ModelPlugin", "config_of", "create", "get_plugin", "list_models", "register_model"]

Builder = TypeVar("Builder", bound=Callable[[Any], SuperResolutionFlow])

_BUILTIN = ("sr_models.models.srflow_da",)
_plugins: dict[str, ModelPlugin] = {}
_loaded = False


@dataclass(frozen=True)
class ModelPlugin:
    """One registered model.

    Attributes:
        name: what :func:`create` and the command line call it.
        config: dataclass of everything that determines the architecture; has a field ``scale``.
        scales: enlargements that it can be built for.
        presets: preset name -> fields of the config that it sets.
        build: makes the model from a config.
        summary: one line.
    """

    name: str
    config: type
    scales: tuple[int, ...]
    presets: Mapping[str, Mapping[str, Any]]
    build: Callable[[Any], SuperResolutionFlow]
    summary: str


def register_model(
    name: str, *, config: type, scales: tuple[int, ...], presets: Mapping[str, Mapping[str, Any]]
) -> Callable[[Builder], Builder]:
    """Decorator: register a function that builds a model from a config; its docstring's first line is the summary.

    Raises:
        ValueError: if the name is taken.
    """

    def decorator(build: Builder) -> Builder:
        if name in _plugins:
            raise ValueError(f"a model named {name!r} is already registered")
        summary = (build.__doc__ or "").strip().split("\n")[0]
        _plugins[name] = ModelPlugin(name, config, scales, presets, build, summary)
        return build

    return decorator


def _load() -> None:
    global _loaded
    if _loaded:
        return
    _loaded = True
    for module in _BUILTIN:
        importlib.import_module(module)
    for entry_point in entry_points(group="sr_models.plugins"):
        entry_point.load()


def list_models() -> list[ModelPlugin]:
    """Every registered model, by name."""
    _load()
    return [_plugins[name] for name in sorted(_plugins)]


def get_plugin(name: str) -> ModelPlugin:
    """The registered model of that name.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    _load()
    if name not in _plugins:
        raise ValueError(f"model must be one of {', '.join(map(repr, sorted(_plugins)))}, got {name!r}")
    return _plugins[name]


def config_of(name: str, *, scale: int = 4, preset: str = "released", **overrides: Any) -> Any:
    """The config of a model: a preset with single fields replaced.

    Raises:
        ValueError: an unknown model, scale, preset or field; the message lists the known ones.
    """
    plugin = get_plugin(name)
    if scale not in plugin.scales:
        raise ValueError(f"scale of {name} must be one of {', '.join(map(str, plugin.scales))}, got {scale}")
    if preset not in plugin.presets:
        raise ValueError(f"preset of {name} must be one of {', '.join(map(repr, plugin.presets))}, got {preset!r}")
    fields = [field.name for field in dataclasses.fields(plugin.config) if field.name != "scale"]
    if unknown := sorted(set(overrides) - set(fields)):
        raise ValueError(f"overrides of {name} must be among {', '.join(fields)}, got {', '.join(unknown)}")
    return plugin.config(scale=scale, **{**plugin.presets[preset], **overrides})


def create(name: str, *, scale: int = 4, preset: str = "released", **overrides: Any) -> SuperResolutionFlow:
    """Build a model with fresh weights: ``create("srflow-da", scale=4, hidden_channels=32)``.

    Args:
        name: a registered model, see :func:`list_models`.
        scale: enlargement.
        preset: named architecture of that model.
        **overrides: single fields of the model's config.

    Raises:
        ValueError: an unknown model, scale, preset or field; the message lists the known ones.
    """
    config = config_of(name, scale=scale, preset=preset, **overrides)
    model = get_plugin(name).build(config)
    model.name, model.config = name, config
    return model
