"""The report on compiled Triton kernels: what it reads, what it refuses, what it predicts."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from processes import run_python

from tests.gates.compile_report.__main__ import main

triton = pytest.importorskip("triton")

from invflow.backends.triton import operators, tuning  # noqa: E402
from tests.gates.compile_report import compilations, instances, predict  # noqa: E402
from tests.gates.compile_report.compiling import (  # noqa: E402
    TARGETS,
    Facts,
    _widest_load_of_amdgcn,
    _widest_load_of_ptx,
    compile_for,
    facts_of,
    source_of,
)

ROOT = Path(__file__).parents[2]
SHAPE = (16, 12, 80, 80)
FINE = Facts(registers=96, spills=0, scalar_spills=0, shared=4096, widest_load=128, seconds=1.0)


def affine(x: torch.Tensor) -> instances.Instance:
    """The launch for a channel map of x."""
    matrix = torch.empty(12, 12, device="meta")
    return instances.recorded("test", lambda: operators.flow_step(x, matrix, matrix[0], operators.Step()))[0]


def compiled(instance: instances.Instance, target: str, config=None):
    config = config or compilations.configurations_of(instance, target)[0]
    source = source_of(instance.kernel, instance.arguments, config, TARGETS[target])
    return compile_for(instance.kernel, source, TARGETS[target])


def row(facts: Facts, target: str = "sm_80", contiguous_float32: bool = True) -> compilations.Row:
    return compilations.Row("a_kernel", "an instance", target, "32 pixels, 4 warps", contiguous_float32, facts)


def test_every_kernel_is_compiled_in_every_dtype_and_form():
    found = instances.instances()
    for kernel in tuning.CONFIGS:
        named = [instance.name for instance in found if instance.kernel is kernel]
        for word in ("float32", "float64", "float16", "bfloat16", ", exp", ", bounded_exp"):
            assert any(name.endswith(word) for name in named), (kernel.__name__, word)


def test_kernels_are_compiled_as_they_are_launched():
    instance = affine(torch.empty(SHAPE, device="meta"))
    (config, *_) = compilations.configurations_of(instance, "sm_80")
    source = source_of(instance.kernel, instance.arguments, config, TARGETS["sm_80"])
    constants = {instance.kernel.arg_names[place]: value for (place,), value in source.constants.items()}
    # strides of one and tensors that are not there are constants, for loads of 128 bits and no code that is never run
    assert constants["x_p"] == constants["y_p"] == constants["m_i"] == 1
    assert constants["coupling_ptr"] is None
    assert constants["C"] == 12
    assert source.signature["x_c"] == "i64"
    (place,) = (place for place, name in enumerate(instance.kernel.arg_names) if name == "x_ptr")
    assert source.attributes[(place,)] == [["tt.divisibility", 16]]


def test_spills_are_those_of_ptxas(tmp_path):
    # 64 pixels a thread of 12 channels are more than the 255 registers that it can have
    instance = affine(torch.empty(SHAPE, device="meta"))
    kernel, seconds = compiled(instance, "sm_80", triton.Config({"BLOCK": 2048}, num_warps=1))
    facts = facts_of(kernel, seconds)
    path = tmp_path / "kernel.ptx"
    path.write_text(kernel.asm["ptx"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    command = [tool, "-v", "--gpu-name=sm_80", path, "-o", tmp_path / "kernel.cubin"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    frame, stores, loads = map(int, re.search(r"(\d+) bytes stack.* (\d+) bytes.* (\d+) bytes", printed).groups())
    assert facts.spills == frame > 0
    assert min(stores, loads) > 0
    assert facts.registers == int(re.search(r"Used (\d+) registers", printed)[1])
    assert any("spills" in violation for violation in compilations.violations(row(facts)))


def test_spills_on_amd():
    instance = affine(torch.empty(SHAPE, device="meta"))
    facts = facts_of(*compiled(instance, "gfx942", triton.Config({"BLOCK": 4096}, num_warps=1)))
    assert facts.spills > 0
    assert any("spills" in violation for violation in compilations.violations(row(facts, "gfx942")))


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_strided_pixels_load_narrowly(target):
    x = torch.empty(16, 12, 80, 160, device="meta")
    narrow = facts_of(*compiled(affine(x[..., ::2]), target))
    wide = facts_of(*compiled(affine(x[..., :80].contiguous()), target))
    assert (narrow.widest_load, wide.widest_load) == (32, 128)
    assert not compilations.violations(row(wide, target))
    (violation,) = compilations.violations(row(narrow, target))
    assert (
        violation == f"a_kernel (an instance; 32 pixels, 4 warps) for {target} loads at most 32 bits at once, not 128"
    )
    assert not compilations.violations(row(narrow, target, contiguous_float32=False))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (FINE._replace(shared=66000), "needs 66000 bytes of shared memory, gfx942 has 65536"),
        (FINE._replace(seconds=10.5), "took 10.5 s to compile"),
        (FINE._replace(spills=8), "spills 8 bytes a thread"),
    ],
)
def test_violations_say_what_is_wrong(facts, words):
    (violation,) = compilations.violations(row(facts, "gfx942"))
    assert words in violation
    assert not compilations.violations(row(FINE, "gfx942"))


def test_a_launch_without_a_configuration_is_an_error(monkeypatch):
    monkeypatch.setattr(tuning, "fitting", lambda *arguments: [])
    with pytest.raises(ValueError, match=r"^no configuration of flow_step_fwd_kernel fits test on sm_80$"):
        compilations.configurations_of(affine(torch.empty(SHAPE, device="meta")), "sm_80")


@pytest.mark.parametrize(
    ("instructions", "bits"),
    [
        ("ld.shared.v4.b32 {%r1}, [%r2];", 0),
        ("@%p1 ld.global.b16 {%rs1}, [%rd1];", 16),
        ("ld.global.b32 {%r1}, [%rd1];\n@%p1 ld.global.v2.b32 {%r1, %r2}, [%rd2];", 64),
        ("ld.global.L1::evict_last.v2.b64 {%rd1, %rd2}, [%rd3];", 128),
        ("cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;", 128),
        ("st.global.v4.b32 [%rd1], {%r1};", 0),
    ],
)
def test_loads_of_ptx(instructions, bits):
    assert _widest_load_of_ptx(instructions) == bits


@pytest.mark.parametrize(
    ("instructions", "bits"),
    [
        ("s_load_dwordx8 s[0:7], s[0:1], 0x0", 0),
        ("global_load_ushort v1, v[2:3], off", 16),
        ("global_load_dwordx4 v[0:3], v[4:5], off", 128),
        ("buffer_load_dword v1, v2, s[0:3], 0 offen\nglobal_load_dwordx4 v[0:3], v[4:5], off", 32),
        ("buffer_load_dwordx4 v[0:3], v4, s[0:3], 0 offen", 128),
    ],
)
def test_loads_of_amdgcn(instructions, bits):
    assert _widest_load_of_amdgcn(instructions) == bits


def test_work_is_the_floor_of_the_kernel():
    (instance,) = instances.flow_step(SHAPE, False, injector=False)
    work = predict.work_of(instance, compilations.configurations_of(instance, "sm_80")[0])
    elements = 16 * 12 * 80 * 80
    parts = 16 * (80 * 80 // tuning.GRAIN_OF_ROWS)
    # state in and out, h of half of the channels, matrix, shift and parts of log_det
    assert work.bytes == 4 * (3 * elements + 12 * 12 + 12 + parts)
    assert work.flops == 2 * 12 * elements + elements // 2 * 64
    assert work.programs == 16 * -(-80 * 80 // 512)


def test_operands_of_the_gradient_of_the_matrix_are_read_once_a_tile():
    *_, instance = instances.flow_step_backward((16, 192, 20, 20), False, injector=False)
    assert instance.kernel.__name__ == "matrix_gradient_kernel"
    arguments = instance.arguments
    state = 16 * 192 * 20 * 20 * 4
    parts = 4 * (arguments["grad_matrix_ptr"].numel() + arguments["grad_shift_ptr"].numel())
    tiles = 192 // arguments["BLOCK_C"]
    assert tiles > 1
    # the gradient for every tile of columns; state and h for every tile of rows
    work = predict.work_of(instance, compilations.configurations_of(instance, "sm_80")[0])
    assert work.bytes == tiles * 3 * state + parts


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "occupancy"),
    [
        (32, 0, 4, 1.0),
        (128, 0, 4, 0.25),
        (129, 0, 4, 3 * 128 / 2048),  # a warp's registers are given out by 256
        (32, 54 << 10, 4, 2 * 128 / 2048),  # and every block needs another kibibyte
        (16, 0, 1, 0.5),  # 32 blocks
    ],
)
def test_occupancy(registers, shared, warps, occupancy):
    facts = FINE._replace(registers=registers, shared=shared)
    assert predict.occupancy_of(facts, warps, predict.CHIPS["A100"]) == occupancy


def test_predictions_name_what_bounds_them():
    chip = predict.CHIPS["A100"]
    memory = predict.predict(predict.Work(1 << 30, 1, 1, 10800), FINE, 4, chip)
    assert memory.bound == "memory"
    assert memory.seconds == pytest.approx((1 << 30) / (0.85 * 2039e9) + 3e-6)
    # one program on a processor of 108: all of its time at the speed of one multiprocessor
    arithmetic = predict.predict(predict.Work(1, 10**9, 1, 1), FINE, 4, chip)
    assert arithmetic.bound == "arithmetic"
    assert arithmetic.seconds == pytest.approx(1e9 / (2 * 64 * 1.41e9) + 3e-6)
    assert predict.predict(predict.Work(1, 1, 10**9, 1), FINE, 4, chip).bound == "issue"


def test_command_writes_what_it_prints(tmp_path, capsys):
    path = tmp_path / "kernels.json"
    arguments = ["--kernels", "affine_coupling_bwd_kernel", "--targets", "sm_90", "--check", "--json", str(path)]
    assert main(arguments) == 0
    header, *lines, last = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["kernel", "instance", "target", "configuration", "registers"]
    record = json.loads(path.read_text())
    assert record["triton"] == triton.__version__
    assert len(record["kernels"]) == len(lines)
    assert last == f"{len(lines)} compiled, 0 violations"
    assert {kernel["kernel"] for kernel in record["kernels"]} == {"affine_coupling_bwd_kernel"}
    assert list(tmp_path.iterdir()) == [path]


def test_quick_compiles_for_another_target_what_is_short_of_registers_on_the_first(monkeypatch):
    def facts_of_jobs(jobs, processes):
        for source, _ in jobs:
            yield FINE._replace(registers=193 if source.options["num_warps"] == 8 else 192)

    monkeypatch.setattr(compilations, "facts_of_jobs", facts_of_jobs)
    launch = [affine(torch.empty(SHAPE, device="meta"))]
    arguments = launch, ["sm_80", "gfx942", "sm_90"], 1, lambda done, total: None
    everything, quick = compilations.rows(*arguments), compilations.rows_that_may_differ(*arguments)
    assert {row.target for row in everything} == {"sm_80", "gfx942", "sm_90"}
    expected = [row for row in everything if row.target != "sm_90" or row.facts.registers == 193]
    assert 0 < len(expected) < len(everything)
    assert sorted(quick) == sorted(expected)


def test_check_fails_on_a_violation(monkeypatch, capsys):
    monkeypatch.setattr(compilations, "rows", lambda *arguments: [row(FINE), row(FINE._replace(spills=8))])
    assert main([]) == 0
    assert main(["--check"]) == 1
    *_, violation, last = capsys.readouterr().out.splitlines()
    assert violation == "a_kernel (an instance; 32 pixels, 4 warps) for sm_80 spills 8 bytes a thread"
    assert last == "2 compiled, 1 violation"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets", "sm_80,sm_1"], "--targets must be among sm_75,sm_80,sm_90,sm_100,gfx942, got sm_1"),
        (["--kernels", "a_kernel"], "--kernels must be among affine_coupling_fwd_kernel"),
        (["--json", "no_such_folder/a.json"], "folder of --json no_such_folder/a.json does not exist"),
        (["--markdown", "no_such_folder/a.md"], "folder of --markdown no_such_folder/a.md does not exist"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"compile_report: {message}")
    assert printed.count("\n") == 1


def test_the_interpreter_compiles_nothing():
    code = "import sys; from tests.gates.compile_report.__main__ import main; sys.exit(main(['--check']))"
    result = run_python(code, cwd=ROOT, TRITON_INTERPRET="1")
    assert result.returncode == 2
    assert result.stderr == (
        "compile_report: TRITON_INTERPRET is set, so that kernels are interpreted and not compiled: unset it\n"
    )


def test_page_has_both_tables(tmp_path, monkeypatch):
    instance = instances.flow_step(SHAPE, False, injector=False)[0]
    config = compilations.configurations_of(instance, "sm_80")[0]
    work = predict.work_of(instance, config)
    predictions = {name: predict.predict(work, FINE, config.num_warps, chip) for name, chip in predict.CHIPS.items()}
    monkeypatch.setattr(
        compilations, "rows", lambda *arguments: [row(FINE), row(FINE._replace(registers=80), "gfx942")]
    )
    monkeypatch.setattr(
        predict, "predicted", lambda processes: [predict.Predicted(instance, config, work, predictions)]
    )
    path = tmp_path / "triton.md"
    assert main(["--markdown", str(path)]) == 0
    compiled_table, predicted_table = path.read_text().split("## Predicted, not run")
    assert "| `a_kernel` | an instance | 1 | 96, 4 KiB | 80, 4 KiB | 0 | 128 | 1.0 |" in compiled_table
    assert f"{work.bytes / 1e6:.1f} | {work.flops / 1e6:.0f} | 12 (memory, 31%)" in predicted_table
