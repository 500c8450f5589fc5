"""Choosing a backend: by call, context, environment and argument; refusals that say why."""

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from processes import run_python

import invflow
from invflow import (
    AffineForm,
    affine_coupling,
    backends,
    can_run,
    channel_affine,
    current_backend,
    flow_step,
    use_backend,
)
from invflow._numerics import compute_dtype
from invflow.backends import KERNELS, cpu


def call_channel_affine(x, **options):
    matrix = torch.eye(2, dtype=compute_dtype(x.dtype), device=x.device)
    return channel_affine(x, matrix, matrix[0], **options)


def call_flow_step(x, **options):
    matrix = torch.eye(2, dtype=compute_dtype(x.dtype), device=x.device)
    return flow_step(x, matrix, matrix[0], x, **options)[0]


CALLS = {
    "channel_affine": call_channel_affine,
    "affine_coupling": lambda x, **options: affine_coupling(x, torch.cat([x, x], 1), AffineForm(), **options)[0],
    "flow_step": call_flow_step,
}
each_op = pytest.mark.parametrize("op", CALLS)
RUNNING_HERE = [name for name in invflow.BACKENDS if name == "reference" or not KERNELS[name].unavailable()]
NAMES = ", ".join(map(repr, invflow.BACKENDS))
WHY_HIDDEN = "the extension invflow._C could not be imported (no such file, says the test)"


@pytest.fixture(autouse=True)
def no_choice_left_behind():
    before = current_backend()
    yield
    assert current_backend() == before


@pytest.fixture
def no_kernels(monkeypatch):
    """As if the extension had not been built."""
    monkeypatch.setattr(cpu, "extension", None)
    monkeypatch.setattr(cpu, "import_error", "no such file, says the test")
    monkeypatch.setattr(backends, "_warned", True)


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(backends, "_logged", set())
    caplog.set_level(logging.DEBUG, "invflow")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "invflow"]


def state(dtype=torch.float32, device="cpu"):
    return torch.ones(1, 2, 3, 3, dtype=dtype, device=device)


def test_the_default_is_auto():
    assert current_backend() == "auto"
    assert invflow.BACKENDS == ("cpu", "cuda", "triton", "reference")


@pytest.mark.parametrize("name", ["auto", *RUNNING_HERE])
def test_use_backend_as_a_call_stays(name):
    before = current_backend()
    restore = use_backend(name)
    assert current_backend() == name
    restore.__exit__(None, None, None)
    assert current_backend() == before


def test_use_backend_as_a_context_restores_the_previous_choice():
    with use_backend("reference"):
        with use_backend("cpu"):
            assert current_backend() == "cpu"
        assert current_backend() == "reference"
        use_backend("auto")
        assert current_backend() == "auto"
    assert current_backend() == "auto"


def test_use_backend_restores_after_an_exception():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert current_backend() == "auto"


def test_use_backend_refused_changes_nothing(no_kernels):
    with pytest.raises(RuntimeError) as caught:
        use_backend("cpu")
    assert str(caught.value) == f"backend 'cpu' cannot run: {WHY_HIDDEN}"
    with pytest.raises(ValueError, match=f"backend must be one of 'auto', {NAMES}, got 'gpu'"):
        use_backend("gpu")
    assert current_backend() == "auto"


class Watched:
    """An extension that notes what it runs. What it declines, or leaves to a graph, it does not run."""

    def __init__(self, extension, names, calls):
        self.extension, self.names, self.calls = extension, names, calls

    def __getattr__(self, name):
        function = getattr(self.extension, name)

        def noted(*args):
            found = function(*args)
            if name in self.names and (isinstance(found, tuple) or not name.endswith("_of_tensors")):
                self.calls.append(name)
            return found

        return noted


@each_op
def test_the_choice_decides_what_runs(op, monkeypatch):
    calls = []
    monkeypatch.setattr(cpu, "extension", Watched(cpu.extension, ("flow_step", "forward_of_tensors"), calls))
    for choice, count in (("auto", 1), ("cpu", 1), ("reference", 0)):
        calls.clear()
        with use_backend(choice):
            CALLS[op](state())
        assert len(calls) == count, choice
        calls.clear()
        with use_backend("reference" if choice == "cpu" else "cpu"):
            CALLS[op](state(), backend=choice)
        assert len(calls) == count, f"argument {choice}"


REFUSALS = {"meta": (torch.float32, "meta", "it needs tensors on the CPU, got meta")}


