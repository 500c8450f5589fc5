"""State dicts as people save them: inside another dict, with prefixes, or under the names of another repository."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sr_models.checkpoints.archive import is_state_dict

__all__ = ["plain_names", "unwrap"]

#: Entries under which training code keeps a state dict, the best first: averaged weights before those of the last step.
_ENTRIES = ("params_ema", "params", "state_dict")
#: Prefixes of every name that data-parallel training and torch.compile leave.
_PREFIXES = ("module.", "_orig_mod.")
#: BasicSR's and Real-ESRGAN's names of an RRDB encoder, as patterns, and those of the published files.
_BASICSR = {
    r"body\.(\d+)\.rdb(\d+)\.": r"RRDB_trunk.\1.RDB\2.",
    r"conv_body\.": "trunk_conv.",
    r"conv_up(\d+)\.": r"upconv\1.",
    r"conv_hr\.": "HRconv.",
}


def unwrap(content: Any) -> Any:
    """Return the state dict in an entry of the dict that training code saved, or ``content`` if there is none."""
    if isinstance(content, Mapping):
        for entry in _ENTRIES:
            if is_state_dict(content.get(entry)):
                return content[entry]
    return content


def plain_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove prefixes that all names share, and translate BasicSR's names of an RRDB encoder to the published ones."""
    tensors = dict(state_dict)
    while tensors and (prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if "conv_body.weight" not in tensors:
        return tensors
    return {_published(name): tensor for name, tensor in tensors.items()}


def _published(name: str) -> str:
    for pattern, replacement in _BASICSR.items():
        if match := re.match(pattern, name):
            return match.expand(replacement) + name[match.end() :]
    return name
