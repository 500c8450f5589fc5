"""ActNorm's initialisation from data."""

import copy

import pytest
import torch
import torch.nn.utils.prune
from layer_cases import coupling
from torch._subclasses.fake_tensor import FakeTensorMode

from invflow import ActNorm, FlowSequential, FlowStep, Squeeze
from invflow.layers import actnorm
from invflow.layers._first_batch import KnownSet, data_parallel_group


def batch(*shape, dtype=torch.float32):
    """Channels with different means and spreads."""
    shape = shape or (4, 3, 5, 6)
    size = torch.arange(1.0, shape[1] + 1)[:, None, None]
    return (torch.randn(shape) * size + 10 * size).to(dtype)


def is_fresh(layer):
    return not layer.initialized and not layer.bias.any() and not layer.log_scale.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_first_training_batch_comes_out_with_mean_zero_and_variance_one(dtype):
    layer, x = ActNorm(3), batch(dtype=dtype)
    layer.to(torch.float64 if dtype == torch.float64 else torch.float32)
    y, log_det = layer(x)
    assert y.dtype == dtype
    assert layer.initialized
    # the mean of values of 30 that are rounded to dtype, and the 1e-6 in the formula
    tolerance = max(1e-5, torch.finfo(dtype).eps)
    per_channel = y.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(per_channel.mean(1), torch.zeros(3).double(), rtol=0, atol=tolerance)
    torch.testing.assert_close(per_channel.var(1, correction=0), torch.ones(3).double(), rtol=0, atol=tolerance)
    torch.testing.assert_close(log_det.double(), 30 * layer.log_scale.double().sum().expand(4))


def test_formula():
    layer, x = ActNorm(3).double(), batch(dtype=torch.float64)
    layer(x)
    mean, std = x.mean((0, 2, 3)), x.transpose(0, 1).flatten(1).std(1, correction=0)
    torch.testing.assert_close(layer.bias.data, -mean)
    torch.testing.assert_close(layer.log_scale.data, -torch.log(std + 1e-6))


def test_only_the_first_batch_counts():
    layer = ActNorm(3)
    layer(batch())
    before = copy.deepcopy(layer.state_dict())
    layer(100 * batch())
    torch.testing.assert_close(dict(layer.state_dict()), dict(before), rtol=0, atol=0)


def test_evaluation_mode_and_inverse_never_initialise():
    layer, x = ActNorm(3), batch()
    for call in (layer.eval(), layer.inverse):
        y, log_det = call(x)
        assert is_fresh(layer)
        torch.testing.assert_close(y, x, rtol=0, atol=0)
        assert not log_det.any()
    layer.train().inverse(x)
    assert is_fresh(layer)
    layer(x)
    assert layer.initialized


def test_an_empty_batch_leaves_it_to_the_next():
    layer = ActNorm(3)
    layer(torch.zeros(0, 3, 4, 4))
    assert is_fresh(layer)
    layer(batch())
    assert layer.initialized


def test_mark_initialized_keeps_the_values():
    layer = ActNorm(3)
    layer.mark_initialized()
    y, _ = layer(batch())
    assert layer.initialized
    assert not layer.bias.any()
    layer.initialize(batch())
    assert layer.bias.all()
    assert y.shape == (4, 3, 5, 6)


@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (1, 2, 1, 1)], ids=["constant", "one pixel"])
def test_a_constant_channel_or_a_single_pixel_stays_finite(shape):
    layer, x = ActNorm(2), torch.full(shape, 7.0)
    y, log_det = layer(x)
    assert y.isfinite().all()
    assert log_det.isfinite().all()
    torch.testing.assert_close(y, torch.zeros_like(y))
    back, _ = layer.inverse(y)
    torch.testing.assert_close(back, x)
    (y.sum() + log_det.sum()).backward()
    assert layer.bias.grad.isfinite().all()
    assert layer.log_scale.grad.isfinite().all()


def test_initialisation_is_not_part_of_the_gradient():
    layer, x = ActNorm(3), batch().requires_grad_()
    layer(x)[0].sum().backward()
    torch.testing.assert_close(x.grad, layer.log_scale.detach().exp()[:, None, None].expand_as(x))


def test_every_actnorm_of_a_flow_sees_the_output_of_the_one_before():
    flow = FlowSequential([Squeeze(), FlowStep(12, coupling=coupling(12)), FlowStep(12), ActNorm(12)])
    x = batch(4, 3, 8, 8)
    z, _ = flow(x)
    per_channel = z.transpose(0, 1).flatten(1)
    torch.testing.assert_close(per_channel.mean(1), torch.zeros(12), rtol=0, atol=1e-4)
    torch.testing.assert_close(per_channel.std(1, correction=0), torch.ones(12), rtol=1e-4, atol=0)


