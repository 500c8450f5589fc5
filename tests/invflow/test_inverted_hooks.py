"""Hooks on tensors and modules of FlowSequential(memory="invert"): each runs as with memory="store"."""

import pytest
import torch
from inverted_flows import CHANNELS, assert_same, captured_leaf, conditional, nested, plain, shared_network


@pytest.mark.parametrize("build", [plain, conditional, shared_network, captured_leaf], ids=lambda b: b.__name__)
def test_hooks_on_tensors_run_once_a_backward_pass(build):
    def use(flow, x, context):
        flow.calls = []

        def note(name, grad):
            flow.calls.append(name)
            return 3 * grad

        for name, tensor in [*flow.named_parameters(), ("x", x), ("context", context), *enumerate(flow_extra(flow))]:
            tensor.register_hook(lambda grad, name=name: note(name, grad))
            tensor.register_post_accumulate_grad_hook(lambda tensor, name=name: flow.calls.append((name, "after")))
        return flow(x, context)

    store, invert = assert_same(build, use=use)
    assert sorted(map(str, invert.flow.calls)) == sorted(map(str, store.flow.calls))
    assert len(set(map(str, invert.flow.calls))) == len(invert.flow.calls)


def flow_extra(flow):
    return getattr(flow, "extra", [])


def test_a_removed_hook_does_not_run():
    flow, x = plain(), torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64)
    flow.memory, calls = "invert", []
    handle = flow[1].coupling.net.hidden.weight.register_hook(lambda grad: calls.append(1))
    for _ in range(2):
        flow(x)[1].sum().backward()
    handle.remove()
    flow(x)[1].sum().backward()
    assert len(calls) == 2


MODULES = {
    "layer": lambda flow: flow[1],
    "part": lambda flow: flow[1].coupling,
    "network": lambda flow: flow[1].coupling.net,
}


@pytest.mark.parametrize("where", MODULES)
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_module_hooks(where, kind):
    def use(flow, x, context):
        flow.calls = []
        module = MODULES[where](flow)

        def note(*args):
            flow.calls.append(kind)
            if kind == "full_backward":
                return tuple(None if grad is None else 2 * grad for grad in args[1])
            return None

        getattr(module, f"register_{kind}_hook")(note)
        return flow(x, context)

    says = None if where == "network" else "layer 1: it has hooks"
    store, invert = assert_same(plain, use=use, says=says)
    # a network is evaluated again, as under activation checkpointing
    again = where == "network" and kind.startswith("forward")
    assert len(invert.flow.calls) == (2 if again else 1)
    assert len(store.flow.calls) == 1


def test_hooks_on_all_modules():
    def use(flow, x, context):
        flow.calls = []
        handle = torch.nn.modules.module.register_module_full_backward_hook(
            lambda module, *grads: flow.calls.append(type(module).__name__)
        )
        z, log_det = flow(x, context)
        handle.remove()
        return z, log_det

    for build in (plain, nested):
        store, invert = assert_same(build, use=use, says="layer 0: it has hooks")
        assert sorted(invert.flow.calls) == sorted(store.flow.calls)
        assert "FlowStep" in invert.flow.calls
