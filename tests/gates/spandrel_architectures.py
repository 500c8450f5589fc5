"""Detect models by spandrel: ``python -m tests.gates.spandrel_architectures`` prints the table of docs/sr-tools.md.

Every architecture that spandrel knows is made with its own defaults, or with the arguments below where it has none.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from spandrel import ArchRegistry
from spandrel.__helpers.main_registry import MAIN_REGISTRY
from torch import Tensor

from sr_models.interop.spandrel import install, model_name

_IMAGES = {"num_in_ch": 3, "num_out_ch": 3}
#: Arguments of classes that cannot be made without any, or that their own detection does not know with the defaults.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "AuraSR": {"dim": 16, "image_size": 64, "input_image_size": 16, "style_network": {"dim_in": 16, "dim_out": 16}},
    "MMRealSR": _IMAGES,
    "NAFNet": {"enc_blk_nums": [1], "dec_blk_nums": [1], "middle_blk_num": 1},
    "SAFMN": {"dim": 36},
    "SAFMNBCIE": {"dim": 36},
    "SPAN": _IMAGES,
    "Swin2SR": {"window_size": 8},
    "SwinIR": {"window_size": 8},
}
_KEYS = Path(__file__).parents[1] / "data" / "golden" / "keys"


def foreign_state_dicts() -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the id of every architecture that spandrel brings, and a state dict of each of its classes."""
    for support in MAIN_REGISTRY:
        package = type(support.architecture).__module__
        if not package.startswith("spandrel."):
            continue
        module = importlib.import_module(package)
        for name in (name for name in module.__all__ if not name.endswith("Arch")):
            yield (
                support.architecture.id,
                _state_dict(getattr(module, name), _ARGUMENTS.get(support.architecture.id, {})),
            )


def _state_dict(network: type[torch.nn.Module], arguments: dict[str, Any]) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return network(**arguments).state_dict()
        except (RuntimeError, NotImplementedError):
            # some compute with numbers while they are made
            return network(**arguments).state_dict()


def published_state_dicts() -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the name of every published layout, and a state dict of its names and shapes."""
    for path in sorted(_KEYS.glob("*.json")):
        shapes = json.loads(path.read_text())["state_dict"]
        yield path.stem, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def detected(registry: ArchRegistry, state_dict: dict[str, Tensor]) -> list[str]:
    """List the ids of all architectures of a registry that take a state dict for theirs."""
    return [str(support.architecture.id) for support in registry if support.detect(state_dict)]


def main() -> None:
    """Print a line for every published layout of this package, and one for every architecture of spandrel."""
    ours, everyone = ArchRegistry(), MAIN_REGISTRY.copy()
    install(registry=ours)
    install(registry=everyone)
    print("| state dict | detected as |\n| --- | --- |")
    for name, state_dict in published_state_dicts():
        print(f"| published {name} | {', '.join(detected(everyone, state_dict))} |")
    false = 0
    known = set()
    for name, state_dict in foreign_state_dicts():
        known.add(name)
        found = detected(everyone, state_dict)
        false += model_name(state_dict) is not None
        print(f"| {name} of spandrel | {', '.join(found)} |")
    print(f"\n{len(known)} architectures of spandrel, {false} of their state dicts taken for ours.")


if __name__ == "__main__":
    main()
