"""Layers as modules: copies, pickles, state_dicts, the meta device."""

import copy
import io
import pickle

import pytest
import torch
from layer_cases import LAYERS, actnorms, latents_of
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from invflow import ActNorm, FlowStep, InvertibleConv1x1


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


@each_layer
def test_every_parameter_and_buffer_is_contiguous(case):
    layer = case.construct()
    assert all(tensor.is_contiguous() for tensor in (*layer.parameters(), *layer.buffers()))
    vector = torch.nn.utils.parameters_to_vector(layer.parameters()) if list(layer.parameters()) else None
    if vector is not None:
        torch.nn.utils.vector_to_parameters(2 * vector, layer.parameters())


def test_lbfgs_trains_a_step():
    step, x = FlowStep(4), torch.randn(2, 4, 3, 3)
    optimizer, losses = torch.optim.LBFGS(step.parameters(), lr=0.1, max_iter=3), []

    def loss():
        optimizer.zero_grad()
        z, log_det = step(x)
        value = z.square().mean() - 0.1 * log_det.mean()
        value.backward()
        losses.append(value.item())
        return value

    optimizer.step(loss)
    assert losses[-1] < losses[0]


def filled_in_place(layer, other):
    for name, tensor in other.state_dict().items():
        tensor.copy_(layer.state_dict()[name])


def averaged(layer, other, **options):
    average = AveragedModel(other, **options)
    for _ in range(3):
        average.update_parameters(layer)
    other.load_state_dict(average.module.state_dict())


def averaged_in_training(layer, other):
    average = AveragedModel(other)
    average.update_parameters(layer)
    filled_in_place(average.module, other)


def ema_with_buffers(layer, other):
    averaged(layer, other, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)


def mean_with_buffers(layer, other):
    averaged(layer, other, use_buffers=True)


def swapped(layer, other):
    for tensor, given in zip(other.state_dict(keep_vars=True).values(), layer.state_dict().values(), strict=True):
        replacement = torch.nn.Parameter(given.clone()) if isinstance(tensor, torch.nn.Parameter) else given.clone()
        torch.utils.swap_tensors(tensor, replacement)


def loaded_by_swapping(layer, other):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        other.load_state_dict(layer.state_dict())
        other.double().float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def loaded_from_flags_of_booleans(layer, other, **options):
    state = {
        name: value.bool() if name.endswith("initialized") else value for name, value in layer.state_dict().items()
    }
    other.load_state_dict(state, **options)
    assert {part.initialized.dtype for part in actnorms(other)} == {torch.uint8}


def assigned_from_flags_of_booleans(layer, other):
    loaded_from_flags_of_booleans(layer, other, assign=True)


@pytest.mark.parametrize(
    "transfer",
    [
        filled_in_place,
        averaged_in_training,
        ema_with_buffers,
        mean_with_buffers,
        swapped,
        loaded_by_swapping,
        loaded_from_flags_of_booleans,
        assigned_from_flags_of_booleans,
    ],
)
@with_actnorm
def test_state_is_that_of_the_tensors_however_they_got_their_values(case, transfer, recwarn):
    layer, other = case.build(), fresh(case)
    transfer(layer, other)
    assert_same_map(layer.train(), other.train(), case)
    assert not [warning for warning in recwarn if "actnorm" in str(warning.message).lower()]
    # and the other way: what was fresh is fresh again
    filled_in_place(fresh(case), other)
    other(*case.inputs())
    expected = fresh(case)
    expected(*case.inputs())
    assert_same_map(expected, other, case)


@with_actnorm
def test_without_flags_loaded_values_are_kept(case):
    layer, other = case.build(), fresh(case)
    weights = {name: value for name, value in layer.state_dict().items() if not name.endswith("initialized")}
    other.load_state_dict(weights, strict=False)
    with pytest.warns(UserWarning, match="They are kept"):
        other.train()(*case.inputs())
    assert_same_map(layer, other, case)


