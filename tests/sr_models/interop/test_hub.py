"""Models in folders as on the Hugging Face hub. Nothing here opens a connection."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

import sr_models
from sr_models.checkpoints.files import describe_file, evaluated_tensors
from sr_models.interop import hub

TINY = {"steps": 1, "hidden_channels": 8, "features": 8, "growth": 4, "blocks": 2, "stacked_blocks": (0, 1)}


@pytest.fixture(scope="module")
def model() -> sr_models.SuperResolutionFlow:
    torch.manual_seed(0)
    model = sr_models.create("srflow-da", **TINY)
    model.train().encode(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 16, 16))
    model.temperature = 0.7
    return model.eval()


@pytest.fixture
def folder(model: sr_models.SuperResolutionFlow, tmp_path: Path) -> Path:
    sr_models.save_pretrained(model, tmp_path / "new" / "model")
    return tmp_path / "new" / "model"


def strip_description(folder: Path) -> None:
    """Leave what a program writes that knows tensors only."""
    save_file(evaluated_tensors(load_file(folder / hub.WEIGHTS)), folder / hub.WEIGHTS)


def assert_same(one: sr_models.SuperResolutionFlow, other: sr_models.SuperResolutionFlow) -> None:
    assert (one.name, one.config, one.temperature) == (other.name, other.config, other.temperature)
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("described", [True, False])
def test_round_trip_is_bitwise(model: sr_models.SuperResolutionFlow, folder: Path, described: bool) -> None:
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    if not described:
        strip_description(folder)
    loaded = sr_models.from_pretrained(folder)
    assert not loaded.training
    assert_same(loaded, model)


def test_config_is_the_description(model: sr_models.SuperResolutionFlow, folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text()) == json.loads(json.dumps(describe_file(model)))


def test_a_folder_needs_no_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert sr_models.from_pretrained(str(folder)).name == "srflow-da"
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'invflow[hub]'")):
        sr_models.from_pretrained("user/model")


def test_config_is_needed_only_without_a_description(folder: Path) -> None:
    (folder / "config.json").unlink()
    sr_models.from_pretrained(folder)
    strip_description(folder)
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist, and model\.safetensors has no descr"):
        sr_models.from_pretrained(folder)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("[" * 100_000, "description in config.json: it is nested too deeply"),
        ("[]", "config.json does not describe a model"),
        ("{", "Expecting"),
        ("{}", "'model'"),
        ('{"model": "os.system", "config": {}}', "model must be one of"),
        ('{"model": ["srflow-da"], "config": {}}', "unhashable"),
        ('{"model": "srflow-da", "config": {"name": "srflow"}}', "got multiple values"),
        ('{"model": "srflow-da", "config": {"__class__": 1}}', "got __class__"),
        ('{"model": "srflow-da", "config": ["scale"]}', "must be a mapping"),
    ],
)
def test_a_hostile_config_is_an_error_of_one_line(folder: Path, config: str, reason: str) -> None:
    strip_description(folder)
    (folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        sr_models.from_pretrained(folder)
    assert str(caught.value).startswith(f"cannot load model {folder / 'model.safetensors'}: ")
    assert "\n" not in str(caught.value)


def test_a_failure_keeps_what_was_there(
    model: sr_models.SuperResolutionFlow, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure between the two files leaves a folder that loads, and no temporary file."""
    other = sr_models.create("srflow", **TINY)

    def fail(path: Path, text: str) -> None:
        raise OSError("full")

    monkeypatch.setattr(hub, "write_text", fail)
    with pytest.raises(OSError, match="full"):
        sr_models.save_pretrained(other, folder)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert_same(sr_models.from_pretrained(folder), other)


class TestNames:
    def test_only_the_two_files_are_asked_for(
        self, model: sr_models.SuperResolutionFlow, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[tuple[Any, Any]] = []

        def download(*args: Any, **options: Any) -> str:
            calls.append((args, options))
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert_same(sr_models.from_pretrained("user/model", revision="v1"), model)
        options = {"revision": "v1", "allow_patterns": ["config.json", "model.safetensors"]}
        assert calls == [(("user/model",), options)]

    @pytest.mark.parametrize("name", ["model", "user/model/more", "../model", "", "user/mo del"])
    def test_others_are_refused(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(FileNotFoundError, match=f"or user/model on the hub, got {re.escape(repr(name))}"):
            sr_models.from_pretrained(name)

    def test_a_model_of_others(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: str(tmp_path))
        with pytest.raises(FileNotFoundError, match=r"^user/model holds no model\.safetensors$"):
            sr_models.from_pretrained("user/model")

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (
                LocalEntryNotFoundError("long\nstory"),
                "cannot reach the hub, and user/model at v1 is not in the cache; it",
            ),
            (TimeoutError("slow\nstory"), "cannot download user/model at v1 from the hub: slow"),
        ],
    )
    def test_failures(self, error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any, **options: Any) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(ConnectionError, match=f"^{re.escape(message)}") as caught:
            sr_models.from_pretrained("user/model", revision="v1")
        assert "\n" not in str(caught.value)

    def test_a_folder_has_no_revision(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="revision must be None for the folder"):
            sr_models.from_pretrained(folder, revision="v1")
