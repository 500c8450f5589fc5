"""Settings of a call as the flat arguments of the registered operators: the only place that knows their positions."""

from __future__ import annotations

from typing import Any

from invflow.backends.protocol import Form, Settings

__all__ = ["COUNT", "SCHEMA", "flat_settings", "settings_of"]

_FORM = "str {0}_scale, float {0}_parameter, str {0}_order, str {0}_packing"

#: The arguments as PyTorch's schema language declares them, in the order of :func:`flat_settings`.
SCHEMA = f"{_FORM.format('coupling')}, {_FORM.format('injector')}, int start, bool inverse"

#: Number of these arguments.
COUNT = SCHEMA.count(",") + 1

_WIDTH = len(Form._fields)


def flat_settings(settings: Settings) -> tuple[Any, ...]:
    """Return the settings as flat arguments."""
    return *settings.coupling, *settings.injector, settings.start, settings.inverse


def settings_of(flat: tuple[Any, ...]) -> Settings:
    """Return the settings that :func:`flat_settings` flattened."""
    return Settings(Form(*flat[:_WIDTH]), Form(*flat[_WIDTH : 2 * _WIDTH]), *flat[2 * _WIDTH :])
