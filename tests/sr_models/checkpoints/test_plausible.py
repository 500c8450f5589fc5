"""Descriptions of models far larger than their file are refused at once."""

import dataclasses
import tracemalloc

import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import tiny_model
from torch import nn

from sr_models import create, register_model, registry
from sr_models.checkpoints.archive import read_archive
from sr_models.checkpoints.files import describe_file, load_model, save_model, write_file
from sr_models.flow.model import SuperResolutionFlow
from sr_models.registry import get_plugin


@pytest.mark.parametrize("field", ["hidden_channels", "blocks", "steps", "transition_steps", "growth"])
@pytest.mark.parametrize("number", [10**9, 10**40])
def test_a_size_beyond_the_tensors_is_refused(tmp_path, field, number):
    model = tiny_model()
    description = describe_file(model)
    description["config"][field] = number
    write_file(tmp_path / "x.safetensors", description, model.state_dict())
    with pytest.raises(ValueError, match=r"x\.safetensors: ") as caught:
        load_model(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


@pytest.fixture
def seeded(monkeypatch):
    """A model of another package whose config has a number that is no size, and one that makes empty parts."""

    @dataclasses.dataclass(frozen=True)
    class Seeded(get_plugin("srflow-da").config):
        seed: int = 0
        empty: int = 0

    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))

    @register_model("seeded", config=Seeded, presets=get_plugin("srflow-da").presets)
    def build(config):
        """A flow with parts that hold nothing."""
        fields = {name: getattr(config, name) for name in vars(tiny_model().config) if name != "scale"}
        model = create("srflow-da", scale=config.scale, **fields)
        model.levels.extend(nn.Identity() for _ in range(config.empty))
        return model

    fields = dataclasses.asdict(tiny_model().config)
    return lambda **more: create("seeded", **{**fields, **more})


def test_a_large_number_that_is_no_size_is_taken(tmp_path, seeded):
    save_model(seeded(seed=2**31 - 1), tmp_path / "x.safetensors")
    assert load_model(tmp_path / "x.safetensors").config.seed == 2**31 - 1


def test_parts_without_tensors_are_counted(tmp_path, seeded):
    model = seeded()
    description = describe_file(model)
    description["config"]["empty"] = 10**9
    write_file(tmp_path / "x.safetensors", description, model.state_dict())
    with pytest.raises(ValueError, match=r"x\.safetensors: its description .* a model of more than [\d,]+ parts"):
        load_model(tmp_path / "x.safetensors")


def test_a_model_is_created_once_and_leaves_no_trace(tmp_path, monkeypatch):
    save_model(tiny_model(), tmp_path / "x.safetensors")
    made, init = [], SuperResolutionFlow.__init__
    monkeypatch.setattr(SuperResolutionFlow, "__init__", lambda *args, **more: made.append(init(*args, **more)))
    load_model(tmp_path / "x.safetensors")
    assert len(made) == 1
    hooks = torch.nn.modules.module
    assert not hooks._global_parameter_registration_hooks
    assert not hooks._global_module_registration_hooks
    assert not hooks._global_buffer_registration_hooks


def test_a_loaded_model_keeps_what_no_file_holds_and_nothing_of_the_file(tmp_path):
    config = {**dataclasses.asdict(tiny_model().config), "largest_gain": 3.0}
    model, path = create("srflow-da", **config).half(), tmp_path / "x.safetensors"
    save_model(model, path)
    loaded = load_model(path)
    unheld = {name: buffer for name, buffer in model.named_buffers() if name not in model.state_dict()}
    assert unheld
    assert all(torch.equal(buffer, unheld[name]) for name, buffer in loaded.named_buffers() if name in unheld)
    with path.open("r+b") as file:  # in place, as an open memory map would see it
        file.write(b"\xff" * path.stat().st_size)
    for name, tensor in model.state_dict(keep_vars=True).items():
        found = loaded.state_dict(keep_vars=True)[name]
        assert torch.equal(found, tensor), name
        assert (found.dtype, found.stride(), found.requires_grad) == (
            tensor.dtype,
            tensor.stride(),
            tensor.requires_grad,
        )
    loaded.float().train().encode(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 8, 8)).log_det.sum().backward()
    assert any(parameter.grad is not None for parameter in loaded.parameters())


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
