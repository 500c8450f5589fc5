"""Models on disk: what is written comes back, and what is broken is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sr_models
from sr_models.checkpoints.files import load_encoder, load_model, save_model, write_file

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
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.json", "model.safetensors"]


class TestErrors:
    def test_suffix(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"a model file must end in .safetensors, got .*model.bin$"):
            load_model(tmp_path / "model.bin")
        with pytest.raises(ValueError, match=r".safetensors, got .*model.pth; sr-models convert makes one of a pub"):
            load_model(tmp_path / "model.pth")

    @pytest.mark.parametrize("suffix", [".safetensors", ".json"])
    def test_missing_file(self, saved, suffix: str) -> None:
        _, path = saved
        path.with_suffix(suffix).unlink()
        with pytest.raises(FileNotFoundError, match=rf"model file .*model{suffix} does not exist"):
            load_model(path)

    @pytest.mark.parametrize("content", [b"", b"\x80\x04cos\nsystem\n", b"garbage" * 100])
    def test_broken_tensors(self, saved, content: bytes) -> None:
        _, path = saved
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot load model .*model.safetensors: ."):
            load_model(path)

    def test_broken_config(self, saved) -> None:
        _, path = saved
        path.with_suffix(".json").write_text("{")
        with pytest.raises(ValueError, match="cannot load model"):
            load_model(path)

    def test_config_of_another_model(self, saved) -> None:
        _, path = saved
        description = json.loads(path.with_suffix(".json").read_text())
        description["config"]["hidden_channels"] = 8
        path.with_suffix(".json").write_text(json.dumps(description))
        with pytest.raises(ValueError, match=r"cannot load model .*size mismatch"):
            load_model(path)


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