@with_actnorm
@pytest.mark.parametrize("buffers", [True, False])
def test_functional_call_leaves_a_fresh_layer_fresh(case, buffers):
    layer = fresh(case)
    given = {name: tensor.detach().clone() for name, tensor in layer.named_parameters()}
    given |= {name: tensor.clone() for name, tensor in layer.named_buffers()}
    before = copy.deepcopy(layer.state_dict())
    if not buffers:
        given = {name: tensor for name, tensor in given.items() if not name.endswith("initialized")}
    for _ in range(2):
        torch.func.functional_call(layer, given, case.inputs())
    assert all(tensor.all() for name, tensor in given.items() if name.endswith("initialized"))
    assert all(tensor.any() for name, tensor in given.items() if name.endswith("bias") and "net" not in name)
    torch.testing.assert_close(dict(layer.state_dict()), dict(before), rtol=0, atol=0)
    layer.train()(*case.inputs())
    expected = fresh(case)
    expected(*case.inputs())
    assert_same_map(expected, layer, case)


@with_actnorm
@pytest.mark.parametrize("given_values", ["fresh", "set"])
def test_parameters_of_another_layer_leave_a_fresh_layer_fresh(case, given_values):
    layer, other = fresh(case), case.build() if given_values == "set" else fresh(case)
    parameters, before = dict(other.named_parameters()), copy.deepcopy(layer.state_dict())
    for _ in range(2):
        torch.func.functional_call(layer, parameters, case.inputs())
    torch.testing.assert_close(dict(layer.state_dict()), dict(before), rtol=0, atol=0)
    layer.train()(*case.inputs())
    expected = fresh(case)
    expected(*case.inputs())
    assert_same_map(expected, layer, case)


@pytest.mark.parametrize("replace", ["attribute", "parametrization removed", "assigned", "double"])
def test_a_layer_with_new_parameters_of_its_own_initialises(replace):
    layer, x = ActNorm(3), 2 + torch.randn(4, 3, 5, 5)
    if replace == "attribute":
        layer.bias = torch.nn.Parameter(torch.zeros(3))
    elif replace == "assigned":
        layer.load_state_dict(ActNorm(3).state_dict(), assign=True)
    elif replace == "double":
        layer.double()
    else:
        torch.nn.utils.parametrize.register_parametrization(layer, "bias", torch.nn.Identity())
        torch.nn.utils.parametrize.remove_parametrizations(layer, "bias")
    y, _ = layer(x.to(layer.bias.dtype))
    assert layer.initialized
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros_like(layer.bias), rtol=0, atol=1e-5)
    # the flag says so, not the values alone
    torch.testing.assert_close(unpickled(layer)._own, layer._own)
    assert unpickled(layer).initialized


@pytest.mark.parametrize("initialized", [False, True])
def test_a_module_that_version_0_1_pickled(initialized):
    layer, x = ActNorm(3), 2 + torch.randn(4, 3, 5, 5)
    if initialized:
        layer(x)
    for name in ("_own", "_known_set", "_known_to_compiler"):
        del layer.__dict__[name]
    layer._buffers["initialized"] = layer.initialized.bool()
    other = unpickled(layer)
    other(x if not initialized else 2 * x + 1)
    assert other.initialized.dtype == torch.uint8
    assert other.initialized
    expected = ActNorm(3)
    expected(x)
    torch.testing.assert_close(dict(other.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(torch.compile(other, backend="eager")(x), expected(x))


def test_a_transposed_weight_of_a_file_becomes_contiguous():
    layer, other = InvertibleConv1x1(4), InvertibleConv1x1(4)
    state = {name: value.T.contiguous().T for name, value in layer.state_dict().items()}
    other.load_state_dict(state, assign=True)
    assert other.weight.is_contiguous()
    assert isinstance(other.weight, torch.nn.Parameter)
    torch.testing.assert_close(other.weight, layer.weight, rtol=0, atol=0)
