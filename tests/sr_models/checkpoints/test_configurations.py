"""Every published configuration: its options make a model, whose published file makes the same model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sr_models
from sr_models import registry
from sr_models.checkpoints.convert import convert_published, write_published
from sr_models.checkpoints.detect import detect_model
from sr_models.checkpoints.files import load_model, save_model
from sr_models.checkpoints.published import config_of_options, from_published, published_layout, to_own, to_published
from sr_models.models.publication import Publication, has_part
from sr_models.models.srflow_da import SRFlowDAConfig, build_srflow_da

#: Published name -> our name.
NAMES = {
    "SRFlow": "srflow",
    "SRFlow-DA": "srflow-da",
    "SRFlow-DA-R": "srflow-da-r",
    "SRFlow-DA-D": "srflow-da-d",
    "SRFlow-DA-S": "srflow-da-s",
    "NCSR": "ncsr",
}


def options_of(kind: str, scale: int, steps: Any, blocks: list[int], **others: Any) -> dict[str, Any]:
    """A small published options file."""
    levels = {"SRFlow": scale.bit_length(), "NCSR": scale.bit_length(), "SRFlow-DA-S": 1}
    flow = {
        "K": steps,
        "L": levels.get(kind, scale.bit_length() - 1),
        "additionalFlowNoAffine": others.get("transition", 2),
        "stackRRDB": {"blocks": blocks, "concat": True},
        "CondAffineSeparatedAndCond": {"hidden_channels": 3},
    }
    options = {"model": kind, "scale": scale, "network_G": {"nf": others.get("features", 4), "nb": 3, "flow": flow}}
    if kind == "NCSR":
        flow["S"] = others["noise_steps"]
        options["std"] = 0.04
    return options


def published_state(model: sr_models.SuperResolutionFlow) -> dict[str, Tensor]:
    """A published file of the model, every tensor of which has a number of its own."""
    return {
        name: torch.tensor(float(number)).expand(shape)
        for number, (name, (_, shape)) in enumerate(published_layout(model).items(), 1)
    }


@st.composite
def configurations(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    scale = draw(st.sampled_from([2, 4, 8]))
    levels = options_of(kind, scale, 1, [], noise_steps=[])["network_G"]["flow"]["L"]
    counts = draw(st.one_of(st.integers(1, 4), st.lists(st.integers(1, 4), min_size=levels, max_size=levels)))
    every = [counts] * levels if isinstance(counts, int) else counts
    return options_of(
        kind,
        scale,
        counts if isinstance(counts, int) else [draw(st.sampled_from([None, 0, 7])), *counts],
        draw(st.lists(st.integers(0, 2), max_size=3, unique=True)),
        transition=draw(st.integers(0, 2)),
        features=draw(st.sampled_from([4, 6, 64])),
        noise_steps=[draw(st.integers(0, count)) for count in every],
    )


@pytest.mark.parametrize("kind", NAMES)
@settings(max_examples=6)
@given(data=st.data())
def test_options_and_file_make_the_same_model(kind: str, data: st.DataObject) -> None:
    options, unused = data.draw(configurations(kind)), data.draw(st.booleans())
    name, fields = config_of_options(options, growth=2)
    assert name == NAMES[kind]
    with torch.device("meta"):
        model = sr_models.create(name, **fields)
    flow = options["network_G"]["flow"]
    expected = flow["K"][1:] if isinstance(flow["K"], list) else [flow["K"]] * flow["L"]
    assert list(model.config.level_steps) == expected
    state_dict = published_state(model)
    inputs = 64 * (1 + len(flow["stackRRDB"]["blocks"]))
    assert state_dict["flowUpsamplerNet.f.0.weight"].shape == (96, inputs, 3, 3)
    if not unused:
        del state_dict["flowUpsamplerNet.f.0.weight"], state_dict["flowUpsamplerNet.f.0.bias"]
    with pytest.MonkeyPatch.context() as patch:
        if name == "ncsr":
            with pytest.raises(ValueError, match="the file does not say which steps see the noise"):
                detect_model(state_dict, fields["stacked_blocks"])
            add_preset(patch, name, fields)
        found_name, found, _ = detect_model(state_dict, fields["stacked_blocks"])
        assert found_name == name
        with torch.device("meta"):
            assert sr_models.create(found_name, **found).config == model.config
    back = to_published(model, to_own(model, state_dict))
    for key, tensor in state_dict.items():
        assert torch.equal(back[key], tensor), key


def add_preset(patch: pytest.MonkeyPatch, name: str, fields: dict[str, Any]) -> None:
    """Let the model have a preset with these fields, which says what the file does not."""
    plugin = registry.get_plugin(name)
    preset = {fields["scale"]: {field: value for field, value in fields.items() if field != "scale"}}
    patch.setitem(registry._plugins, name, dataclasses.replace(plugin, presets={**plugin.presets, "this": preset}))


def test_numbers_of_published_layers() -> None:
    """A squeeze has a number and no tensors; the specification's numbering for K = 1, 2 and 3."""
    with torch.device("meta"):
        model = sr_models.create("srflow", **config_of_options(options_of("SRFlow", 4, [0, 1, 2, 3], [0]))[1])
    layers: dict[str, set[int]] = {}
    for name in published_layout(model):
        if name.startswith("flowUpsamplerNet.layers."):
            _, _, number, part = name.split(".")[:4]
            layers.setdefault(part, set()).add(int(number))
    assert layers == {
        "actnorm": {1, 2, 3, 6, 7, 8, 9, 11, 12, 13, 14, 15},
        "invconv": {1, 2, 3, 6, 7, 8, 9, 11, 12, 13, 14, 15},
        "affine": {3, 8, 9, 13, 14, 15},
        "conv": {4},
    }


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        (options_of("SRFlow", 4, [0, 1, 2, 1], [0, 2]), (0, 2)),
        (options_of("SRFlow-DA", 8, [0, 2, 1, 1], [2, 1, 0], features=6), (2, 1, 0)),
        (options_of("SRFlow-DA-S", 4, [0, 7], []), None),
    ],
    ids=["srflow", "srflow-da", "srflow-da-s without stacked blocks"],
)
def test_files_of_unequal_levels(tmp_path: Path, options: dict[str, Any], blocks: tuple[int, ...] | None) -> None:
    """Through files, by options and by detection, with the same results."""
    name, fields = config_of_options(options, growth=2)
    model = sr_models.create(name, **fields).eval()
    with torch.no_grad():
        for parameter in model.levels.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_model(model, tmp_path / "own.safetensors")
    write_published(tmp_path / "own.safetensors", tmp_path / "published.pth")
    state_dict = torch.load(tmp_path / "published.pth", weights_only=True)
    convert_published(tmp_path / "published.pth", tmp_path / "converted.safetensors", blocks=blocks)
    converted = load_model(tmp_path / "converted.safetensors")
    by_options = from_published(state_dict, options, growth=2).eval()
    assert converted.config == by_options.config == model.config
    scale = options["scale"]
    hr, lr = torch.rand(2, 3, 4 * scale, 4 * scale), torch.rand(2, 3, 4, 4)
    with torch.no_grad():
        expected = model.encode(hr, lr).log_prob
        assert torch.equal(converted.encode(hr, lr).log_prob, expected)
        assert torch.equal(by_options.encode(hr, lr).log_prob, expected)


