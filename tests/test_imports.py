"""Imports run downwards: no module imports from a floor above its own, nor from tests or benchmarks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Packages and modules of each floor, the lowest first. The longest name that a module begins with is its own.
FLOORS = (
    ("invflow._C", "invflow._CUDA"),  # csrc, compiled
    ("invflow._numerics",),
    ("invflow.backends",),
    ("invflow.ops",),
    ("invflow.layers",),
    ("invflow",),
    ("sr_models",),
    ("benchmarks", "tests"),
)
_FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
#: Modules that no Python file defines.
_COMPILED = FLOORS[0]


def floor_of(module: str) -> int | None:
    """The floor on which a module stands, or None if it is not the project's."""
    parts = module.split(".")
    begins = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((_FLOOR_OF[name] for name in begins if name in _FLOOR_OF), None)


def module_of(path: Path) -> str:
    """The name of the module that a file below the root defines."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Every line of ``source``, at any depth, that imports a module, and which one."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield node.lineno, inner if is_module(inner) else origin
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func) and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name in _COMPILED or path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def upward(source: str, module: str, is_package: bool = False) -> list[str]:
    """The imports of a module's ``source`` that run upwards, one line each."""
    own = floor_of(module)
    assert own is not None
    found = [(line, name, floor_of(name)) for line, name in imported(source, module, is_package)]
    return [
        f"{module}, line {line}: imports {name}" for line, name, floor in found if floor is not None and floor > own
    ]


def test_no_import_runs_upwards() -> None:
    found = []
    for path in sorted(path for folder in ("invflow", "sr_models") for path in (ROOT / folder).rglob("*.py")):
        found += upward(path.read_text(), module_of(path), path.name == "__init__.py")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "target"),
    [
        ("invflow.backends.cpu", "from invflow.ops.flow_step import flow_step", "invflow.ops.flow_step"),
        ("invflow.backends.cpu", "def f():\n    import invflow.layers", "invflow.layers"),
        ("invflow.backends.cpu", "from .. import ops", "invflow.ops"),
        ("invflow.backends.cpu", "from invflow import flow_step", "invflow"),
        ("invflow.backends.triton.operators", "from ...layers import ActNorm", "invflow.layers"),
        ("invflow.ops.flow_step", "importlib.import_module('invflow.layers')", "invflow.layers"),
        ("invflow.layers.actnorm", "import invflow", "invflow"),
        ("invflow.testing", "from sr_models import create", "sr_models"),
        ("sr_models.model", "from benchmarks import cases", "benchmarks.cases"),
        ("sr_models.model", "from tests.gates import page", "tests.gates.page"),
    ],
)
def test_an_import_upwards_is_found(module: str, source: str, target: str) -> None:
    assert upward(source, module) == [f"{module}, line {source.count(chr(10)) + 1}: imports {target}"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("invflow.backends.cpu", "from invflow import _C"),
        ("invflow.ops.flow_step", "from invflow.backends import select_backend\nimport torch"),
        ("invflow.layers.actnorm", "from .conv1x1 import InvertibleConv1x1"),
        ("invflow.info", "import invflow"),
        ("sr_models.model", "from invflow.layers import FlowSequential"),
    ],
)
def test_an_import_downwards_is_allowed(module: str, source: str) -> None:
    assert not upward(source, module)