@each_op
@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.parametrize("by", ["argument", "context"])
def test_an_explicit_choice_never_falls_back(op, case, by):
    dtype, device, reason = REFUSALS[case]
    x = state(dtype, device)

    def call():
        if by == "argument":
            return CALLS[op](x, backend="cpu")
        with use_backend("cpu"):
            return CALLS[op](x)

    with pytest.raises(RuntimeError) as caught:
        call()
    assert str(caught.value) == f"backend 'cpu' cannot run {op}: {reason}"


@each_op
def test_missing_kernels_are_an_error_only_where_chosen(op, no_kernels, log):
    with pytest.raises(RuntimeError) as caught:
        CALLS[op](state(), backend="cpu")
    assert str(caught.value) == f"backend 'cpu' cannot run {op}: {WHY_HIDDEN}"
    torch.testing.assert_close(CALLS[op](state()), CALLS[op](state(), backend="reference"), rtol=0, atol=0)
    (line,) = log()
    assert line.startswith(f"{op} (torch.float32 on cpu): backend reference (cpu: {WHY_HIDDEN}; cuda: ")


WITHOUT_EXTENSION = """
import sys, warnings
sys.modules["invflow._C"] = None  # importing it is an ImportError
import torch, invflow
step = invflow.FlowStep(2).eval()
x = torch.rand(1, 2, 8, 8)
compiled = torch.compile(step, fullgraph=True, backend="eager")
with warnings.catch_warnings():
    # torch's own warnings, such as that about guards under Python 3.13.0, are none of ours
    warnings.filterwarnings("error", message="invflow")
    with invflow.use_backend("reference"):
        step(x)
    invflow.channel_affine(x.to("meta"), torch.eye(2, device="meta"), torch.ones(2, device="meta"))
    compiled(x)
warnings.simplefilter("always")
for _ in range(3):
    step(x)
"""


def test_a_missing_extension_is_said_once_where_it_is_missed():
    done = run_python(WITHOUT_EXTENSION)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "RuntimeWarning: invflow" in line]
    reason = "the extension invflow._C could not be imported (import of invflow._C halted; None in sys.modules)"
    assert f"RuntimeWarning: invflow runs plain PyTorch, up to six times slower than its kernels: {reason}." in line
    assert f"It was imported from {Path(invflow.__file__).parents[1]}." in line
    assert "If that is a source tree, run pip install -e . there, or start Python in another folder" in line


@each_op
def test_can_run(op, no_kernels):
    assert can_run("reference", op, state())
    assert not can_run("cpu", op, state())
    with pytest.raises(RuntimeError, match="could not be imported"):
        can_run("cpu", op, state(), raise_error=True)


@each_op
@pytest.mark.parametrize("case", REFUSALS)
def test_can_run_says_why_not(op, case):
    dtype, device, reason = REFUSALS[case]
    assert can_run("cpu", op, state())
    assert can_run("reference", op, state(dtype, device))
    assert not can_run("cpu", op, state(dtype, device))
    with pytest.raises(RuntimeError, match=reason):
        can_run("cpu", op, state(dtype, device), raise_error=True)


@pytest.mark.parametrize("name", ["auto", "gpu"])
def test_can_run_asks_for_one_backend(name):
    with pytest.raises(ValueError, match=f"backend must be one of {NAMES}, got '{name}'"):
        can_run(name, "channel_affine", state())


def test_can_run_knows_the_operators():
    assert all(can_run("cpu", op, state()) for op in backends.OPERATORS)
    with pytest.raises(ValueError, match=r"op must be one of 'affine_coupling', .*, got 'conv2d'"):
        can_run("reference", "conv2d", state())


def test_the_choice_of_auto_is_logged_once(log):
    for _ in range(3):
        CALLS["affine_coupling"](state())
        CALLS["affine_coupling"](state(torch.float64, "meta"))
    on_cpu, on_meta = log()
    assert on_cpu == "affine_coupling (torch.float32 on cpu): backend cpu"
    refused = [f"{name}: {module.why_not('affine_coupling', state(device='meta'))}" for name, module in KERNELS.items()]
    assert refused[0] == "cpu: it needs tensors on the CPU, got meta"
    assert on_meta == f"affine_coupling (torch.float64 on meta): backend reference ({'; '.join(refused)})"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@each_op
def test_kernels_run_every_usual_dtype(op, dtype):
    assert can_run("cpu", op, state(dtype))
    assert CALLS[op](state(dtype), backend="cpu").dtype == dtype


def test_an_explicit_choice_is_not_logged(log):
    CALLS["channel_affine"](state(), backend="cpu")
    assert log() == []


