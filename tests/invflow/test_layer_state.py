"""Layers as modules: copies, pickles, state_dicts, the meta device."""

import copy
import io
import pickle

import pytest
import torch
from layer_cases import LAYERS, actnorms, latents_of


def unpickled(layer):
    return pickle.loads(pickle.dumps(layer))


each_layer = pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
with_actnorm = pytest.mark.parametrize(
    "case", [case for case in LAYERS if actnorms(case.build())], ids=lambda case: case.name
)


def fresh(case):
    """The layer as its constructor leaves it, with other parameters than ``case.build()``."""
    torch.manual_seed(99)
    return case.construct()


def assert_same_map(layer, other, case):
    found = []
    for each in (layer, other):
        z, log_det = each(*case.inputs())
        back, _ = each.inverse(z, case.inputs()[1])
        found.append([*latents_of(z), log_det, back])
    torch.testing.assert_close(*found, rtol=0, atol=0)


def saved_and_loaded(layer):
    """The state_dict after a round trip through a file."""
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_layer
@pytest.mark.parametrize("copied", [copy.deepcopy, unpickled])
def test_copies_are_equal_and_independent(case, copied):
    layer = case.build()
    other = copied(layer)
    assert_same_map(layer, other, case)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(0.5)
    assert_same_map(layer, case.build(), case)


@each_layer
@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_state_dict_restores_the_map(case, assign):
    layer, other = case.build(), fresh(case)
    keys = other.load_state_dict(saved_and_loaded(layer), assign=assign)
    assert not keys.missing_keys
    assert not keys.unexpected_keys
    # in training mode: an initialised actnorm that was loaded must not take its values from this batch
    assert_same_map(layer.train(), other.train(), case)


@with_actnorm
@pytest.mark.parametrize("copied", [copy.deepcopy, unpickled, None])
def test_an_uninitialised_layer_stays_so_until_a_training_batch(case, copied):
    layer = fresh(case)
    if copied is None:
        other = case.build()
        other.load_state_dict(saved_and_loaded(layer))
    else:
        other = copied(layer)
    before = copy.deepcopy(other.state_dict())
    other.eval()(*case.inputs())
    torch.testing.assert_close(dict(other.state_dict()), dict(before), rtol=0, atol=0)
    other.train()(*case.inputs())
    assert all(part.initialized for part in actnorms(other))
    assert all(part.bias.any() for part in actnorms(other))
    after = copy.deepcopy(other.state_dict())
    x, context = case.inputs()
    other(2 * x + 1, context)
    torch.testing.assert_close(dict(other.state_dict()), dict(after), rtol=0, atol=0)


@each_layer
def test_meta_device_construction_then_loading(case):
    layer = case.build()
    with torch.device("meta"):
        other = case.construct()
    assert all(tensor.is_meta for tensor in other.state_dict().values())
    z, log_det = other.eval()(*(None if tensor is None else tensor.to("meta") for tensor in case.inputs()))
    expected, _ = layer(*case.inputs())
    assert [latent.shape for latent in latents_of(z)] == [latent.shape for latent in latents_of(expected)]
    assert log_det.shape == (2,)
    other.to_empty(device="cpu").load_state_dict(layer.state_dict())
    assert_same_map(layer.train(), other.train(), case)


@each_layer
def test_parameters_follow_a_change_of_dtype(case):
    layer = case.build().double()
    assert {parameter.dtype for parameter in layer.parameters()} <= {torch.float64}
    z, log_det = layer(*case.inputs(dtype=torch.float64))
    assert {tensor.dtype for tensor in (*latents_of(z), log_det)} == {torch.float64}


@each_layer
def test_repr_names_every_layer(case):
    layer = case.build()
    assert repr(layer).startswith(type(layer).__name__)
    for part in actnorms(layer):
        assert f"channels={part.channels}" in repr(layer)
