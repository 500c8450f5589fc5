"""Present values of parameters, also of those that a hook computes before every forward pass."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["current"]


def current(module: nn.Module, name: str) -> Tensor:
    """Return the present value of a parameter or of what took its place.

    ``torch.nn.utils.weight_norm``, ``spectral_norm`` and ``prune`` make a parameter an attribute that a hook computes
    in ``module(...)``. An inverse, or a pass that joins several layers, has to compute it itself.

    Args:
        module: the module that had the parameter.
        name: its name.
    """
    parameter = module._parameters.get(name)
    if parameter is not None:
        return parameter
    hooks = list(module._forward_pre_hooks.values())
    for hook in hooks:
        if isinstance(hook, BasePruningMethod) and str(hook._tensor_name).startswith(f"{name}_"):
            hook(module, None)  # a pruned norm or direction, of which the hook below makes the weight
    for hook in hooks:
        if isinstance(hook, WeightNorm) and hook.name == name:
            return hook.compute_weight(module)
        if isinstance(hook, SpectralNorm) and hook.name == name:
            return hook.compute_weight(module, do_power_iteration=False)
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            return hook.apply_mask(module)
    value: Tensor = getattr(module, name)
    return value
