"""``import sr_models`` is cheap, offers what users need, and says what to install."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from missing_packages import run_without

import sr_models

HEAVY = {"torch", "numpy", "lightning", "lpips", "matplotlib", "PIL", "scipy", "skimage", "tensorboard", "torchvision"}


def loaded_by(code: str) -> set[str]:
    result = run_without((), f"{code}\nimport sys; print(*sys.modules)")
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in result.stdout.split()}


def test_the_import_loads_nothing_heavy() -> None:
    assert not loaded_by("import sr_models") & HEAVY


def test_only_training_and_evaluation_load_their_packages() -> None:
    code = """
import sr_models, sr_models.training.recipe, sr_models.training.config
sr_models.create, sr_models.describe, sr_models.check_model, sr_models.load_model, sr_models.list_models()
sr_models.TrainingConfig(model="srflow", images=".")
"""
    assert not loaded_by(code) & {"lightning", "lpips", "matplotlib", "skimage", "tensorboard", "torchvision"}


def test_the_names_for_type_checkers_are_those_at_run_time() -> None:
    tree = ast.parse(Path(sr_models.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node.module for node in imports for alias in node.names}
    assert typed == sr_models._MODULES
    assert sorted(typed) == sorted(sr_models.__all__)
    for name, module in typed.items():
        value = getattr(sr_models, name)
        assert value is getattr(sys.modules[str(module)], name)
        assert value.__module__ == module


def test_dir_lists_what_is_imported_late_and_what_is_there() -> None:
    assert {*sr_models.__all__, "__all__", "__doc__"} <= set(dir(sr_models))


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match=r"module 'sr_models' has no attribute 'nonesuch'"):
        sr_models.nonesuch  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nonesuch'"):
        from sr_models import nonesuch  # noqa: F401


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ("from sr_models import train_model", "lightning"),
        ("import sr_models; sr_models.load_model", "safetensors"),
        ("import sr_models; sr_models.evaluate_model", "tqdm"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(code: str, missing: str) -> None:
    result = run_without({missing}, code)
    name = code.replace(".", " ").split()[-1]
    message = f"sr_models.{name} needs a package: {missing} is not installed: pip install 'invflow[sr]'"
    assert result.stderr.splitlines()[-1] == f"ModuleNotFoundError: {message}"
    assert result.stderr.count("Traceback") == 1  # not also that of the failed import


def test_a_missing_module_of_our_own_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sr_models._MODULES, "gone", "sr_models.gone")
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'sr_models.gone'$"):
        sr_models.gone  # noqa: B018