@pytest.mark.parametrize("name", ["reference", "cpu", "auto", None])
def test_environment_variable(name):
    done = run_python("import invflow; print(invflow.current_backend())", INVFLOW_BACKEND=name)
    assert done.stdout.strip() == (name or "auto"), done.stderr


def test_environment_variable_with_another_name():
    done = run_python("import invflow", INVFLOW_BACKEND="fast")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ValueError: environment variable INVFLOW_BACKEND must be one of 'auto', {NAMES}, got 'fast'"
    )


IMPORT_IS_LIGHT = """
import sys, torch
before = set(sys.modules)
import invflow
import torch.cuda
assert not torch.cuda.is_initialized()
new = set(sys.modules) - before
heavy = ("sr_models", "triton", "torch._inductor", "torch._dynamo", "sympy", "lightning", "PIL", "matplotlib")
found = sorted(name for name in new if name.startswith(heavy))
assert not found, found
"""


def test_import_is_light_and_touches_no_gpu():
    done = run_python(IMPORT_IS_LIGHT)
    assert done.returncode == 0, done.stderr


ONE_OPENMP = """
import torch, invflow
assert invflow.can_run("cpu", "channel_affine", torch.ones(1, 1, 1, 1))
print(*{line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line or "iomp" in line or "libomp" in line})
"""


def test_kernels_share_the_openmp_of_torch():
    done = run_python(ONE_OPENMP)
    libraries = done.stdout.split()
    assert len(libraries) == 1, done.stdout + done.stderr
    assert "torch" in libraries[0]