def test_ncsr_with_lists(tmp_path: Path) -> None:
    options = options_of("NCSR", 4, [0, 1, 2, 2], [1], noise_steps=[1, 0, 2])
    _, fields = config_of_options(options, growth=2)
    model = sr_models.create("ncsr", **fields).eval()
    assert (model.config.noise_steps, model.config.noise_std, model.config.noise_channels) == ((1, 0, 2), 0.04, 3)
    state_dict = to_published(model, model.state_dict())
    loaded = from_published(state_dict, options, growth=2).eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    # every coupling has a noise network in the file, those of two of the five steps are unused
    networks = {name.split(".")[2] for name in state_dict if ".fAffine_std." in name}
    assert networks == {"3", "8", "9", "13", "14"}
    unused = [name for name, (own, _) in published_layout(model).items() if own is None and "fAffine_std" in name]
    assert {name.split(".")[2] for name in unused} == {"8", "9"}


def change(entry: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(options: dict[str, Any]) -> None:
        *path, last = entry.split(".")
        for part in path:
            options = options[part]
        options[last] = value

    return apply


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (
            change("network_G.flow.K", [1, 2, 3]),
            r"options: K must be a number or a list of 4, an unused one and one a level, got \[1, 2, 3\]$",
        ),
        (change("network_G.flow.K", [0, 1, 0, 3]), r"options: K must be at least 1, got \[1, 0, 3\]$"),
        (change("network_G.flow.K", 0), r"options: K must be at least 1, got 0$"),
        (change("network_G.flow.K", "many"), r"options: K must be a number, got 'many'$"),
        (change("network_G.flow.K", [0, 1, "2", 3]), "options: K must be a whole number, or 3 of them, one a level"),
        (change("network_G.nf", None), r"options: nf must be a number, got None$"),
        (change("network_G.flow.S", [0, 1]), r"options: noise_steps \(S\) must be 3 numbers in 0..2, .* got \[0, 1\]$"),
        (change("network_G.flow.S", 1), r"options: noise_steps \(S\) must be 3 numbers in 0..2, one a level, got 1$"),
        (change("std", None), r"options: std must be a number, got None$"),
        (change("network_G.flow.stackRRDB.concat", False), "options: concat of stackRRDB must be true, got False$"),
        (lambda options: options["network_G"]["flow"].pop("S"), "options must have the entry 'S'$"),
        (lambda options: options["network_G"]["flow"].pop("K"), "options must have the entry 'K'$"),
    ],
)
def test_options_that_do_not_fit(apply: Callable[[dict[str, Any]], None], message: str) -> None:
    options = options_of("NCSR", 4, 2, [0], noise_steps=[0, 1, 2])
    config_of_options(copy.deepcopy(options))
    apply(options)
    with pytest.raises(ValueError, match=message):
        config_of_options(options)


