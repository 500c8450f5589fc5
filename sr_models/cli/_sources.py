"""Options that stand in files and environment variables, turned into what the user could have typed."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sr_models.cli._nearest import nearest
from sr_models.io.yaml_text import parse_yaml

__all__ = ["from_environment", "from_files", "split_files"]


def split_files(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take the files of ``--config FILE`` and ``--config=FILE`` out of the options; return the files and the rest."""
    files, rest = [], []
    given = iter(options)
    for option in given:
        name, equals, value = option.partition("=")
        if name != "--config":
            rest.append(option)
        elif file := value if equals else next(given, ""):
            files.append(file)
        else:
            raise ValueError("--config needs the name of a YAML file")
    return files, rest


def from_files(files: Sequence[str], known: Collection[str]) -> list[str]:
    """Return the settings of YAML files as options; later files win. A value of null stands for the default.

    Args:
        files: their names; ``~`` is the home folder.
        known: names of the options that may stand in a file.

    Raises:
        OSError: a file that cannot be read.
        ValueError: no YAML, no mapping, or an unknown option. The message names the file.
    """
    settings: dict[str, Any] = {}
    for file in files:
        for name, value in _read(file).items():
            option = str(name).replace("-", "_")
            if option not in known:
                raise ValueError(f"unknown setting {str(name)!r} in {file}{nearest(option, known)}")
            settings[option] = value
    return [f"--{name}={_typed(value)}" for name, value in settings.items() if value is not None]


def from_environment(prefix: str, variables: Mapping[str, str], known: Collection[str]) -> list[str]:
    """Return the settings of environment variables as options: ``PREFIX_BATCH_SIZE`` is ``--batch_size``.

    Args:
        prefix: beginning of the variables' names, with the underscore.
        variables: the environment.
        known: names of the options that may be a variable.

    Raises:
        ValueError: a variable with the prefix that names no option.
    """
    options = []
    for variable, value in variables.items():
        if variable.startswith(prefix):
            name = variable.removeprefix(prefix).lower()
            if name not in known:
                raise ValueError(f"environment variable {variable} names no option{nearest(name, known)}")
            options.append(f"--{name}={value}")
    return options


def _read(file: str) -> dict[Any, Any]:
    try:
        with open(os.path.expanduser(file), encoding="utf-8") as stream:
            content = parse_yaml(stream)
    except FileNotFoundError:
        raise FileNotFoundError(f"config {file} does not exist") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"config {file} is no text: {error}") from None
    except ValueError as error:
        raise ValueError(f"config {file} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"config {file} must hold lines such as 'steps: 1000', got a {type(content).__name__}")
    return content


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
