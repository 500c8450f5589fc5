"""Descriptions of models far larger than their file are refused at once."""

import tracemalloc

import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import tiny_model

from sr_models.checkpoints.archive import read_archive
from sr_models.checkpoints.files import describe_file, load_model, write_file


@pytest.mark.parametrize("field", ["hidden_channels", "blocks", "steps", "transition_steps", "growth"])
@pytest.mark.parametrize("number", [10**9, 10**40])
def test_a_size_beyond_the_tensors_is_refused(tmp_path, field, number):
    model = tiny_model()
    description = describe_file(model)
    description["config"][field] = number
    write_file(tmp_path / "x.safetensors", description, model.state_dict())
    with pytest.raises(ValueError, match=rf"x\.safetensors: {field} must be at most 1000"):
        load_model(tmp_path / "x.safetensors")


def test_a_model_of_more_values_than_the_file_is_refused_before_it_takes_memory(tmp_path):
    model = tiny_model()
    description = describe_file(model)
    description["config"]["hidden_channels"] = 900
    write_file(tmp_path / "x.safetensors", description, model.state_dict())
    with pytest.raises(ValueError, match=r"x\.safetensors: its description is that of a model of [\d,]+ values"):
        load_model(tmp_path / "x.safetensors")


def test_json_that_is_nested_too_deeply_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"x\.safetensors: description in x\.json: it is nested too deeply"):
        load_model(tmp_path / "x.safetensors")


def test_a_length_beyond_the_end_of_an_old_file_takes_no_memory(tmp_path):
    # a text of 4 GiB
    (tmp_path / "x.pth").write_bytes(b"\x80\x02X" + (0xFFFFFFF0).to_bytes(4, "little") + b"abc")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"x\.pth: it is not a file of tensors"):
            read_archive(tmp_path / "x.pth")
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()
