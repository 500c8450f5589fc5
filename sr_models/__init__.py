"""sr_models: super-resolution flows as plugins, built from invflow layers, with trainers and evaluators.

Everything here is imported when it is first used, so that ``import sr_models`` loads neither torch nor what only
training needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "Calibration",
    "Encoding",
    "ModelCheck",
    "SuperResolutionFlow",
    "TrainingConfig",
    "calibrate_model",
    "check_model",
    "create",
    "degrade",
    "describe",
    "evaluate_model",
    "evaluate_samples",
    "from_pretrained",
    "from_published",
    "intervals",
    "list_degradations",
    "list_models",
    "load",
    "load_model",
    "register_degradation",
    "register_model",
    "save_model",
    "save_pretrained",
    "train_model",
]

if TYPE_CHECKING:
    from sr_models.checkpoints.files import load, load_model, save_model
    from sr_models.checkpoints.published import from_published
    from sr_models.degradations.registry import degrade, list_degradations, register_degradation
    from sr_models.evaluation.evaluate import evaluate_model
    from sr_models.evaluation.folder import evaluate_samples
    from sr_models.evaluation.uncertainty.calibration import Calibration, calibrate_model
    from sr_models.evaluation.uncertainty.order_statistics import intervals
    from sr_models.flow.encoding import Encoding
    from sr_models.flow.model import SuperResolutionFlow
    from sr_models.inspection.check import ModelCheck, check_model
    from sr_models.inspection.describe import describe
    from sr_models.interop.hub import from_pretrained, save_pretrained
    from sr_models.registry import create, list_models, register_model
    from sr_models.training.config import TrainingConfig
    from sr_models.training.run import train_model
else:
    # not for type checkers, which would take every other name for an attribute of this module too
    _MODULES = {
        "Calibration": "sr_models.evaluation.uncertainty.calibration",
        "Encoding": "sr_models.flow.encoding",
        "ModelCheck": "sr_models.inspection.check",
        "SuperResolutionFlow": "sr_models.flow.model",
        "TrainingConfig": "sr_models.training.config",
        "calibrate_model": "sr_models.evaluation.uncertainty.calibration",
        "check_model": "sr_models.inspection.check",
        "create": "sr_models.registry",
        "degrade": "sr_models.degradations.registry",
        "describe": "sr_models.inspection.describe",
        "evaluate_model": "sr_models.evaluation.evaluate",
        "evaluate_samples": "sr_models.evaluation.folder",
        "from_pretrained": "sr_models.interop.hub",
        "from_published": "sr_models.checkpoints.published",
        "intervals": "sr_models.evaluation.uncertainty.order_statistics",
        "list_degradations": "sr_models.degradations.registry",
        "list_models": "sr_models.registry",
        "load": "sr_models.checkpoints.files",
        "load_model": "sr_models.checkpoints.files",
        "register_degradation": "sr_models.degradations.registry",
        "register_model": "sr_models.registry",
        "save_model": "sr_models.checkpoints.files",
        "save_pretrained": "sr_models.interop.hub",
        "train_model": "sr_models.training.run",
    }

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value = getattr(importlib.import_module(_MODULES[name]), name)
        except ModuleNotFoundError as error:
            from sr_models._extras import install_hint

            if hint := install_hint(error):
                raise ModuleNotFoundError(f"sr_models.{name} needs a package: {hint}", name=error.name) from None
            raise
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
