"""Names of models: built-in ones and those that installed packages bring."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
import torch

import sr_models
from sr_models import registry
from sr_models._plugins import summary_of

TINY = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonesuch", {}), "model must be one of 'hcflow', .*, 'ncsr', 'srflow', .*, 'srflow-da-s', got 'nonesuch'"),
        (("srflow-da", {"scale": 3}), "scale of srflow-da must be one of 2, 4, 8, got 3"),
        (("srflow-da", {"preset": "x"}), "preset of srflow-da must be one of 'released', 'small', 'tiny', got 'x'"),
        (("srflow", {"preset": "faces"}), "scale of srflow with preset 'faces' must be 8, got 4"),
        (("srflow-da", {"depth": 3}), "overrides of srflow-da must be among variant, steps, .*, got depth"),
        (("srflow-da", {"steps": 0}), "steps must be at least 1, got 0"),
        (("srflow-da", {"blocks": 2}), r"stacked_blocks must be in 0..1 for 2 blocks, got \(1, 8, 15, 22\)"),
    ],
)
def test_errors(arguments: tuple[str, dict], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sr_models.create(arguments[0], **arguments[1])


def test_dir_names_what_is_imported_late() -> None:
    assert {"create", "list_models", "load_model", "registry"} <= set(dir(sr_models))


def test_recipes_belong_to_scale_and_preset() -> None:
    assert [registry.recipe_of("ncsr", scale=scale).steps for scale in (2, 4, 8)] == [220_000, 220_000, 250_000]
    assert registry.recipe_of("srflow").lr == 2.5e-4
    assert registry.recipe_of("srflow", preset="paper").lr == 5e-4
    assert registry.recipe_of("srflow-da", preset="small") == type(registry.recipe_of("ncsr"))()
    with pytest.raises(ValueError, match="scale of ncsr must be one of 2, 4, 8, got 16"):
        registry.recipe_of("ncsr", scale=16)


def test_presets_build() -> None:
    for plugin in sr_models.list_models():
        for preset in plugin.presets:
            for scale in plugin.presets[preset]:
                with torch.device("meta"):
                    model = sr_models.create(plugin.name, scale=scale, preset=preset)
                assert model.config.scale == model.scale == scale


def test_a_name_registers_once() -> None:
    plugin = registry.get_plugin("srflow-da")
    register = sr_models.register_model("srflow-da", config=plugin.config, presets={})
    with pytest.raises(ValueError, match="already registered"):
        register(plugin.build)


def test_entry_points_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = registry.get_plugin("srflow-da")
    entry = SimpleNamespace(
        load=lambda: sr_models.register_model("from-a-package", config=plugin.config, presets={"p": {4: {}}})(
            plugin.build
        )
    )

    def entry_points(*, group: str) -> list[EntryPoint | SimpleNamespace]:
        return [entry] if group == "sr_models.plugins" else []

    monkeypatch.setattr("sr_models._plugins.entry_points", entry_points)
    monkeypatch.setattr(registry, "_loaded", False)
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    assert "from-a-package" in [plugin.name for plugin in sr_models.list_models()]
    assert sr_models.create("from-a-package", preset="p", **TINY).name == "from-a-package"


def test_the_summary_is_the_first_line_of_the_docstring() -> None:
    def build() -> None:
        """A flow.

        More about it.
        """

    assert summary_of(build, "") == "A flow."
    assert summary_of(build, "given") == "given"
    build.__doc__ = None
    assert summary_of(build, "") == ""
