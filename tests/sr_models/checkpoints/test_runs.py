"""The model of a run is found wherever the run stands, and a damaged checkpoint is named."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import content_of, tiny_model

import sr_models
from sr_models.checkpoints.convert import convert_published
from sr_models.checkpoints.files import load_model, read_weights

MakeRun = Callable[..., Path]


def assert_same(actual: sr_models.SuperResolutionFlow, expected: sr_models.SuperResolutionFlow) -> None:
    assert actual.config == expected.config
    assert not actual.training
    assert list(actual.state_dict()) == list(expected.state_dict())
    for name, tensor in expected.state_dict().items():
        assert torch.equal(actual.state_dict()[name], tensor), name


@pytest.mark.parametrize("name", ["", "last", "checkpoints/last.ckpt"])
def test_a_running_run_has_the_averaged_weights_of_its_last_checkpoint(run_folder: MakeRun, name: str) -> None:
    run = run_folder(previous=tiny_model(1), last=tiny_model(2))
    assert_same(load_model(run / name), tiny_model(2))
    assert read_weights(run / name).step == 2


def test_without_an_average_the_weights_of_the_last_step_count(tmp_path: Path) -> None:
    torch.save(content_of(tiny_model(), average=False), tmp_path / "x.ckpt")
    assert_same(load_model(tmp_path / "x.ckpt"), tiny_model())


def test_the_checkpoint_before_and_the_best_have_short_names(run_folder: MakeRun) -> None:
    run = run_folder(previous=tiny_model(1), last=tiny_model(2), ended=tiny_model(3))
    assert_same(load_model(run / "previous"), tiny_model(1))
    (run / "model.safetensors").rename(run / "best.safetensors")
    assert_same(load_model(run / "best"), tiny_model(3))


def test_an_ended_run_has_its_final_weights_unless_it_went_on(run_folder: MakeRun) -> None:
    run = run_folder(previous=tiny_model(1), last=tiny_model(2), ended=tiny_model(3))
    assert_same(load_model(run), tiny_model(3))
    (run / "checkpoints" / "last.ckpt").touch()
    assert_same(load_model(run), tiny_model(2))


def test_between_two_renames_there_is_only_the_checkpoint_before(
    run_folder: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_folder(previous=tiny_model(1))
    assert_same(load_model(run), tiny_model(1))
    assert not caplog.records


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def without_its_end(content: bytes) -> bytes:
    return content[:-100]


def nothing(content: bytes) -> bytes:
    return b""


def garbage(content: bytes) -> bytes:
    return b"hello"


def another_pickle(content: bytes) -> bytes:
    return b"cos\nsystem\n(S'touch hacked'\ntR."


def zeros(content: bytes) -> bytes:
    return bytes(len(content))


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def a_list(content: bytes) -> bytes:
    return saved([1, 2])


def a_module(content: bytes) -> bytes:
    return saved(torch.nn.Linear(1, 1))


def one_bit_flipped(content: bytes) -> bytes:
    """In a tensor, where nothing but the checksum tells."""
    padding = re.compile(rb"/data/1.*?Z+", re.DOTALL).search(content)
    assert padding is not None
    position = padding.end() + 8
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


DAMAGES = [one_bit_flipped, truncated, without_its_end, nothing, garbage, another_pickle, zeros, a_list, a_module]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_takes_its_place(
    run_folder: MakeRun, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    run = run_folder(previous=tiny_model(1), last=tiny_model(2))
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(damage(last.read_bytes()))
    assert_same(load_model(run), tiny_model(1))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"cannot read {last}: it is no" in record.getMessage()
    assert record.getMessage().endswith("previous.ckpt takes its place")
    # the file that the user names is meant
    for name in ("last", "checkpoints/last.ckpt"):
        with pytest.raises(ValueError, match=r"^cannot read .*last.ckpt: it is no[^\n]*$"):
            load_model(run / name)


def test_every_damaged_checkpoint_is_named_if_there_is_no_other(run_folder: MakeRun) -> None:
    run = run_folder(previous=tiny_model(1), last=tiny_model(2))
    for name in ("last", "previous"):
        (run / "checkpoints" / f"{name}.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot read .*last.ckpt: .*: it is empty; cannot read .*previous.ckpt"):
        load_model(run)


def test_weights_without_their_description_are_as_good_as_not_there(
    run_folder: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    """Earlier versions wrote model.safetensors first and model.json after it."""
    run = run_folder(last=tiny_model(2), ended=tiny_model(3))
    save_file(tiny_model(3).state_dict(), run / "model.safetensors")
    assert_same(load_model(run), tiny_model(2))
    assert "model.json does not exist" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "its format is 2, this version reads 1"),
        ({"description": "{"}, "its description, step or model is damaged"),
        ({"description": "[]"}, "its description, step or model is damaged"),
        ({"model": {}}, "its description, step or model is damaged"),
        ({"step": None}, "its description, step or model is damaged"),
        ({"average": {"x": 1}}, r"its average holds 'x' \(int\)"),
        ({"average": {"x": torch.zeros(1)}}, "its average holds x, which does not fit its model"),
        ({"average": {"encoder.conv_first.bias": torch.zeros(5)}}, "holds encoder.conv_first.bias, which does not fit"),
        ({"average": {"encoder.conv_first.bias": torch.full((4,), torch.nan)}}, "values that are not finite"),
        (
            {"description": '{"model": "srflow", "config": {"scale": 4}}'},
            r"x.ckpt: its description is that of a model of [\d,]+ values or more",
        ),
        ({"description": '{"model": "nonesuch", "config": {"scale": 4}}'}, "cannot load model .*x.ckpt: model must be"),
        ({"description": '{"model": "srflow"}'}, "cannot load model .*x.ckpt: .*config"),
    ],
)
def test_contents_that_are_wrong(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    torch.save({**content_of(tiny_model()), **change}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "x.ckpt")


def test_checkpoints_of_others_are_described(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"a": torch.zeros(2)}, "callbacks": {}}, tmp_path / "x.ckpt")
    message = r"it is no checkpoint of a training run, it holds 'epoch' \(int\), 'state_dict' \(a dict of 1 tensor\)"
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "x.ckpt")


def test_places_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor checkpoints/last.ckpt"):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist, neither as a file nor as the folder of a run"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"model file .*last.ckpt does not exist"):
        load_model(tmp_path / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("name", ["", "last", "checkpoints/last.ckpt"])
def test_a_running_run_is_converted(run_folder: MakeRun, tmp_path: Path, name: str) -> None:
    run = run_folder(previous=tiny_model(1), last=tiny_model(2))
    found = convert_published(run / name, tmp_path / "out.safetensors", model="srflow-da", scale=4)
    parameters = sum(parameter.numel() for parameter in tiny_model().parameters())
    assert found == f"srflow-da at 4x with {parameters:,} parameters, after 2 training steps"
    assert_same(load_model(tmp_path / "out.safetensors"), tiny_model(2))
    for wrong, message in (({"model": "srflow"}, "holds srflow-da, not srflow"), ({"scale": 8}, "scale is 4, not 8")):
        with pytest.raises(ValueError, match=message):
            convert_published(run / name, tmp_path / "out.safetensors", **wrong)
    with pytest.raises(ValueError, match="blocks is for published files only"):
        convert_published(run / name, tmp_path / "out.safetensors", blocks=(0, 1))