def in_thread(function):
    """What the function returns in a new thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(30)


def test_a_call_holds_in_other_threads_and_a_block_does_not():
    restore = use_backend("reference")
    assert in_thread(current_backend) == "reference"
    restore.__exit__(None, None, None)
    with use_backend("reference"):
        assert in_thread(current_backend) == "auto"
        assert current_backend() == "reference"


def test_overlapping_blocks_of_two_threads_leave_nothing_behind():
    first_is_in, second_is_in, first_is_out = threading.Event(), threading.Event(), threading.Event()

    def first():
        with use_backend("reference"):
            first_is_in.set()
            assert second_is_in.wait(30)
            found = current_backend()
        first_is_out.set()
        return found, current_backend()

    def second():
        assert first_is_in.wait(30)
        with use_backend("cpu"):
            second_is_in.set()
            assert first_is_out.wait(30)
            found = current_backend()
        return found, current_backend()

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(function) for function in (first, second)]
        assert [result.result(60) for result in results] == [("reference", "auto"), ("cpu", "auto")]
    assert current_backend() == "auto"


def test_many_threads_each_see_their_own_choice():
    def worker(name):
        found = set()
        for _ in range(200):
            with use_backend(name):
                found.add(current_backend())
                time.sleep(0)
        return found, current_backend()

    names = ["reference", "cpu", "auto"] * 2
    with ThreadPoolExecutor(len(names)) as pool:
        assert list(pool.map(worker, names)) == [({name}, "auto") for name in names]
    assert current_backend() == "auto"


def generator(name):
    with use_backend(name):
        yield current_backend()
        yield current_backend()


def test_generators_that_end_in_another_order_leave_nothing_behind():
    first, second = generator("reference"), generator("cpu")
    assert next(first) == "reference"
    assert next(second) == "cpu"
    first.close()
    assert current_backend() == "cpu"
    second.close()
    assert current_backend() == "auto"


def test_a_generator_that_is_dropped_inside_a_block_leaves_the_block_alone():
    suspended = generator("reference")
    next(suspended)
    with use_backend("cpu"):
        del suspended
        assert current_backend() == "cpu"
    assert current_backend() == "auto"


def test_tasks_see_their_own_choice():
    async def task(name):
        with use_backend(name):
            await asyncio.sleep(0)
            inherited = await asyncio.gather(inner(), inner())
            return [current_backend(), *inherited]

    async def inner():
        await asyncio.sleep(0)
        return current_backend()

    async def main():
        return await asyncio.gather(task("reference"), task("cpu"), inner())

    assert asyncio.run(main()) == [["reference"] * 3, ["cpu"] * 3, "auto"]


def test_one_object_serves_several_blocks():
    block = use_backend("reference")
    for _ in range(2):
        with block, use_backend("cpu"), block:
            assert current_backend() == "reference"
        assert current_backend() == "auto"


def test_a_call_inside_a_block_ends_with_it():
    with use_backend("reference"):
        use_backend("cpu")
        assert current_backend() == "cpu"
        assert in_thread(current_backend) == "auto"
        with use_backend("reference"):
            use_backend("auto")
        assert current_backend() == "cpu"
    assert current_backend() == "auto"


def test_calls_are_undone_in_any_order():
    first, second = use_backend("reference"), use_backend("cpu")
    first.__exit__(None, None, None)
    assert current_backend() == "cpu"
    second.__exit__(None, None, None)
    assert current_backend() == "auto"


def test_a_call_stays_through_later_blocks():
    restore = use_backend("auto")
    use_backend("reference")
    with use_backend("cpu"):
        assert current_backend() == "cpu"
    assert current_backend() == in_thread(current_backend) == "reference"
    for _ in range(100):
        use_backend("auto")
    assert len(backends._calls) <= 2
    restore.__exit__(None, None, None)
    assert current_backend() == "auto"


@each_op
def test_a_backward_pass_runs_on_the_backend_of_its_forward_pass(op, monkeypatch):
    calls = []
    names = "flow_step_backward", "backward_of_tensors"
    monkeypatch.setattr(cpu, "extension", Watched(cpu.extension, names, calls))
    for forward, elsewhere, count in (("cpu", "reference", 1), ("reference", "cpu", 0)):
        calls.clear()
        with use_backend(forward):
            result = CALLS[op](state().requires_grad_())
        with use_backend(elsewhere):
            result.sum().backward()
        assert len(calls) == count, forward


class OfTheWorker(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return current_backend()


@pytest.mark.parametrize("chosen_by", ["call", "block"])
def test_workers_that_are_forked_inherit_the_choice(chosen_by):
    restore = use_backend("reference")
    if chosen_by == "block":
        restore.__enter__()
    loader = torch.utils.data.DataLoader(OfTheWorker(), num_workers=1, multiprocessing_context="fork")
    assert list(loader) == [["reference"]]
    restore.__exit__(None, None, None)


def operators_of(graphs):
    return [str(node.target) for graph in graphs for node in graph.graph.nodes if "flow_step" in str(node.target)]


def test_a_compiled_function_follows_the_choice():
    torch.compiler.reset()
    graphs = []
    matrix = torch.eye(2)
    compiled = torch.compile(
        lambda x: channel_affine(x, matrix, matrix[0]),
        fullgraph=True,
        backend=lambda graph, inputs: graphs.append(graph) or graph,
    )
    x = state()
    expected = compiled(x)
    assert len(operators_of(graphs)) == 1
    with use_backend("reference"):
        torch.testing.assert_close(compiled(x), expected)
    assert len(graphs) == 2
    assert len(operators_of(graphs)) == 1
    compiled(x)
    assert len(graphs) == 2


def test_a_block_inside_a_compiled_function():
    torch.compiler.reset()
    graphs = []
    matrix = torch.eye(2)

    def function(x):
        with use_backend("reference"):
            y = channel_affine(x, matrix, matrix[0])
        return channel_affine(y, matrix, matrix[0])

    compiled = torch.compile(function, fullgraph=True, backend=lambda graph, inputs: graphs.append(graph) or graph)
    torch.testing.assert_close(compiled(state()), function(state()))
    assert len(operators_of(graphs)) == 1
    assert current_backend() == "auto"


def test_a_compiled_function_follows_the_blocks_of_its_thread_and_task():
    """In any version of torch: that of 2.11 cannot trace ``ContextVar.get``."""
    torch.compiler.reset()
    names = []
    compiled = torch.compile(lambda x: x + ord(current_backend()[0]), fullgraph=True, backend="eager")
    zero = torch.zeros(())

    def follows(name):
        names.append(name)
        assert int(compiled(zero)) == ord(name[0]) == ord(current_backend()[0])

    async def task(name):
        with use_backend(name):
            for _ in range(3):
                await asyncio.sleep(0)
                follows(name)
        follows("auto")

    async def main():
        await asyncio.gather(task("reference"), task("cpu"), task("auto"))

    follows("auto")
    with use_backend("reference"):
        follows("reference")
        in_thread(lambda: follows("auto"))
        with use_backend("cpu"):
            follows("cpu")
        use_backend("cpu")
        follows("cpu")
    follows("auto")
    asyncio.run(main())
    assert len(names) == 18


def test_entering_a_block_again_compiles_nothing():
    torch.compiler.reset()
    graphs = []
    compiled = torch.compile(
        lambda x: x + ord(current_backend()[0]), backend=lambda graph, _: graphs.append(graph) or graph
    )
    for _ in range(3):
        compiled(torch.zeros(()))
        with use_backend("reference"):
            compiled(torch.zeros(()))
        in_thread(lambda: compiled(torch.zeros(())))
    assert len(graphs) == 2
