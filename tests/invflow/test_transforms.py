"""Every way in which PyTorch transforms a function, applied to every operator: none may silently skip a kernel.

The expected result is the same derivative of the reference in float64, taken without compilation.
"""

import pytest
import torch
from op_cases import OPS
from torch.utils.checkpoint import checkpoint

each_op = pytest.mark.parametrize("case", OPS, ids=lambda case: case.name)


def total(results):
    """A scalar with nonzero second derivatives, to which every element of every result contributes its own share."""
    return sum((result * torch.linspace(0.1, 0.5, result.numel()).view(result.shape)).sin().sum() for result in results)


def everything(inputs):
    return tuple(range(len(inputs)))


def compiled(f):
    return torch.compile(f, backend="aot_eager", fullgraph=True)


def stacked(inputs):
    """Three different ones of every input."""
    return tuple(torch.stack([tensor, 0.5 * tensor, tensor.flip(0)]) for tensor in inputs)


def backward(f, inputs):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    total(f(*leaves)).backward()
    return [leaf.grad for leaf in leaves]


def double_backward(f, inputs):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    gradients = torch.autograd.grad(total(f(*leaves)), leaves, create_graph=True)
    return torch.autograd.grad(total(gradients), leaves)


def third_derivative(f, inputs):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    gradients = torch.autograd.grad(total(f(*leaves)), leaves, create_graph=True)
    gradients = torch.autograd.grad(total(gradients), leaves, create_graph=True)
    return torch.autograd.grad(total(gradients), leaves)


def jvp(f, inputs):
    return torch.func.jvp(f, inputs, tuple(tensor.cos() for tensor in inputs))


def gradient(f, inputs):
    return torch.func.grad(lambda *tensors: total(f(*tensors)), everything(inputs))(*inputs)


def forward_mode(f, inputs):
    with torch.autograd.forward_ad.dual_level():
        results = f(*(torch.autograd.forward_ad.make_dual(tensor, tensor.cos()) for tensor in inputs))
        return [torch.autograd.forward_ad.unpack_dual(result).tangent.clone() for result in results]


def jacobian(f, inputs, vectorize):
    jacobians = torch.autograd.functional.jacobian(f, inputs, vectorize=vectorize)
    return [block for row in jacobians for block in row]


def hessian_vector_product(f, inputs):
    return torch.autograd.functional.hvp(lambda *tensors: total(f(*tensors)), inputs, inputs)


TRANSFORMS = {
    "no transform": lambda f, inputs: f(*inputs),
    "backward": backward,
    "double backward": double_backward,
    "third derivative": third_derivative,
    "checkpoint": lambda f, inputs: backward(lambda *tensors: checkpoint(f, *tensors, use_reentrant=False), inputs),
    "reentrant checkpoint": lambda f, inputs: backward(
        lambda *tensors: checkpoint(f, *tensors, use_reentrant=True), inputs
    ),
    "forward mode": forward_mode,
    "autograd.functional.jacobian": lambda f, inputs: jacobian(f, inputs, vectorize=False),
    "autograd.functional.jacobian, vectorized": lambda f, inputs: jacobian(f, inputs, vectorize=True),
    "autograd.functional.hvp": hessian_vector_product,
    "func.grad": gradient,
    "func.jvp": jvp,
    "func.vjp": lambda f, inputs: torch.func.vjp(f, *inputs)[1](tuple(result.cos() for result in f(*inputs))),
    "func.jacrev": lambda f, inputs: torch.func.jacrev(f, everything(inputs))(*inputs),
    "func.jacfwd": lambda f, inputs: torch.func.jacfwd(f, everything(inputs))(*inputs),
    "func.hessian": lambda f, inputs: torch.func.hessian(lambda *tensors: total(f(*tensors)))(*inputs),
    "vmap": lambda f, inputs: torch.vmap(f)(*stacked(inputs)),
    "vmap over the first input": lambda f, inputs: torch.vmap(f, (0, *[None] * (len(inputs) - 1)))(
        stacked(inputs)[0], *inputs[1:]
    ),
    "vmap(jacrev)": lambda f, inputs: torch.vmap(torch.func.jacrev(f, everything(inputs)))(*stacked(inputs)),
    "vmap(grad)": lambda f, inputs: torch.vmap(lambda *tensors: gradient(f, tensors))(*stacked(inputs)),
}

# test_registration.py compares results and gradients of the compiled operators with those that test_transform sees.
COMPILED = {
    "compile(vmap)": (lambda f, inputs: compiled(torch.vmap(f))(*stacked(inputs)), "vmap"),
    "compile(func.grad)": (lambda f, inputs: compiled(lambda *tensors: gradient(f, tensors))(*inputs), "func.grad"),
    "compile(func.jvp)": (lambda f, inputs: compiled(lambda *tensors: jvp(f, tensors))(*inputs), "func.jvp"),
    "compile, checkpoint": (
        lambda f, inputs: backward(compiled(lambda *tensors: checkpoint(f, *tensors, use_reentrant=False)), inputs),
        "backward",
    ),
}


def leaves_of(tree):
    return torch.utils._pytree.tree_leaves(tree)


def assert_same_results(case, actual_transform, expected_transform):
    actual = leaves_of(actual_transform(case.on("cpu"), case.inputs()))
    expected = leaves_of(expected_transform(case.on("reference"), case.inputs(torch.float64)))
    assert any(tensor.any() for tensor in expected)
    assert len(actual) == len(expected)
    for found, tensor in zip(actual, expected, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), tensor, rtol=1e-4, atol=1e-5 * max(1.0, tensor.abs().max().item()))


@each_op
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(case, name):
    assert_same_results(case, TRANSFORMS[name], TRANSFORMS[name])


@each_op
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_transform(case, name):
    torch.compiler.reset()
    transform, uncompiled = COMPILED[name]
    assert_same_results(case, transform, TRANSFORMS[uncompiled])


@each_op
def test_second_derivatives_in_float64(case):
    inputs = [tensor.requires_grad_() for tensor in case.inputs(torch.float64)]
    assert torch.autograd.gradgradcheck(case.on("auto"), inputs, fast_mode=True)
