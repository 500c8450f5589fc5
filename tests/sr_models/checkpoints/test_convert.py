"""Published checkpoints become ours and come back bit for bit, and what does not fit is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden import FOLDER, load_golden
from torch import Tensor

import sr_models
from sr_models.checkpoints.convert import convert_published, write_published
from sr_models.checkpoints.detect import detect_model
from sr_models.checkpoints.files import create_described, load_model, read_file, save_model
from sr_models.checkpoints.published import published_layout, to_own, to_published
from sr_models.cli import main
from sr_models.registry import get_plugin

KEYS = sorted((FOLDER / "keys").glob("*.json"))
NAMES = {
    "srflow": "srflow",
    "srflow_celeba": "srflow",
    "srflowda": "srflow-da",
    "srflowda_r": "srflow-da-r",
    "srflowda_d": "srflow-da-d",
    "srflowda_s": "srflow-da-s",
    "ncsr": "ncsr",
    "hcflow": "hcflow",
    "hcflow_rescaling": "hcflow-rescaling",
}


def published_like(path: Path) -> dict[str, Tensor]:
    """A state dict with the names and shapes of a published file, every tensor unlike every other; large ones take no
    memory."""
    tensors = {}
    for number, (name, shape) in enumerate(json.loads(path.read_text())["state_dict"].items(), 1):
        size = torch.Size(shape).numel()
        small = size <= 1000
        tensors[name] = (
            number + torch.arange(size).reshape(shape) / 1000 if small else torch.tensor(float(number)).expand(shape)
        )
    return tensors


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


def test_every_layout_is_here() -> None:
    assert len(KEYS) == 16


@pytest.mark.parametrize("path", KEYS, ids=lambda path: path.stem)
def test_every_published_layout_is_detected_and_comes_back(path: Path) -> None:
    variant, scale, *_ = re.split(r"_(\d)", path.stem)
    state_dict = published_like(path)
    name, fields, preset = detect_model(state_dict)
    assert name == NAMES[variant]
    # the file of a model without an encoder tells everything
    assert preset == {"srflow_celeba": "faces", "hcflow": "", "hcflow_rescaling": ""}.get(variant, "released")
    with torch.device("meta"):
        model = sr_models.create(name, **fields)
        expected = sr_models.create(name, scale=int(scale), preset=preset or "released")
    assert model.config == expected.config
    # which must hold what they hold
    state_dict |= get_plugin(name).published.constants(model)
    own = to_own(model, state_dict)
    assert {key for key in own if not key.startswith("unused.")} == set(model.state_dict())
    back = to_published(model, own)
    assert list(back) == list(state_dict)
    for key, tensor in state_dict.items():
        assert back[key].dtype == tensor.dtype, key
        assert torch.equal(back[key], tensor), key


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A small published file; its unused convolution holds numbers that are not numbers."""
    state_dict = load_golden("srflowda_4").state_dict
    state_dict["flowUpsamplerNet.f.0.weight"] = torch.randn(96, 320, 3, 3)
    state_dict["flowUpsamplerNet.f.0.bias"] = torch.full((96,), torch.nan)
    path = tmp_path / "published.pth"
    torch.save(state_dict, path)
    return path, state_dict