class TestFilesThatDoNotFit:
    @pytest.fixture
    def state_dict(self) -> dict[str, Tensor]:
        with torch.device("meta"):
            model = sr_models.create("srflow", **config_of_options(options_of("SRFlow", 4, [0, 2, 1, 2], [0, 1]))[1])
        return published_state(model)

    def test_whole_layers_missing(self, state_dict: dict[str, Tensor]) -> None:
        for name in [name for name in state_dict if name.startswith("flowUpsamplerNet.layers.3.")]:
            del state_dict[name]
        with pytest.raises(ValueError, match=r"layers form 4 levels, .* but srflow has 3 at scale 4"):
            detect_model(state_dict, (0, 1))

    def test_unequal_transition_steps(self, state_dict: dict[str, Tensor]) -> None:
        for name in [name for name in state_dict if name.startswith("flowUpsamplerNet.layers.3.affine.")]:
            del state_dict[name]
        with pytest.raises(ValueError, match=r"unequal numbers of steps without coupling: \[3, 2, 2\]"):
            detect_model(state_dict, (0, 1))

    def test_context_of_another_encoder(self, state_dict: dict[str, Tensor]) -> None:
        for name in [name for name in state_dict if "fFeatures.0.weight" in name]:
            state_dict[name] = torch.zeros(3, 13, 3, 3)
        with pytest.raises(ValueError, match="13 channels condition its flow, not a multiple of the encoder's 4"):
            detect_model(state_dict, (0, 1))

    def test_unused_convolution_of_another_number_of_blocks(self, state_dict: dict[str, Tensor]) -> None:
        state_dict["flowUpsamplerNet.f.0.weight"] = torch.zeros(96, 320, 3, 3)
        name, fields, _ = detect_model(state_dict, (0, 1))
        with torch.device("meta"):
            model = sr_models.create(name, **fields)
        message = r"flowUpsamplerNet.f.0.weight has shape \(96, 320, 3, 3\), expected \(96, 192, 3, 3\)"
        with pytest.raises(ValueError, match=message):
            to_own(model, state_dict)

    @pytest.mark.parametrize("name", ["srflow-da", "srflow-da-d"])
    def test_a_deep_network_without_the_matrix_that_tells_its_levels(self, name: str) -> None:
        with torch.device("meta"):
            state_dict = published_state(sr_models.create(name, scale=4))
        for key in [key for key in state_dict if key.startswith("flowUpsamplerNet.layers.1.")]:
            del state_dict[key]
        with pytest.raises(ValueError, match=r"levels have unequal numbers of steps without coupling: \[1, 2"):
            detect_model(state_dict, (0, 1))

    def test_blocks_of_a_file_without_any(self) -> None:
        with torch.device("meta"):
            model = sr_models.create("srflow", **config_of_options(options_of("SRFlow", 4, 1, []))[1])
        with pytest.raises(ValueError, match="blocks must be 0 numbers for this file, got 1"):
            detect_model(published_state(model), (0,))


def test_blocks_are_not_taken_from_a_preset_with_another_number() -> None:
    """The released sizes, but with three stacked blocks: no preset says which."""
    with torch.device("meta"):
        model = sr_models.create("srflow", stacked_blocks=(1, 8, 15))
    with pytest.raises(ValueError, match=r"no preset of srflow has these sizes, .* which of its 23 RRDB blocks"):
        detect_model(published_state(model))
    assert detect_model(published_state(model), (1, 8, 15))[1]["stacked_blocks"] == (1, 8, 15)


def test_a_model_of_another_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its files have names of their own, and would be taken for those of a built-in model otherwise."""
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))

    def build(config: SRFlowDAConfig) -> sr_models.SuperResolutionFlow:
        return build_srflow_da(config)

    sr_models.register_model(
        "foreign",
        config=SRFlowDAConfig,
        presets={"released": {4: {}}},
        published=Publication(
            "Foreign",
            detect=has_part(".affine.fForeign."),
            names={"injector.net.": "affine.fFeatures.", "coupling.net.": "affine.fForeign."},
        ),
    )(build)
    options = options_of("Foreign", 4, [0, 2, 1], [0, 1])
    name, fields = config_of_options(options, growth=2)
    assert name == "foreign"
    save_model(sr_models.create(name, **fields), tmp_path / "own.safetensors")
    write_published(tmp_path / "own.safetensors", tmp_path / "published.pth")
    state_dict = torch.load(tmp_path / "published.pth", weights_only=True)
    assert "flowUpsamplerNet.layers.3.affine.fForeign.0.weight" in state_dict
    # what makes it the file of a built-in model too
    state_dict = {key.replace("fForeign.10.", "fAffine.10."): tensor for key, tensor in state_dict.items()}
    assert detect_model(state_dict, (0, 1))[0] == "foreign"
    found = convert_published(tmp_path / "published.pth", tmp_path / "again.safetensors", blocks=(0, 1))
    assert found.startswith("foreign at 4x with ")
    assert load_model(tmp_path / "again.safetensors").config.steps == (2, 1)
