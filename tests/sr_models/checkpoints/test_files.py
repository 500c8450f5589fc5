"""Models on disk: what is written comes back, and what is broken is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sr_models
from sr_models.checkpoints.convert import convert_published
from sr_models.checkpoints.files import (
    create_described,
    describe_file,
    description_in,
    evaluated_tensors,
    load_encoder,
    load_model,
    save_model,
    weights_fingerprint,
    write_file,
)

TINY = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[sr_models.SuperResolutionFlow, Path]:
    model = sr_models.create("srflow-da", scale=4, **TINY)
    model.levels[0][1].actnorm.initialize(torch.randn(2, 12, 4, 4))
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    return model, path


def test_round_trip_keeps_tensors_config_and_initialisation(saved) -> None:
    model, path = saved
    loaded = load_model(path)
    assert loaded.config == model.config
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    loaded.train()
    weight = loaded.levels[0][1].actnorm.bias.clone()
    hr, lr = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 4, 4)
    loaded.encode(hr, lr)
    assert torch.equal(loaded.levels[0][1].actnorm.bias, weight)
    assert bool(loaded.levels[0][2].actnorm.initialized)


@pytest.mark.parametrize("scale", [2, 8])
def test_the_scale_is_kept(tmp_path: Path, scale: int) -> None:
    model = sr_models.create("srflow-da", scale=scale, **{**TINY, "stacked_blocks": (0, 1, 1, 1)})
    save_model(model, tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors").config == model.config


def test_nothing_half_written(saved, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = saved
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("sr_models.checkpoints.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(sr_models.create("srflow-da", scale=4, **TINY), path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.safetensors"]


class TestErrors:
    def test_suffix(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"a model file must end in .safetensors, got .*model.bin$"):
            load_model(tmp_path / "model.bin")
        with pytest.raises(ValueError, match=r".safetensors, got .*model.pth; sr-models convert makes one of a pub"):
            load_model(tmp_path / "model.pth")

    def test_missing_file(self, saved) -> None:
        _, path = saved
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"model file .*model.safetensors does not exist$"):
            load_model(path)

    def test_no_description(self, saved) -> None:
        model, path = saved
        save_file(model.state_dict(), path)
        with pytest.raises(FileNotFoundError, match=r"file .*model.json does not exist, and model.safetensors has no"):
            load_model(path)

    @pytest.mark.parametrize("content", [b"", b"\x80\x04cos\nsystem\n", b"garbage" * 100])
    def test_broken_tensors(self, saved, content: bytes) -> None:
        _, path = saved
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot load model .*model.safetensors: ."):
            load_model(path)

    @pytest.mark.parametrize("text", ["{", "[]", '{"model": "srflow-da"}', '{"model": "other", "config": {}}'])
    def test_broken_description(self, saved, text: str) -> None:
        model, path = saved
        save_file(model.state_dict(), path, metadata={"sr_models.description": text})
        with pytest.raises(ValueError, match=r"cannot load model .*model.safetensors: ."):
            load_model(path)

    def test_config_of_another_model(self, saved) -> None:
        model, path = saved
        description = describe_file(model)
        description["config"]["hidden_channels"] = 8
        write_file(path, description, model.state_dict())
        with pytest.raises(ValueError, match=r"cannot load model .*size mismatch"):
            load_model(path)


def test_the_description_is_in_the_metadata_and_among_the_tensors(saved) -> None:
    """Programs for people read the former; tools that hand over tensors alone reach the latter only."""
    model, path = saved
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["sr_models.description"])["model"] == "srflow-da"
    tensors = load_file(path)
    assert create_described(description_in(tensors)).config == model.config
    assert evaluated_tensors(tensors).keys() == model.state_dict().keys()
    assert description_in(model.state_dict()) is None


def as_a_pair(model: sr_models.SuperResolutionFlow, path: Path) -> None:
    """Write a model as earlier versions did."""
    save_file(model.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(describe_file(model)))


def test_a_pair_of_an_earlier_version_is_read_and_converted(saved, tmp_path: Path) -> None:
    model, _ = saved
    path, one = tmp_path / "pair.safetensors", tmp_path / "one.safetensors"
    as_a_pair(model, path)
    assert "srflow-da at 4x" in convert_published(path, one)
    for file in (path, one):
        loaded = load_model(file)
        assert loaded.config == model.config
        assert weights_fingerprint(loaded) == weights_fingerprint(model)
    assert not one.with_suffix(".json").exists()


def test_a_description_left_behind_by_an_earlier_version_is_not_read(saved) -> None:
    model, path = saved
    as_a_pair(sr_models.create("srflow", scale=4, **TINY), path)
    save_model(model, path)
    assert path.with_suffix(".json").exists()
    assert load_model(path).name == model.name


def test_a_model_that_comes_with_the_package_becomes_one_file(tmp_path: Path) -> None:
    path = tmp_path / "4x_srflow-da-tiny.safetensors"
    convert_published("srflow-da-tiny", path)
    assert weights_fingerprint(load_model(path)) == weights_fingerprint(sr_models.load("srflow-da-tiny"))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_values_that_are_not_finite_are_refused(saved, tmp_path: Path, value: float) -> None:
    model, path = saved
    with torch.no_grad():
        model.encoder.conv_first.bias[1] = value
    save_model(model, path)
    with pytest.raises(ValueError, match=r"encoder.conv_first.bias holds values that are not finite"):
        load_model(path)
    alone = tmp_path / "encoder.safetensors"
    write_file(alone, {"encoder": {}}, model.encoder.state_dict())
    fresh = sr_models.create("srflow-da", scale=4, **TINY).encoder
    with pytest.raises(ValueError, match=r"cannot load encoder .*: conv_first.bias holds values that are not finite"):
        load_encoder(alone, fresh)
