"""The rooms of sr_models depend on each other in one direction, and no module on itself by way of others."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sr_models

ROOT = Path(sr_models.__file__).parent

#: Rooms from the ground floor up: each imports only those above it in this list. Rooms of one line are strangers.
#: A module that is named here itself is a room of its own: its package's other modules are elsewhere.
FLOORS = [
    {"_extras", "_plugins", "memory", "openmp", "seeds"},
    {"randomness"},
    {"io"},
    {"degradations"},
    {"data"},
    {"networks"},
    {"flow"},
    {"training.recipe", "models.publication"},
    {"registry"},
    {"models"},
    {"checkpoints"},
    {"inspection", "evaluation", "interop"},
    {"study"},
    {"training"},
    {"demo"},
    {"cli"},
]


def modules() -> dict[str, Path]:
    """Dotted name below sr_models -> file; packages end in their own name, the facade is left out."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if name := ".".join(parts[:-1] if parts[-1] == "__init__" else parts):
            found[name] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules below sr_models that a file imports, wherever in it; "" is the facade itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            # a name may be a module of the package or something in it
            names = [
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}".removeprefix("sr_models.") in known
                else str(node.module)
                for alias in node.names
            ]
        else:
            continue
        found |= {name.removeprefix("sr_models").lstrip(".") for name in names if name.split(".")[0] == "sr_models"}
    return found


MODULES = modules()
IMPORTS = {name: imported(path, MODULES) for name, path in MODULES.items()}


def floor(module: str) -> tuple[int, str]:
    """Number and name of the room that a module is in; the longest name counts."""
    rooms = [
        (room, number)
        for number, rooms in enumerate(FLOORS)
        for room in rooms
        if module == room or module.startswith(room + ".")
    ]
    assert rooms, f"{module} is in no room"
    room, number = max(rooms, key=lambda entry: len(entry[0]))
    return number, room


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_upwards(module: str) -> None:
    number, room = floor(module)
    for other in IMPORTS[module]:
        assert other, f"{module} imports the package sr_models itself, which stands above every room"
        other_number, other_room = floor(other)
        assert other_number < number or other_room == room, f"{module} imports {other}, which stands above it"


def test_no_circles() -> None:
    # a package's own file belongs to the package's modules: importing one of them runs it
    assert len(list(TopologicalSorter(IMPORTS).static_order())) == len(MODULES)


def test_the_reader_of_imports_sees_them_all(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(
        "import sr_models\nfrom sr_models import registry\nfrom sr_models.io.files import write_text\n"
        "def f():\n    import sr_models.flow.model\n    from sr_models import create\n    import sr_modelsx, torch\n"
    )
    assert imported(tmp_path / "x.py", MODULES) == {"", "registry", "io.files", "flow.model"}
    # the rooms are in use: an import of every floor but the highest is seen
    assert {floor(other) for others in IMPORTS.values() for other in others} >= {
        floor(room) for rooms in FLOORS[:-2] for room in rooms
    }