def test_under_autocast_and_no_grad_it_initialises_as_well_as_without():
    layers = [ActNorm(3), ActNorm(3)]
    x = batch()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        layers[0](x)
    layers[1](x)
    torch.testing.assert_close(dict(layers[0].state_dict()), dict(layers[1].state_dict()), rtol=0, atol=0)


def test_values_that_no_batch_gave_are_kept_with_a_warning():
    layer = ActNorm(3)
    torch.nn.init.constant_(layer.log_scale, 0.5)
    layer.eval()(batch())
    assert not layer.initialized
    with pytest.warns(UserWarning, match="bias and log_scale are not zero, but `initialized` is not set"):
        layer.train()(batch())
    assert layer.initialized
    assert not layer.bias.any()
    assert (layer.log_scale == 0.5).all()


@pytest.mark.parametrize("layer", [ActNorm(3), FlowStep(3)], ids=["alone", "in a step"])
def test_training_through_the_inverse_is_not_undone(layer):
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        x, log_det = layer.inverse(torch.randn(4, 3, 5, 6))
        (x.square().mean() - log_det.mean()).backward()
        optimizer.step()
    x, _ = layer.inverse(z := torch.randn(4, 3, 5, 6))
    with pytest.warns(UserWarning, match="trained through the inverse"):
        back, _ = layer(x)
    torch.testing.assert_close(back, z)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_batch_that_is_not_finite_is_refused_and_changes_nothing(value, dtype):
    flow = FlowSequential([Squeeze(), ActNorm(12)])
    x = batch(2, 3, 4, 4, dtype=dtype)
    x[1, 2, 3, 3] = value
    with pytest.raises(ValueError, match=r"layer 1: ActNorm with 12 channels: .* not finite: channel 11 has mean"):
        flow(x)
    assert is_fresh(flow[1])
    flow(batch(2, 3, 4, 4, dtype=dtype))
    assert flow[1].bias.isfinite().all()
    assert flow[1].initialized


def test_statistics_that_overflow_are_refused():
    layer = ActNorm(3)
    with pytest.raises(ValueError, match="standard deviation inf"):
        layer(1e25 * batch())
    assert is_fresh(layer)


@pytest.mark.parametrize("value", [0.0, 0.1, 255.0, -1e6, 3e-7])
@pytest.mark.parametrize("shape", [(4, 2, 33, 7), (1, 2, 1, 1)], ids=["constant", "one pixel"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_constant_channel_keeps_its_scale(value, shape, dtype):
    layer = ActNorm(2).to(torch.float64 if dtype == torch.float64 else torch.float32)
    x = torch.full(shape, value).clamp(-6e4, 6e4).to(dtype)
    noise = torch.randn(shape[0], *shape[2:], dtype=torch.float64)
    x[:, 1] = noise.to(dtype)
    layer(x)
    assert layer.log_scale[0] == 0
    torch.testing.assert_close(layer.bias[0].double(), -x[0, 0, 0, 0].double(), rtol=1e-6, atol=1e-12)
    if noise.numel() > 1:
        expected = -torch.log(x[:, 1].double().std(correction=0) + 1e-6)
        torch.testing.assert_close(layer.log_scale[1].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1e-5), (1.0, 1e-5), (1000.0, 0.01), (255.0, 1 / 255)])
def test_a_narrow_channel_is_not_taken_for_a_constant(mean, std):
    layer, x = ActNorm(1), (mean + std * torch.randn(4, 1, 16, 16, dtype=torch.float64)).float()
    layer(x)
    expected = -torch.log(x.double().std(correction=0) + 1e-6)
    torch.testing.assert_close(layer.log_scale[0].double(), expected, rtol=2e-3, atol=0)


def test_a_blank_first_batch_leaves_a_flow_usable():
    flow = FlowSequential([Squeeze(), *(FlowStep(12, coupling=coupling(12)) for _ in range(4))])
    flow(torch.ones(2, 3, 16, 16))
    assert all(part.actnorm.log_scale.abs().max() < 5 for part in list(flow)[1:])
    z, _ = flow(torch.rand(2, 3, 16, 16))
    assert z.abs().max() < 1e3


@pytest.mark.parametrize("fresh", [True, False])
def test_under_a_transform_a_fresh_layer_is_refused_and_an_initialised_one_works(fresh):
    layer, x = ActNorm(3), batch()
    if not fresh:
        layer(x)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    several = {name: torch.stack([tensor, tensor]) for name, tensor in state.items()}

    def call(state, x):
        return torch.func.functional_call(layer, state, (x,))[0]

    transformed = [
        lambda: torch.vmap(lambda sample: layer(sample[None])[0][0])(x),
        lambda: torch.vmap(call, in_dims=(0, None))(several, x)[1],
        lambda: torch.func.vjp(lambda bias: call({**state, "bias": bias}, x), state["bias"])[0],
        lambda: torch.func.jvp(lambda x: layer(x)[0], (x,), (x,))[0],
    ]
    for function in transformed:
        if fresh:
            with pytest.raises(RuntimeError, match=r"run one batch without it before, or call mark_initialized\(\)"):
                function()
            assert is_fresh(layer)
        else:
            torch.testing.assert_close(function(), call(state, x))