def test_files_come_back_bit_for_bit(
    published: tuple[Path, dict[str, Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, state_dict = published
    own, back = tmp_path / "model.safetensors", tmp_path / "back.pth"
    convert = ["convert", str(path), "-o", str(own), "--model", "srflow-da", "--scale", "4"]
    assert main([*convert, "--blocks", "0", "1", "2", "3"]) == 0
    printed = capsys.readouterr().out
    assert "srflow-da at 4x with" in printed
    assert "276,576 that are never evaluated; RRDB blocks 0, 1, 2, 3 condition the flow\n" in printed
    assert main(["convert", str(own), "--to", "published", "-o", str(back)]) == 0
    assert_same_bits(torch.load(back, weights_only=True), state_dict)


def test_a_converted_model_computes_what_the_published_one_does(
    published: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    path, state_dict = published
    golden = load_golden("srflowda_4")
    convert_published(
        path, tmp_path / "model.safetensors", blocks=golden.facts["opt"]["network_G"]["flow"]["stackRRDB"]["blocks"]
    )
    model = load_model(tmp_path / "model.safetensors")
    expected = sr_models.from_published(state_dict, golden.facts["opt"], growth=8).eval()
    assert model.config == expected.config
    with torch.no_grad():
        found = model.encode(golden["hr"], golden["lr"])
        assert torch.equal(found.log_prob, expected.encode(golden["hr"], golden["lr"]).log_prob)
    # the flags are in the file: a training pass leaves the actnorms as they are
    tensors = read_file(tmp_path / "model.safetensors")[1]
    flags = {name: bool(tensor) for name, tensor in tensors.items() if name.endswith(".initialized")}
    assert flags
    assert all(flags.values())


def test_float64_and_names_of_data_parallel_training(published: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    path, state_dict = published
    torch.save({f"module.{name}": tensor.double() for name, tensor in state_dict.items()}, path)
    convert_published(path, tmp_path / "model.safetensors", blocks=(0, 1, 2, 3))
    write_published(tmp_path / "model.safetensors", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert_same_bits(back, {name: tensor.double() for name, tensor in state_dict.items()})
    assert load_model(tmp_path / "model.safetensors").encoder.conv_first.weight.dtype == torch.float64


@pytest.mark.parametrize("path", [path for path in KEYS if path.stem in ("srflow_4", "srflow_8")], ids=lambda p: p.stem)
def test_encoder_alone(path: Path, tmp_path: Path) -> None:
    state_dict = {
        name.removeprefix("RRDB."): tensor for name, tensor in published_like(path).items() if name.startswith("RRDB.")
    }
    torch.save(state_dict, tmp_path / "rrdb.pth")
    found = convert_published(tmp_path / "rrdb.pth", tmp_path / "rrdb.safetensors")
    assert found == f"RRDB encoder at {path.stem[-1]}x with {sum(map(torch.numel, state_dict.values())):,} parameters"
    write_published(tmp_path / "rrdb.safetensors", tmp_path / "back.pth")
    assert_same_bits(torch.load(tmp_path / "back.pth", weights_only=True), state_dict)
    with pytest.raises(ValueError, match="it holds an encoder only"):
        load_model(tmp_path / "rrdb.safetensors")


def test_a_model_of_our_own_becomes_a_published_one(tmp_path: Path) -> None:
    overrides = {"steps": 1, "hidden_channels": 4, "growth": 2, "blocks": 4, "stacked_blocks": (0, 1, 2, 3)}
    model = sr_models.create("ncsr", noise_steps=(0, 0, 1), **overrides)
    save_model(model, tmp_path / "model.safetensors")
    write_published(tmp_path / "model.safetensors", tmp_path / "model.pth")
    state_dict = torch.load(tmp_path / "model.pth", weights_only=True)
    assert list(state_dict) == list(published_layout(model))
    assert not state_dict["flowUpsamplerNet.layers.3.affine.fAffine_std.0.weight"].any()
    restored = to_own(model, state_dict)
    for name, tensor in model.state_dict().items():
        assert torch.equal(restored[name], tensor), name


def test_description_makes_the_same_model(tmp_path: Path) -> None:
    model = sr_models.create("srflow-da", preset="small")
    save_model(model, tmp_path / "model.safetensors")
    assert create_described(read_file(tmp_path / "model.safetensors")[0]).config == model.config


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


class TestMistakes:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (without("RRDB.trunk_conv.bias"), "does not fit: missing RRDB.trunk_conv.bias"),
            (lambda t: t.update({"extra.weight": torch.zeros(1)}), "does not fit: unexpected extra.weight"),
            (lambda t: t.update({"two\nlines": torch.zeros(1)}), r"does not fit: unexpected two\\nlines$"),
            (
                lambda t: t.update({"RRDB.HRconv.bias": torch.zeros(3)}),
                r"RRDB.HRconv.bias has shape \(3,\), expected \(64,\)",
            ),
            (
                lambda t: t.update({"flowUpsamplerNet.layers.1.actnorm.logs": torch.zeros(12)}),
                r"layers.1.actnorm.logs has shape \(12,\), expected \(1, 12, 1, 1\)",
            ),
            (without("RRDB.conv_first.weight"), "no convolution RRDB.conv_first.weight"),
            (lambda t: [t.pop(name) for name in list(t) if "affine" in name], "no coupling networks that this library"),
            (lambda t: t.update(step=3), "'step' is not a floating-point tensor"),
            (lambda t: t.update(step=torch.tensor(3)), "'step' is not a floating-point tensor"),
            (
                lambda t: t.update({"RRDB.HRconv.bias": torch.zeros(64).double()}),
                "several dtypes: torch.float32, torch.float64",
            ),
            (lambda t: t.clear(), "does not hold a state dict"),
        ],
    )
    def test_tensors(
        self,
        published: tuple[Path, dict[str, Tensor]],
        tmp_path: Path,
        change: Callable[[dict[str, Tensor]], object],
        message: str,
    ) -> None:
        path, state_dict = published
        change(state_dict)
        torch.save(state_dict, path)
        with pytest.raises(ValueError, match=message):
            convert_published(path, tmp_path / "model.safetensors", blocks=(0, 1, 2, 3))
        assert not (tmp_path / "model.safetensors").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("-o {out}.safetensors", "does not say which of its 4 RRDB blocks condition the flow: give --blocks"),
            ("-o {out}.safetensors --blocks 1 2", "blocks must be 4 numbers for this file, got 2"),
            ("-o {out}.safetensors --blocks 1 2 3 4", "stacked_blocks must be in 0..3 for 4 blocks"),
            ("-o {out}.safetensors --model srflow --blocks 0 1 2 3", "it holds srflow-da, not srflow"),
            ("-o {out}.safetensors --scale 8 --blocks 0 1 2 3", "its scale is 4, not 8"),
            ("-o {out}.pt --blocks 0 1 2 3", "must end in .safetensors, got"),
            ("-o {file}", "must be another file than"),
            ("-o {out}.pth --to published", "must end in .safetensors, got"),
            ("-o {out}.pth --to elsewhere", "elsewhere"),
        ],
    )
    def test_command_line(
        self,
        published: tuple[Path, dict[str, Tensor]],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        arguments: str,
        message: str,
    ) -> None:
        path, _ = published
        filled = arguments.format(out=tmp_path / "out", file=path)
        assert main(["convert", str(path), *filled.split()]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("sr-models: error: ")
        assert message in line
        assert [file.name for file in tmp_path.iterdir()] == ["published.pth"]

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"cos\nsystem\n(S'touch hacked'\ntR.", b"\x80\x02}q\x00."])
    def test_other_files(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read .*x.pth: it (is not a file of tensors|does not hold)"):
            convert_published(tmp_path / "x.pth", tmp_path / "model.safetensors")

    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return open, (str(tmp_path / "sprung"), "w")

        torch.save({"RRDB.conv_first.weight": Trap()}, tmp_path / "x.pth")
        with pytest.raises(ValueError, match="it is not a file of tensors alone"):
            convert_published(tmp_path / "x.pth", tmp_path / "model.safetensors")
        assert not (tmp_path / "sprung").exists()

    def test_steps_with_noise_are_not_guessed(self, tmp_path: Path) -> None:
        overrides = {"steps": 1, "hidden_channels": 4, "growth": 2, "blocks": 4, "stacked_blocks": (0, 1, 2, 3)}
        save_model(sr_models.create("ncsr", noise_steps=(0, 0, 1), **overrides), tmp_path / "model.safetensors")
        write_published(tmp_path / "model.safetensors", tmp_path / "model.pth")
        with pytest.raises(ValueError, match="does not say which steps see the noise"):
            convert_published(tmp_path / "model.pth", tmp_path / "again.safetensors")

    def test_models_that_were_not_published(self, tmp_path: Path) -> None:
        tiny = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}
        model = sr_models.create("srflow", preset="paper", **tiny)
        save_model(model, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="the published implementations have no srflow like this one"):
            write_published(tmp_path / "model.safetensors", tmp_path / "model.pth")


def test_a_preset_of_our_own_is_recognised(tmp_path: Path) -> None:
    save_model(sr_models.create("srflow-da", preset="small"), tmp_path / "model.safetensors")
    write_published(tmp_path / "model.safetensors", tmp_path / "model.pth")
    found = convert_published(tmp_path / "model.pth", tmp_path / "again.safetensors")
    assert found.endswith("RRDB blocks 0, 2 condition the flow as in the preset 'small': the file does not say")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["srflow-da", "ncsr"])
