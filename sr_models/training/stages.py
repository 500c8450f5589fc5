"""Training runs one after another, each from the model of the former: encoder, flow, fine-tuning."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lightning.fabric.utilities import rank_zero_only

from sr_models.checkpoints.runs import weights_of_run
from sr_models.registry import config_of
from sr_models.training.check import RunCheck
from sr_models.training.config import TrainingConfig
from sr_models.training.run import train_model

__all__ = ["Stage", "plan_stages", "stage_runs", "train_stages"]

_MODEL = "model.safetensors"
#: Settings that say where a run's weights come from; the later stages have the former's model.
_ORIGINS = ("encoder", "init_from")


@dataclass(frozen=True)
class Stage:
    """One of several training runs.

    Attributes:
        name: letters, digits, ``-``, ``_`` and dots; the folder's name ends in it.
        config: settings of the run.
    """

    name: str
    config: TrainingConfig


def plan_stages(shared: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> list[Stage]:
    """Return the stages that a recipe describes.

    Args:
        shared: settings of every stage, by the names of :class:`TrainingConfig`. ``encoder`` and ``init_from`` are for
            the first stage alone.
        stages: for each stage ``name``, and the settings in which it differs.

    Raises:
        ValueError: no stages, a name that is missing or no name of a folder, an unknown or wrong setting, or stages of
            different architectures. The message names the stage.
    """
    if not stages:
        raise ValueError("stages must hold at least one stage, got none")
    planned: list[Stage] = []
    for number, given in enumerate(stages, 1):
        own = dict(given)
        name = own.pop("name", None)
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"stage {number} must have a name of letters, digits, -, _ and dots, got {name!r}")
        try:
            planned.append(Stage(name, _config(shared, own, first=number == 1)))
            if _architecture(planned[-1].config) != _architecture(planned[0].config):
                raise ValueError("model, scale, preset and overrides must be those of the first stage")
        except ValueError as error:
            raise ValueError(f"stage {number} ({name}): {error}") from error
    return planned


def train_stages(stages: Sequence[Stage], output: str | os.PathLike[str], **placement: Any) -> Path:
    """Train stage after stage, or go on with the stage that was interrupted.

    The runs lie in ``OUTPUT/1-NAME``, ``OUTPUT/2-NAME``, ... Each begins with the former's ``model.safetensors``. A
    stage that has one itself is finished, and is not run again. The last one goes on if it has more steps than before.

    Args:
        stages: of :func:`plan_stages`.
        output: folder, created if needed.
        **placement: arguments of :func:`sr_models.train_model` besides config and output.

    Returns:
        The path of the last stage's ``model.safetensors``.

    Raises:
        ValueError: a finished stage that had other settings, or images that do not fit a later stage; nothing has run
            then. Besides, what :func:`sr_models.train_model` raises.
    """
    runs = stage_runs(stages, output)
    *_, last = runs
    finished = [placement.get("resume") != "never" and (folder / _MODEL).exists() for folder in runs]
    if finished[-1]:
        finished[-1] = _has_ended(last, runs[last])
    for (folder, config), done in zip(runs.items(), finished, strict=True):
        # all of them before the first one takes its time
        if done:
            _check_finished(folder, config)
        else:
            RunCheck(config)
    say = rank_zero_only(print)
    for (folder, config), done in zip(runs.items(), finished, strict=True):
        if done:
            say(f"stage {folder.name} is finished")
        else:
            say(f"stage {folder.name}")
            train_model(config, folder, **placement)
    return last / _MODEL


def stage_runs(stages: Sequence[Stage], output: str | os.PathLike[str]) -> dict[Path, TrainingConfig]:
    """Return the folder of every stage with its settings: a later one begins with the former's model."""
    runs: dict[Path, TrainingConfig] = {}
    former: Path | None = None
    for number, stage in enumerate(stages, 1):
        folder = Path(output) / f"{number}-{stage.name}"
        runs[folder] = replace(stage.config, init_from=str(former / _MODEL)) if former else stage.config
        former = folder
    return runs


def _config(shared: Mapping[str, Any], own: Mapping[str, Any], *, first: bool) -> TrainingConfig:
    known = [entry.name for entry in fields(TrainingConfig)]
    for name in own:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            raise ValueError(f"there is no setting {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
        if name in _ORIGINS and not first:
            raise ValueError(f"{name} must not be given: a later stage begins with the model of the former")
    settings = {name: value for name, value in shared.items() if first or name not in _ORIGINS}
    defaults = {entry.name: entry.default for entry in fields(TrainingConfig) if entry.default is not MISSING}
    # null means the default, as it does outside of stages
    settings |= {name: defaults.get(name) if value is None else value for name, value in own.items()}
    if missing := [name for name in ("model", "images") if settings.get(name) is None]:
        raise ValueError(f"{' and '.join(missing)} must be given")
    return TrainingConfig(**settings)


def _architecture(config: TrainingConfig) -> tuple[str, Any]:
    return config.model, config_of(config.model, scale=config.scale, preset=config.preset, **config.overrides)


def _has_ended(folder: Path, config: TrainingConfig) -> bool:
    """Tell whether a run that once was finished is so still: not if it goes on, or is to go on, with more steps."""
    newest = weights_of_run(folder) or []
    return newest[:1] == [folder / _MODEL] and _former_settings(folder).get("steps") == config.recipe.steps


def _check_finished(folder: Path, config: TrainingConfig) -> None:
    """Refuse to take a finished run for one with other settings. Of what a run may change, only its steps matter."""
    former = _former_settings(folder)
    free = {entry.name for entry in fields(TrainingConfig) if entry.metadata.get("resume") == "free"}
    # through JSON, as what is stored
    given = json.loads(json.dumps(config.settings()))
    changes = [
        f"{name} was {former.get(name)!r}, now {value!r}"
        for name, value in given.items()
        if name not in free - {"steps"} and name not in _ORIGINS and former.get(name, value) != value
    ]
    if changes:
        raise ValueError(
            f"the stage in {folder} is finished and had other settings ({', '.join(changes)}); choose another output"
        )


def _former_settings(folder: Path) -> dict[str, Any]:
    record = folder / "training.json"
    try:
        return dict(json.loads(record.read_bytes())["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{record} does not say how the finished stage was trained; choose another output") from error
