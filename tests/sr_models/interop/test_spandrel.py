"""Models in programs that load them by spandrel: detected, loaded, and seamless over a program's own tiles."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from spandrel import ArchRegistry, ImageModelDescriptor, ModelLoader
from spandrel.__helpers.main_registry import MAIN_REGISTRY

import sr_models
from sr_models.checkpoints.convert import convert_published, write_published
from sr_models.checkpoints.files import load_model, save_model
from sr_models.interop.local_noise import local_latents
from sr_models.interop.spandrel import install, model_name
from tests.gates.spandrel_architectures import detected, foreign_state_dicts, published_state_dicts

TINY = {"steps": 1, "hidden_channels": 8, "features": 8, "growth": 4, "blocks": 2, "stacked_blocks": (0, 1)}
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def registry() -> ArchRegistry:
    """Everything that spandrel knows, and ours."""
    registry = MAIN_REGISTRY.copy()
    install(registry=registry)
    return registry


def tiny(name: str, **changes: Any) -> sr_models.SuperResolutionFlow:
    torch.manual_seed(0)
    model = sr_models.create(name, **{**TINY, **changes})
    model.train().encode(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 16, 16))
    return model.eval()


def enlarge(model: sr_models.SuperResolutionFlow, lr: torch.Tensor, tmp_path: Path, **options: Any) -> torch.Tensor:
    save_model(model, tmp_path / "model.safetensors")
    registry = ArchRegistry()
    install(registry=registry, **options)
    return ModelLoader(registry=registry).load_from_file(tmp_path / "model.safetensors")(lr)


def test_every_model_is_registered_once(registry: ArchRegistry) -> None:
    names = {plugin.name for plugin in sr_models.list_models()}
    assert names <= {str(support.architecture.id) for support in registry}
    assert install(registry=registry) == []


@pytest.mark.parametrize(("layout", "tensors"), [pytest.param(*each, id=each[0]) for each in published_state_dicts()])
def test_published_files_are_taken_by_one_architecture(
    registry: ArchRegistry, layout: str, tensors: dict[str, torch.Tensor]
) -> None:
    (name,) = detected(registry, tensors)
    assert name == model_name(tensors)
    assert name.replace("-", "") in layout.replace("_", "")


def test_no_other_architecture_is_taken_for_ours(registry: ArchRegistry) -> None:
    ids = set()
    for name, state_dict in foreign_state_dicts():
        assert name in detected(registry, state_dict)
        assert model_name(state_dict) is None, name
        ids.add(name)
    assert len(ids) >= 42


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"params": {"a": torch.zeros(1)}},
        {"a": 1},
        {"weight": torch.zeros(3, 3)},
        {"sr_models.description": torch.tensor([1, 2, 255], dtype=torch.uint8)},
        {"sr_models.description": torch.frombuffer(bytearray(b"[]"), dtype=torch.uint8)},
        {"sr_models.description": torch.frombuffer(bytearray(b'{"encoder": {}}'), dtype=torch.uint8)},
    ],
)
def test_what_is_no_model_is_not_taken(content: dict[str, Any]) -> None:
    assert model_name(content) is None


@pytest.mark.parametrize("name", [plugin.name for plugin in sr_models.list_models() if "hcflow" not in plugin.name])
def test_files_of_every_model_enlarge_as_the_model_does(registry: ArchRegistry, name: str, tmp_path: Path) -> None:
    model = tiny(name, **({"noise_steps": (0, 0, 1)} if name == "ncsr" else {}))
    path = tmp_path / f"4x_{name}.safetensors"
    save_model(model, path)
    assert detected(registry, load_file(path)) == [name]
    loaded = ModelLoader(registry=registry).load_from_file(path)
    assert isinstance(loaded, ImageModelDescriptor)
    assert (loaded.scale, loaded.input_channels, loaded.output_channels) == (4, 3, 3)
    lr = torch.rand(1, 3, 7, 10)
    assert torch.equal(loaded(lr), model.sample(lr, 1, temperature=0)[:, 0])


def test_a_model_that_comes_with_the_package(registry: ArchRegistry, tmp_path: Path) -> None:
    path = tmp_path / "4x_srflow-da-tiny.safetensors"
    convert_published("srflow-da-tiny", path)
    loaded = ModelLoader(registry=registry).load_from_file(path)
    assert loaded.tags == ["40hc", "48nf", "4nb"]
    lr = torch.rand(1, 3, 8, 8) * 0.3 + 0.3
    assert torch.equal(loaded(lr), sr_models.load("srflow-da-tiny").sample(lr, 1, temperature=0)[:, 0])


def test_a_published_file_with_a_prefix_and_its_converted_file(registry: ArchRegistry, tmp_path: Path) -> None:
    model = sr_models.create("srflow-da", preset="small").eval()
    save_model(model, tmp_path / "model.safetensors")
    write_published(tmp_path / "model.safetensors", tmp_path / "model.pth")
    state_dict = torch.load(tmp_path / "model.pth", weights_only=True)
    torch.save({f"module.{name}": tensor for name, tensor in state_dict.items()}, tmp_path / "wrapped.pth")
    convert_published(tmp_path / "model.pth", tmp_path / "converted.safetensors")
    lr = torch.rand(1, 3, 8, 8)
    expected = load_model(tmp_path / "converted.safetensors").sample(lr, 1, temperature=0)[:, 0]
    for name in ("model.pth", "wrapped.pth", "converted.safetensors"):
        loaded = ModelLoader(registry=registry).load_from_file(tmp_path / name)
        assert str(loaded.architecture.id) == "srflow-da"
        assert torch.equal(loaded(lr), expected)


def test_a_damaged_file_is_an_error(registry: ArchRegistry, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(tiny("srflow-da"), path)
    tensors = load_file(path)
    del tensors["encoder.conv_first.bias"]
    save_file(tensors, path)
    with pytest.raises(RuntimeError, match=r"encoder.conv_first.bias"):
        ModelLoader(registry=registry).load_from_file(path)


def test_a_description_that_asks_for_far_more_is_refused(registry: ArchRegistry) -> None:
    text = json.dumps({"model": "srflow-da", "config": {"scale": 4, "steps": 10**9}}).encode()
    tensors = {"a": torch.zeros(1), "sr_models.description": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
    with pytest.raises(ValueError, match=r"its description is that of a model of [\d,]+ values or more"):
        registry.load(tensors)


def test_temperature_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, lr = tiny("srflow-da"), torch.rand(1, 3, 8, 8)
    plain = enlarge(model, lr, tmp_path)
    one, same, other = (enlarge(model, lr, tmp_path, temperature=0.8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, plain)
    monkeypatch.setenv("SR_MODELS_TEMPERATURE", "0.8")
    monkeypatch.setenv("SR_MODELS_SEED", "1")
    assert torch.equal(enlarge(model, lr, tmp_path), one)
    for name in ("SR_MODELS_TEMPERATURE", "SR_MODELS_SEED"):
        monkeypatch.setenv(name, "high")
        with pytest.raises(ValueError, match=rf"environment variable {name} must be a number, got 'high'"):
            install(registry=ArchRegistry())
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match="temperature must be finite and at least 0, got -1"):
        install(-1.0, registry=ArchRegistry())


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_tiles_of_a_program_agree(temperature: float, tmp_path: Path) -> None:
    """Away from the borders of a tile, by more than the flow sees of its surroundings."""
    model = sr_models.load("srflow-da-tiny")
    lr = torch.rand(1, 3, 16, 72) * 0.3 + 0.3
    whole = enlarge(model, lr, tmp_path, temperature=temperature)
    tile = enlarge(model, lr[..., 24:], tmp_path, temperature=temperature)
    margin = 4 * 20
    difference = (tile[..., margin:] - whole[..., 4 * 24 + margin :]).abs().max()
    assert difference < 0.5 / 255
    # independent noise differs far more
    other = enlarge(model, lr, tmp_path, temperature=0.9, seed=1)
    assert (other - whole).abs().max() > 10 / 255


def test_local_latents_are_standard_normal() -> None:
    lr = torch.rand(2, 3, 32, 32)
    shapes = [(6, 64, 64), (12, 32, 32), (48, 16, 16), (96, 8, 8)]
    for latent, shape in zip(local_latents(lr, shapes, seed=7), shapes, strict=True):
        assert latent.shape == (2, *shape)
        numbers = latent.double().flatten()
        count = len(numbers)
        assert numbers.mean().abs() < 5 / count**0.5
        assert (numbers.var() - 1).abs() < 5 * (2 / count) ** 0.5
        # neighbours, channels, images and other seeds share nothing
        other = local_latents(lr, shapes, seed=8)[shapes.index(shape)]
        for a, b in (
            (latent[..., 1:], latent[..., :-1]),
            (latent[:, 1:], latent[:, :-1]),
            (latent[:1], latent[1:]),
            (latent, other),
        ):
            pairs = (a * b).double().flatten()
            assert pairs.mean().abs() < 5 / len(pairs) ** 0.5


def test_local_latents_depend_on_pixels_around_only() -> None:
    lr = torch.rand(1, 3, 16, 16)
    changed = lr.clone()
    changed[..., 8, 8] = 1 - changed[..., 8, 8]
    differs = local_latents(lr, [(4, 16, 16)], 0)[0].ne(local_latents(changed, [(4, 16, 16)], 0)[0]).any(1)[0]
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[7:10, 7:10] = True
    assert torch.equal(differs, expected)


def test_a_node_of_comfyui_registers_the_models() -> None:
    """ComfyUI imports the folder's ``__init__.py`` by its path, and looks for a mapping of nodes."""
    path = REPOSITORY / "examples" / "comfyui" / "__init__.py"
    spec = importlib.util.spec_from_file_location("invflow_models", path, submodule_search_locations=[str(path.parent)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS == {}
    assert {plugin.name for plugin in sr_models.list_models()} <= {str(each.architecture.id) for each in MAIN_REGISTRY}


def test_the_config_of_a_file_is_that_of_the_model(registry: ArchRegistry, tmp_path: Path) -> None:
    """Also what neither names nor shapes of its tensors tell."""
    model = tiny("srflow-da", largest_gain=2.0, largest_shift=3.0)
    save_model(model, tmp_path / "model.safetensors")
    loaded = ModelLoader(registry=registry).load_from_file(tmp_path / "model.safetensors")
    assert dataclasses.asdict(loaded.model.config) == dataclasses.asdict(model.config)