def test_a_model_of_another_dtype_becomes_a_published_one_and_comes_back(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    overrides = {"steps": 1, "hidden_channels": 4, "growth": 2, "blocks": 4, "stacked_blocks": (0, 1, 2, 3)}
    model = sr_models.create(name, **overrides, **({"noise_steps": (0, 0, 1)} if name == "ncsr" else {})).to(dtype)
    save_model(model, tmp_path / "model.safetensors")
    write_published(tmp_path / "model.safetensors", tmp_path / "model.pth")
    state_dict = torch.load(tmp_path / "model.pth", weights_only=True)
    assert {tensor.dtype for tensor in state_dict.values()} == {dtype}
    if name == "srflow-da":
        convert_published(tmp_path / "model.pth", tmp_path / "back.safetensors", blocks=(0, 1, 2, 3))
        restored = load_model(tmp_path / "back.safetensors").state_dict()
    else:  # the file does not say which steps see the noise
        restored = to_own(model, state_dict)
    for key, tensor in model.state_dict().items():
        assert torch.equal(restored[key], tensor), key


def test_a_model_of_two_dtypes_is_not_published(tmp_path: Path) -> None:
    overrides = {"steps": 1, "hidden_channels": 4, "growth": 2, "blocks": 4, "stacked_blocks": (0, 1, 2, 3)}
    model = sr_models.create("srflow-da", **overrides)
    model.encoder.double()
    save_model(model, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"its tensors have several dtypes: torch.float32, torch.float64"):
        write_published(tmp_path / "model.safetensors", tmp_path / "model.pth")
    assert not (tmp_path / "model.pth").exists()
