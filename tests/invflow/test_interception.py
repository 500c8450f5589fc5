"""Operators call their kernels past the dispatcher: whatever wants to see such a call must still see it."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from op_cases import OPS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import invflow

each_op = pytest.mark.parametrize("case", OPS, ids=lambda case: case.name)
PUBLIC = ("channel_affine", "affine_coupling", "flow_step")
REGISTERED = {"flow_step", "flow_step_backward"}


def names_of(targets):
    """The operators of invflow among these."""
    words = [str(target).replace("::", ".").split(".") for target in targets]
    return [parts[1] for parts in words if parts[0] == "invflow"]


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(func)
        return func(*args, **(kwargs or {}))


class Wrapped(torch.Tensor):
    """A tensor subclass that records what it is handed to."""

    calls: ClassVar[list] = []

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        cls.calls.append(func)
        unwrapped = [arg.inner if isinstance(arg, cls) else arg for arg in args]
        return func(*unwrapped, **(kwargs or {}))


@each_op
def test_a_dispatch_mode_sees_the_operator(case):
    with Seen() as seen, torch.no_grad():
        results = case.on("cpu")(*case.inputs())
    assert set(names_of(seen.calls)) & REGISTERED
    torch.testing.assert_close(results, case.on("cpu")(*case.inputs()))


@each_op
def test_make_fx_traces_the_operator(case):
    traced = make_fx(case.on("cpu"))(*case.inputs())
    assert set(names_of(node.target for node in traced.graph.nodes)) & REGISTERED
    other = [tensor.flip(0) for tensor in case.inputs()]
    torch.testing.assert_close(tuple(traced(*other)), tuple(case.on("cpu")(*other)))


@each_op
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_jit_trace_records_the_operator(case):
    with torch.no_grad():
        traced = torch.jit.trace(case.on("cpu"), case.inputs(), check_trace=False)
    assert set(names_of(node.kind() for node in traced.graph.nodes())) & REGISTERED
    other = tuple(tensor.flip(0) for tensor in case.inputs())
    torch.testing.assert_close(tuple(traced(*other)), tuple(case.on("cpu")(*other)))


@each_op
def test_fake_tensors_stay_fake(case):
    real = case.on("cpu")(*case.inputs())
    with FakeTensorMode() as mode:
        fakes = case.on("cpu")(*(mode.from_tensor(tensor) for tensor in case.inputs()))
    for fake, expected in zip(fakes, real, strict=True):
        assert type(fake).__name__ == "FakeTensor"
        assert (fake.shape, fake.dtype, fake.stride()) == (expected.shape, expected.dtype, expected.stride())


def tensors_of(name):
    x, matrix, h = torch.randn(2, 4, 3, 3), torch.randn(4, 4), torch.randn(2, 4, 3, 3)
    return {
        "channel_affine": (x, matrix, matrix[0]),
        "affine_coupling": (x, h),
        "flow_step": (x, matrix, matrix[0], h),
    }[name]


@pytest.mark.parametrize(
    ("name", "position"), [(name, i) for name in PUBLIC for i in range(len(tensors_of(name)))], ids=str
)
def test_a_tensor_subclass_sees_the_operator(name, position):
    function, tensors = getattr(invflow, name), tensors_of(name)
    Wrapped.calls.clear()
    with torch.no_grad():
        wrapped = [Wrapped(tensor) if i == position else tensor for i, tensor in enumerate(tensors)]
        results = function(*wrapped, backend="cpu")
    assert names_of(Wrapped.calls) == ["flow_step"]
    torch.testing.assert_close(results, function(*tensors, backend="cpu"), rtol=0, atol=0)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_parameter_is_an_ordinary_tensor(name):
    function, tensors = getattr(invflow, name), tensors_of(name)
    results = function(*(torch.nn.Parameter(tensor) for tensor in tensors), backend="cpu")
    torch.testing.assert_close(results, function(*tensors, backend="cpu"), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "position"), [(name, i) for name in PUBLIC for i in range(len(tensors_of(name)))], ids=str
)
def test_a_negated_view_is_not_read_as_the_tensor_beneath_it(name, position):
    function, tensors = getattr(invflow, name), tensors_of(name)
    negated = [torch._neg_view(tensor) if i == position else tensor for i, tensor in enumerate(tensors)]
    expected = [-tensor if i == position else tensor for i, tensor in enumerate(tensors)]
    torch.testing.assert_close(function(*negated, backend="cpu"), function(*expected, backend="cpu"), rtol=0, atol=0)


@pytest.mark.parametrize("name", PUBLIC)
def test_calls_that_nothing_could_intercept_pass_the_dispatcher_by(name):
    """Forward and backward; the profiler sees what the dispatcher is asked for."""
    function = getattr(invflow, name)
    leaves = [tensor.requires_grad_() for tensor in tensors_of(name)]
    with torch.profiler.profile() as profile:
        results = function(*leaves, backend="cpu")
        results = [results] if isinstance(results, torch.Tensor) else list(results)
        torch.autograd.grad(results, leaves, [torch.ones_like(result) for result in results])
    seen = [event.key for event in profile.key_averages()]
    assert "aten::ones_like" in seen
    assert not names_of(seen)


@pytest.mark.parametrize("name", ["affine_coupling", "flow_step"])
def test_batched_gradients_of_log_det_alone(name):
    leaves = [tensor.requires_grad_() for tensor in tensors_of(name)]
    _, log_det = getattr(invflow, name)(*leaves, backend="cpu")
    batch = torch.randn(3, *log_det.shape)
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    found = torch.autograd.grad(log_det, leaves, batch, is_grads_batched=True, **options)
    one_by_one = [torch.autograd.grad(log_det, leaves, each, **options) for each in batch]
    torch.testing.assert_close(found, tuple(map(torch.stack, zip(*one_by_one, strict=True))))


@pytest.mark.parametrize("name", PUBLIC)
def test_batched_gradients_are_those_of_one_after_the_other(name):
    function = getattr(invflow, name)
    leaves = [tensor.requires_grad_() for tensor in tensors_of(name)]
    results = function(*leaves, backend="cpu")
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    batches = [torch.randn(3, *result.shape) for result in results]
    found = torch.autograd.grad(results, leaves, batches, is_grads_batched=True, retain_graph=True)
    one_by_one = [
        torch.autograd.grad(results, leaves, [batch[i] for batch in batches], retain_graph=True) for i in range(3)
    ]
    torch.testing.assert_close(found, tuple(map(torch.stack, zip(*one_by_one, strict=True))))
