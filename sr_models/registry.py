"""Registry of models: built-in plugins, and those that installed packages register.

A package adds a model by an entry point of the group ``sr_models.plugins`` that names a module; importing that module
must call :func:`register_model`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from sr_models._plugins import load_plugins, summary_of
from sr_models.training.recipe import Recipe

if TYPE_CHECKING:
    # torch is not needed to know which settings there are
    from sr_models.flow.model import SuperResolutionFlow
    from sr_models.models.publication import Publication

__all__ = [
    "ModelPlugin",
    "config_of",
    "create",
    "get_plugin",
    "list_models",
    "published_models",
    "recipe_of",
    "register_model",
]

Builder = TypeVar("Builder", bound=Callable[[Any], "SuperResolutionFlow"])

_BUILTIN = (
    "sr_models.models.srflow",
    "sr_models.models.srflow_da",
    "sr_models.models.ncsr",
    "sr_models.models.hcflow",
    "sr_models.models.hcflow_rescaling",
)
_plugins: dict[str, ModelPlugin] = {}
_loaded = False


@dataclass(frozen=True)
class ModelPlugin:
    """One registered model.

    Attributes:
        name: its name in :func:`create` and on the command line.
        config: dataclass of everything that determines the architecture; it has a field ``scale``.
        presets: preset name -> scale -> fields of the config that it sets.
        build: makes the model from a config.
        summary: one line.
        recipes: preset name -> scale -> default training settings; presets without any use those of :class:`Recipe`.
        published: description of its published files and options; ``None`` for a model without any.
    """

    name: str
    config: type
    presets: Mapping[str, Mapping[int, Mapping[str, Any]]]
    build: Callable[[Any], SuperResolutionFlow]
    summary: str
    recipes: Mapping[str, Mapping[int, Recipe]] = field(default_factory=dict)
    published: Publication | None = None

    @property
    def scales(self) -> tuple[int, ...]:
        """Enlargements for which it has a preset."""
        return tuple(sorted({scale for preset in self.presets.values() for scale in preset}))


def register_model(
    name: str,
    *,
    config: type,
    presets: Mapping[str, Mapping[int, Mapping[str, Any]]],
    summary: str = "",
    recipes: Mapping[str, Mapping[int, Recipe]] | None = None,
    published: Publication | None = None,
) -> Callable[[Builder], Builder]:
    """Return a decorator that registers a function that builds a model from a config.

    Args:
        name: the model's name.
        config: dataclass of everything that determines the architecture; it has a field ``scale``.
        presets: preset name -> scale -> fields of the config that it sets; one preset is called "released".
        summary: one line; default: the first line of the function's docstring.
        recipes: preset name -> scale -> default training settings; presets without any use those of :class:`Recipe`.
        published: description of its published files and options, which makes them convertible; default: none.

    Raises:
        ValueError: if the name is taken.
    """

    def decorator(build: Builder) -> Builder:
        if name in _plugins:
            raise ValueError(f"a model named {name!r} is already registered")
        line = summary_of(build, summary)
        _plugins[name] = ModelPlugin(name, config, presets, build, line, recipes or {}, published)
        return build

    return decorator


def _load() -> None:
    global _loaded
    if _loaded:
        return
    _loaded = True
    load_plugins(_BUILTIN)


def list_models() -> list[ModelPlugin]:
    """List every registered model, by name."""
    _load()
    return [_plugins[name] for name in sorted(_plugins)]


def published_models() -> list[tuple[ModelPlugin, Publication]]:
    """List the models that have published files: built-in ones first, then others in the order of registration."""
    _load()
    # somebody may have imported modules of models before, in any order
    order = {module: position for position, module in enumerate(_BUILTIN)}
    ordered = sorted(_plugins.values(), key=lambda plugin: order.get(plugin.build.__module__, len(order)))
    return [(plugin, plugin.published) for plugin in ordered if plugin.published is not None]


def get_plugin(name: str) -> ModelPlugin:
    """Return the registered model of that name.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    _load()
    if name not in _plugins:
        raise ValueError(f"model must be one of {', '.join(map(repr, sorted(_plugins)))}, got {name!r}")
    return _plugins[name]


def config_of(name: str, *, scale: int = 4, preset: str = "released", **overrides: Any) -> Any:
    """Return the config of a model: a preset with single fields replaced.

    Args:
        name, scale, preset, overrides: as for :func:`create`.

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
    if scale not in plugin.presets[preset]:
        allowed = ", ".join(map(str, plugin.presets[preset]))
        raise ValueError(f"scale of {name} with preset {preset!r} must be {allowed}, got {scale}")
    return plugin.config(scale=scale, **{**plugin.presets[preset][scale], **overrides})


def recipe_of(name: str, *, scale: int = 4, preset: str = "released") -> Recipe:
    """Return the default training settings of a preset.

    Args:
        name, scale, preset: as for :func:`create`.

    Raises:
        ValueError: an unknown model, scale or preset; the message lists the known ones.
    """
    config_of(name, scale=scale, preset=preset)
    return get_plugin(name).recipes.get(preset, {}).get(scale, Recipe())


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