def doubled(layer):
    class Double(torch.nn.Module):
        def forward(self, value):
            return 2 * value

    torch.nn.utils.parametrize.register_parametrization(layer, "bias", Double())


def pruned(layer):
    torch.nn.utils.prune.random_unstructured(layer, "bias", amount=1)


def normed(layer):
    with pytest.warns(FutureWarning, match="weight_norm"):
        torch.nn.utils.weight_norm(layer, "log_scale")


@pytest.mark.parametrize("compute", [doubled, pruned])
def test_a_fresh_layer_whose_parameters_are_computed_is_refused(compute):
    layer = ActNorm(3)
    compute(layer)
    with pytest.raises(RuntimeError, match="ActNorm: bias is computed by a parametrization, hook or replica"):
        layer(batch())
    assert not layer.initialized


@pytest.mark.parametrize("compute", [doubled, pruned, normed])
@pytest.mark.parametrize("in_step", [False, True])
def test_computed_parameters_are_followed_in_both_directions(compute, in_step):
    layer = FlowStep(3) if in_step else ActNorm(3)
    norm, x = layer.actnorm if in_step else layer, batch()
    layer(x)
    compute(norm)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        z, log_det = layer(x)
        (z.square().mean() - log_det.mean() / 90).backward()
        assert all(parameter.grad is not None for parameter in norm.parameters())
        optimizer.step()
    with torch.no_grad():
        latent = torch.randn(4, 3, 5, 6)
        x, inverse_log_det = layer.inverse(latent)  # before any forward pass refreshes what a hook computes
        z, log_det = layer(x)
    torch.testing.assert_close(z, latent, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_det, -inverse_log_det)


def test_operator_of_a_compiled_first_batch():
    x = batch()
    for flag in (0, 1):
        arguments = (x, torch.zeros(3), torch.zeros(3), torch.tensor(flag, dtype=torch.uint8))
        torch.library.opcheck(torch.ops.invflow.actnorm_first_batch.default, arguments)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_first_batch(backend):
    """All copies share compiled code: what is compiled for a fresh one must not initialise an average of its values."""
    torch.compiler.reset()
    flow = FlowSequential([ActNorm(3), ActNorm(3)])
    eager, other, average = (copy.deepcopy(flow) for _ in range(3))
    for part in average:
        torch.nn.init.constant_(part.bias, 2.0)
        part.initialized.fill_(1)
    x = batch()
    with pytest.raises(ValueError, match="not finite"):
        torch.compile(flow, fullgraph=True, backend=backend)(x * float("nan"))
    assert is_fresh(flow[0])
    for model in (flow, other, average):
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            before = [parameter.detach().clone() for parameter in model.parameters()]
            z, log_det = compiled(x)
            if model is average:
                assert list(map(torch.equal, before, model.parameters())) == [True] * 4
            else:
                torch.testing.assert_close((z, log_det), eager(x))
        (z.sum() - log_det.mean()).backward()
        optimizer.step()
    assert not torch.equal(flow[0].log_scale, eager[0].log_scale)
    torch.testing.assert_close(dict(flow.state_dict()), dict(other.state_dict()))


def test_compiled_code_follows_a_fresh_state_that_is_loaded():
    torch.compiler.reset()
    layer, fresh = ActNorm(3), ActNorm(3).state_dict()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for scale in (1, 5):
        compiled(scale * batch())
        before = layer.bias.clone()
        compiled(batch())
        assert torch.equal(before, layer.bias)
        layer.load_state_dict(fresh)
    compiled(7 * batch())
    assert layer.bias.abs().max() > 150


def test_without_values_nothing_initialises():
    layer = ActNorm(3).to("meta")
    assert layer(batch().to("meta"))[0].shape == (4, 3, 5, 6)
    layer = ActNorm(3)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        layer(mode.from_tensor(batch()))
    assert is_fresh(layer)


def test_a_fresh_layer_is_not_exported_in_training_mode():
    layer = ActNorm(3)
    with pytest.raises(RuntimeError, match="cannot be exported in training mode"):
        torch.export.export(layer, (batch(),), strict=False)
    layer(batch())
    program = torch.export.export(layer, (batch(),), strict=False)
    x = batch()
    torch.testing.assert_close(program.module()(x), layer(x))


