"""sr_models: super-resolution flows as plugins, built from invflow layers, with trainers and evaluators."""

from sr_models.checkpoints.published import from_published
from sr_models.flow.model import Encoding, SuperResolutionFlow
from sr_models.inspection.check import ModelCheck, check_model
from sr_models.inspection.describe import describe
from sr_models.registry import create, list_models, register_model

__all__ = [
    "Encoding",
    "ModelCheck",
    "SuperResolutionFlow",
    "check_model",
    "create",
    "describe",
    "from_published",
    "list_models",
    "register_model",
]
