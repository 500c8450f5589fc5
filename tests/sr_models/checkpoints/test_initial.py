"""Training starts from weights of every kind, and what does not fit is named before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import content_of, tiny_model
from torch import Tensor

import sr_models
from invflow import ActNorm
from sr_models.checkpoints.files import save_model, write_file
from sr_models.checkpoints.initial import load_initial_weights
from sr_models.checkpoints.published import to_published

#: A tiny model that the published implementations have: only the channels of their networks are fixed.
PUBLISHED: dict[str, Any] = {"features": 64}


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def fresh(**changes: Any) -> sr_models.SuperResolutionFlow:
    return sr_models.create("srflow-da", **{**tiny_model().config.__dict__, **changes})


def assert_same(actual: torch.nn.Module, expected: dict[str, Tensor]) -> None:
    for name, tensor in actual.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_file_a_run_and_a_checkpoint(run_folder: Callable[..., Path]) -> None:
    run = run_folder(previous=tiny_model(1), last=tiny_model(2), ended=tiny_model(3))
    for path, seed, line in (
        (run, 3, f"starts from {run}/model.safetensors"),
        (run / "model.safetensors", 3, f"starts from {run}/model.safetensors"),
        (run / "last", 2, f"starts from {run}/checkpoints/last.ckpt after 2 training steps"),
        (
            run / "checkpoints" / "previous.ckpt",
            1,
            f"starts from {run}/checkpoints/previous.ckpt after 1 training steps",
        ),
    ):
        model = fresh()
        assert load_initial_weights(model, path) == line
        assert_same(model, weights(tiny_model(seed)))
        # a batch leaves the actnorms as they are
        model.train().encode(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 4, 4))
        assert_same(model, weights(tiny_model(seed)))


@pytest.mark.parametrize("entry", [None, "params_ema", "state_dict"])
def test_a_published_file(tmp_path: Path, entry: str | None) -> None:
    source = tiny_model(1, **PUBLISHED)
    # bias zero, which the published code takes for an actnorm that was not initialised
    zeroed = next(module for module in source.modules() if isinstance(module, ActNorm))
    with torch.no_grad():
        zeroed.bias.zero_()
    state_dict = to_published(source, source.state_dict())
    torch.save({entry: state_dict} if entry else state_dict, tmp_path / "x.pth")
    model = fresh(**PUBLISHED)
    assert load_initial_weights(model, tmp_path / "x.pth") == f"starts from {tmp_path}/x.pth"
    assert_same(model, weights(source))


def test_the_dtype_of_the_model_stays(tmp_path: Path) -> None:
    save_model(tiny_model(1).double(), tmp_path / "x.safetensors")
    model = fresh()
    load_initial_weights(model, tmp_path / "x.safetensors")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_same(model, weights(tiny_model(1)))


def test_a_flow_that_has_not_begun_initialises_from_the_first_batch(tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.save(content_of(fresh()), tmp_path / "x.ckpt")
    model = fresh()
    assert load_initial_weights(model, tmp_path / "x.ckpt").endswith("whose flow has not begun to learn")
    model.train().encode(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 4, 4))
    actnorms = [module for module in model.modules() if isinstance(module, ActNorm)]
    assert actnorms
    assert all(bool(module.bias.any()) for module in actnorms)


def test_numbers_that_are_no_sizes_may_differ(tmp_path: Path) -> None:
    sizes = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}
    sizes["noise_steps"] = (0, 1, 1)
    save_model(sr_models.create("ncsr", noise_std=0.05, **sizes), tmp_path / "x.safetensors")
    load_initial_weights(sr_models.create("ncsr", noise_std=0.02, **sizes), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"other sizes: noise_steps \(0, 1, 1\), not \(0, 0, 1\)"):
        load_initial_weights(
            sr_models.create("ncsr", **{**sizes, "noise_steps": (0, 0, 1)}), tmp_path / "x.safetensors"
        )


class TestMistakes:
    @pytest.mark.parametrize("kind", ["safetensors", "ckpt", "pth"])
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"hidden_channels": 8}, "its model has other sizes: hidden_channels 4, not 8"),
            ({"growth": 4, "blocks": 3}, "its model has other sizes: growth 2, not 4, blocks 2, not 3"),
            ({"scale": 8}, "other sizes: scale 4, not 8"),
            ({"stacked_blocks": (1,)}, r"(other sizes: stacked_blocks \(0, 1\), not \(1,\)|does not fit: .*shape)"),
        ],
    )
    def test_other_sizes(self, tmp_path: Path, kind: str, changes: dict[str, Any], message: str) -> None:
        source, path = tiny_model(1, **PUBLISHED), tmp_path / f"x.{kind}"
        if kind == "safetensors":
            save_model(source, path)
        else:
            torch.save(content_of(source) if kind == "ckpt" else to_published(source, source.state_dict()), path)
        model = fresh(**{**PUBLISHED, **changes})
        before = weights(model)
        with pytest.raises(ValueError, match=rf"^cannot start from {path}: .*{message}[^\n]*$"):
            load_initial_weights(model, path)
        assert_same(model, before)

    def test_the_preset_of_other_sizes_is_named(self) -> None:
        model = sr_models.create("srflow-da", preset="small")
        with pytest.raises(ValueError, match=r"other sizes, those of preset 'tiny': variant 'R', not '', steps 5, not"):
            load_initial_weights(model, "srflow-da-tiny")

    def test_another_model(self, tmp_path: Path) -> None:
        save_model(tiny_model(), tmp_path / "x.safetensors")
        sizes = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}
        with pytest.raises(ValueError, match=r"it holds srflow-da, not srflow$"):
            load_initial_weights(sr_models.create("srflow", **sizes), tmp_path / "x.safetensors")

    def test_an_encoder_alone(self, tmp_path: Path) -> None:
        encoder = tiny_model().encoder
        write_file(tmp_path / "x.safetensors", {"encoder": {}}, encoder.state_dict())
        with pytest.raises(ValueError, match=r"x.safetensors: it holds an encoder only; give it to encoder$"):
            load_initial_weights(fresh(), tmp_path / "x.safetensors")
        names = ("conv_first.weight", "body.0.rdb1.conv1.weight", "conv_body.weight")
        torch.save({"params": {name: torch.zeros(4, 3, 3, 3) for name in names}}, tmp_path / "x.pth")
        with pytest.raises(ValueError, match="it holds an encoder only; convert it with sr-models convert and give it"):
            load_initial_weights(fresh(), tmp_path / "x.pth")

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e39])
    def test_values_that_are_not_finite_in_the_dtype_of_the_model(self, tmp_path: Path, value: float) -> None:
        source = tiny_model().double()
        with torch.no_grad():
            source.encoder.conv_first.bias[1] = value
        save_model(source, tmp_path / "x.safetensors")
        model = fresh()
        before = weights(model)
        with pytest.raises(ValueError, match=r"x.safetensors: .*conv_first.bias holds values that are not finite"):
            load_initial_weights(model, tmp_path / "x.safetensors")
        assert_same(model, before)

    def test_missing_and_unexpected_tensors(self, tmp_path: Path) -> None:
        content = content_of(tiny_model(), average=False)
        torch.save({**content, "model": {**content["model"], "x": torch.zeros(1)}}, tmp_path / "x.ckpt")
        with pytest.raises(ValueError, match="its x is no part of the model"):
            load_initial_weights(fresh(), tmp_path / "x.ckpt")
        del content["model"]["encoder.conv_first.bias"]
        torch.save(content, tmp_path / "x.ckpt")
        with pytest.raises(ValueError, match=r"it lacks encoder.conv_first.bias$"):
            load_initial_weights(fresh(), tmp_path / "x.ckpt")
        del content["model"]["encoder.conv_first.weight"]
        torch.save(content, tmp_path / "x.ckpt")
        with pytest.raises(ValueError, match=r"it lacks encoder.conv_first.weight and 1 more$"):
            load_initial_weights(fresh(), tmp_path / "x.ckpt")

    @pytest.mark.parametrize("name", ["none.safetensors", "none.ckpt", "none.pth", "none"])
    def test_no_such_file(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(FileNotFoundError, match="does not exist"):
            load_initial_weights(fresh(), tmp_path / name)