def test_what_is_known_of_a_flag_ends_with_any_sign_of_a_change():
    flag, known = torch.tensor(1, dtype=torch.uint8), KnownSet()
    assert not known.holds(flag)
    known.note(flag)
    assert known.holds(flag)
    assert not known.holds(flag.clone())
    assert not copy.deepcopy(known).holds(flag)
    flag.zero_()
    assert not known.holds(flag)
    known.note(flag)
    flag.data = torch.tensor(0, dtype=torch.uint8)
    assert not known.holds(flag)
    with torch.inference_mode():
        flag = torch.tensor(1, dtype=torch.uint8)
    known.note(flag)
    assert not known.holds(flag)


def test_a_flag_that_was_found_set_is_remembered():
    layer = ActNorm(3)
    layer.mark_initialized()
    # the way that a flag on a GPU takes
    assert not layer._finds_itself_fresh(layer.initialized, batch())
    assert layer._known_set.holds(layer.initialized)


def test_a_flag_that_was_loaded_is_read_again_where_versions_do_not_count(monkeypatch):
    monkeypatch.setattr(torch.nn.parallel.DistributedDataParallel, "_active_ddp_module", object())
    layer = ActNorm(3)
    layer.mark_initialized()
    layer._known_set.note(layer.initialized)
    assert layer._known_set.holds(layer.initialized)
    layer.load_state_dict(ActNorm(3).state_dict())
    assert not layer._known_set.holds(layer.initialized)


def written_in_place(layer):
    for tensor in layer.state_dict().values():
        tensor.zero_()


def loaded(layer):
    layer.load_state_dict(ActNorm(3).state_dict())


def moved(layer):
    fresh = ActNorm(3).to(layer.bias.device)
    layer.bias, layer.log_scale, layer.initialized = fresh.bias, fresh.log_scale, fresh.initialized


each_way_to_read = pytest.mark.parametrize("device", ["cpu", "device", pytest.param("cuda", marks=pytest.mark.gpu)])


def place(device, monkeypatch):
    """Return the device of tensors; "device" stands for the way that a flag on a GPU takes, on the CPU."""
    if device != "device":
        return device
    monkeypatch.setattr(actnorm, "reads_freely", lambda tensor: False)
    return "cpu"


@each_way_to_read
@pytest.mark.parametrize("change", [written_in_place, loaded, moved])
@pytest.mark.parametrize("in_step", [False, True])
def test_a_trained_layer_that_is_made_fresh_learns_from_the_next_batch(change, in_step, device, monkeypatch):
    device = place(device, monkeypatch)
    step = FlowStep(3).to(device)
    layer, call = (step.actnorm, step) if in_step else (step.actnorm, step.actnorm)
    for scale in (1, 7, 7):
        x = scale * batch().to(device)
        with torch.no_grad():
            call(x)
            call(3 * x)
        torch.testing.assert_close(layer.bias.detach(), -x.mean((0, 2, 3)))
        change(layer)


@each_way_to_read
def test_a_flag_that_was_cleared_without_a_trace_does_not_keep_initialize_from_setting_values(device, monkeypatch):
    device = place(device, monkeypatch)
    layer, x = ActNorm(3).to(device), batch().to(device)
    layer(x)
    layer(x)
    for tensor in layer.state_dict().values():
        tensor.data.zero_()
    layer.initialize(7 * x)
    before = layer.bias.detach().clone()
    layer(x)
    torch.testing.assert_close(layer.bias.detach(), before, rtol=0, atol=0)
    torch.testing.assert_close(before, -7 * x.mean((0, 2, 3)))


def test_a_batch_is_shared_by_the_processes_of_the_wrapper_around_the_layer(monkeypatch):
    layer = ActNorm(3)
    assert data_parallel_group(layer) is data_parallel_group(None) is None
    wrapper = torch.nn.Sequential(torch.nn.Identity(), layer)
    wrapper.process_group = object()
    monkeypatch.setattr(torch.nn.parallel.DistributedDataParallel, "_active_ddp_module", wrapper)
    assert data_parallel_group(layer) is data_parallel_group(None) is wrapper.process_group
    assert data_parallel_group(ActNorm(3)) is None


@pytest.mark.parametrize(("shape", "first"), [((1, 3, 1, 1), True), ((0, 3, 2, 2), False), ((1, 3, 0, 2), False)])
def test_compiled_code_initialises_from_any_batch_that_is_not_empty(shape, first, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for layer, x in ((ActNorm(3), torch.zeros(shape)), (ActNorm(1), torch.zeros(shape)[:, :1])):
        assert layer.initializes_from(x) is first
        layer.mark_initialized()
        assert not layer.initializes_from(x)
