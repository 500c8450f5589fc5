"""The executor of PTX: instructions against their definition, and each error that it must notice in a kernel."""

from __future__ import annotations

import math
import struct

import pytest
import torch

from tests.emulator import build
from tests.emulator.ptx.module import KernelError, PtxError, PtxModule, ptx_module

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable()))

_HEADER = ".version 8.0\n.target sm_90\n.address_size 64\n"
_REGISTERS = ".reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<40>; .reg .b64 %d<20>;"
_THREAD_ADDRESS = """
    ld.param.u64 %d0, [x];
    ld.param.u64 %d1, [y];
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %d2, %r0, 4;
    add.s64 %d3, %d0, %d2;
    add.s64 %d4, %d1, %d2;
"""


def module_of(body: str, declarations: str = "") -> PtxModule:
    """A kernel ``k(x, y)``: %r0 is the thread, %d3 and %d4 are the addresses of its 4 bytes of x and y."""
    return ptx_module(
        f"{_HEADER}{declarations}\n.visible .entry k(.param .u64 x, .param .u64 y)\n"
        f"{{\n{_REGISTERS}\n{_THREAD_ADDRESS}\n{body}\nret;\n}}\n"
    )


def run(
    body: str, threads: int = 64, declarations: str = "", blocks: int = 1, shared: int = 0, **options: object
) -> torch.Tensor:
    x = torch.arange(threads, dtype=torch.float32)
    y = torch.full((threads,), math.nan)
    module_of(body, declarations).launch("k", (blocks,), (threads,), shared, [x, y], **options)
    return y


def f32(value: float) -> int:
    return struct.unpack("<I", struct.pack("<f", value))[0]


def f16(value: float) -> int:
    return struct.unpack("<H", struct.pack("<e", value))[0]


# The instructions leave their result in %r1; expected bits from the PTX manual's definitions.
_INSTRUCTIONS = [
    ("prmt.b32 %r1, 0x33221100, 0x77665544, 0x7531;", 0x77553311),
    ("prmt.b32 %r1, 0x000080ff, 0, 0x0098;", 0xFFFFFFFF),
    ("lop3.b32 %r1, 0xf0f0f0f0, 0xcccccccc, 0xaaaaaaaa, 0x96;", 0xF0F0F0F0 ^ 0xCCCCCCCC ^ 0xAAAAAAAA),
    ("shf.l.wrap.b32 %r1, 0x80000001, 0x00000003, 36;", 0x38),
    ("shf.r.clamp.b32 %r1, 0x80000001, 0x00000003, 36;", 0x3),
    ("bfe.u32 %r1, 0xabcd1234, 8, 8;", 0x12),
    ("bfe.s32 %r1, 0x0000f000, 12, 4;", 0xFFFFFFFF),
    ("bfi.b32 %r1, 0xff, 0, 8, 4;", 0xF00),
    ("bfind.u32 %r1, 0x00010000;", 16),
    ("bfind.shiftamt.u32 %r1, 0x00010000;", 15),
    ("clz.b32 %r1, 0x00010000;", 15),
    ("popc.b32 %r1, 0xf0f0;", 8),
    ("brev.b32 %r1, 1;", 0x80000000),
    ("add.cc.u32 %r2, 0xffffffff, 1; addc.u32 %r1, 5, 6;", 12),
    ("sub.cc.u32 %r2, 0, 1; subc.u32 %r1, 9, 2;", 6),
    ("mad.lo.cc.u32 %r2, 0x10000, 0x10000, 0; madc.hi.u32 %r1, 0x10000, 0x10000, 0;", 1),
    ("mad.lo.cc.u32 %r2, 3, 5, 0xfffffff1; addc.u32 %r1, 0, 0;", 1),
    ("mul.hi.s32 %r1, -2, 3;", 0xFFFFFFFF),
    ("mul.hi.u32 %r1, -2, 3;", 2),
    ("mad.lo.s32 %r1, -2, 3, 10;", 4),
    ("div.s32 %r1, -7, 2;", 0xFFFFFFFD),
    ("rem.s32 %r1, -7, 2;", 0xFFFFFFFF),
    ("shr.s32 %r1, -8, 40;", 0xFFFFFFFF),
    ("shl.b32 %r1, 1, 32;", 0),
    ("min.s32 %r1, -1, 1;", 0xFFFFFFFF),
    ("min.u32 %r1, -1, 1;", 1),
    ("abs.s32 %r1, -5;", 5),
    ("sub.s32 %r1, 3, 5;", 0xFFFFFFFE),
    ("cvt.s32.s8 %r1, 0x80;", 0xFFFFFF80),
    ("cvt.sat.u8.s32 %r1, -4;", 0),
    ("cvt.rni.s32.f32 %r1, 0f40200000;", 2),  # 2.5, to even
    ("cvt.rpi.s32.f32 %r1, 0f40200000;", 3),
    ("cvt.rzi.u32.f32 %r1, 0fBF800000;", 0),  # -1 saturates
    ("cvt.rzi.s32.f32 %r1, 0f7FC00000;", 0),  # NaN
    ("cvt.rn.f32.s32 %r1, -16777217;", f32(-16777216.0)),
    ("cvt.rz.f32.s32 %r1, 33554431;", f32(33554430.0)),
    ("cvt.rna.tf32.f32 %r1, 0f3F801000;", 0x3F802000),  # a tie, away from zero
    ("cvt.rn.f16x2.f32 %r1, 0f3F800000, 0f40000000;", f16(1.0) << 16 | f16(2.0)),
    ("cvt.rn.bf16x2.f32 %r1, 0f3F808000, 0f3F818000;", 0x3F803F82),  # ties to even
    ("fma.rn.f32 %r1, 0f3F800001, 0f3F800001, 0fBF800002;", f32(2.0**-46)),  # not rounded in between
    ("add.rm.f32 %r1, 0f3F800000, 0f00000001;", f32(1.0)),
    ("add.rp.f32 %r1, 0f3F800000, 0f00000001;", 0x3F800001),
    ("add.rz.f32 %r1, 0fBF800000, 0f30000000;", 0xBF7FFFFF),
    ("mul.ftz.f32 %r1, 0f00800000, 0f3F000000;", 0),
    ("mul.f32 %r1, 0f00800000, 0f3F000000;", 0x00400000),
    ("add.sat.f32 %r1, 0f3F800000, 0f3F800000;", f32(1.0)),
    ("max.f32 %r1, 0f7FC00000, 0f3F800000;", f32(1.0)),
    ("max.NaN.f32 %r1, 0f7FC00000, 0f3F800000;", 0x7FC00000),
    ("min.f32 %r1, 0f00000000, 0f80000000;", 0x80000000),
    ("copysign.f32 %r1, 0f80000000, 0f3F800000;", 0xBF800000),
    ("fma.rn.f16x2 %r1, 0x3C004000, 0x40004200, 0x3C003C00;", f16(1.0 * 2 + 1) << 16 | f16(2.0 * 3 + 1)),
    ("set.lt.u32.f32 %r1, 0f3F800000, 0f40000000;", 0xFFFFFFFF),
    ("setp.ne.f32 %p1, 0f7FC00000, 0f3F800000; selp.u32 %r1, 1, 0, %p1;", 0),  # ordered: false for NaN
    ("setp.neu.f32 %p1, 0f7FC00000, 0f3F800000; selp.u32 %r1, 1, 0, %p1;", 1),
    ("setp.lt.s32 %p1|%p2, -1, 0; selp.u32 %r1, 1, 0, %p2;", 0),
    ("setp.gt.u32 %p1, 2, 1; setp.lt.and.u32 %p2, 2, 1, %p1; selp.u32 %r1, 1, 0, %p2;", 0),
    ("mov.b64 %d5, {1, 7}; mov.b64 {%r2, %r1}, %d5;", 7),
    ("setp.ne.u32 %p1, 0, 0; mov.u32 %r2, 5; @!%p1 mov.u32 %r2, 6; mov.u32 %r1, %r2;", 6),
    ("{ .reg .b32 low; mov.u32 low, 3; { .reg .b32 low; mov.u32 low, 4; } mov.u32 %r1, low; }", 3),
]


def test_instructions_give_the_bits_of_their_definition() -> None:
    stores = "\n".join(
        f"{text} st.global.u32 [%d1 + {4 * number}], %r1;" for number, (text, _) in enumerate(_INSTRUCTIONS)
    )
    y = torch.zeros(len(_INSTRUCTIONS), dtype=torch.int32)
    module_of(stores).launch("k", (1,), (1,), 0, [None, y])
    got = [int(value) & 0xFFFFFFFF for value in y]
    wrong = [
        f"{text} {value:#x} instead of {expected:#x}"
        for (text, expected), value in zip(_INSTRUCTIONS, got, strict=True)
        if value != expected
    ]
    assert not wrong


@pytest.mark.parametrize("name", ["ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh"])
def test_approximations_are_close_and_can_be_at_their_worst(name: str) -> None:
    functions = {"ex2": torch.exp2, "lg2": torch.log2, "rcp": torch.reciprocal}
    body = f"ld.global.f32 %r1, [%d3]; {name}.approx.f32 %r2, %r1; st.global.f32 [%d4], %r2;"
    x = torch.linspace(0.1, 3, 64)
    exact = functions.get(name, getattr(torch, name, None))(x.double())
    module = module_of(body)
    errors = []
    for worst in (False, True):
        y = torch.full_like(x, math.nan)
        module.launch("k", (1,), (64,), 0, [x, y], worst_approximations=worst)
        errors.append((y - exact).abs().max().item())
    bound = 2.0**-10 if name == "tanh" else 1e-5
    assert errors[0] < 1e-6 < bound
    assert errors[0] < errors[1] < bound


def test_threads_of_a_block_exchange_through_shared_memory() -> None:
    body = """
        mov.u32 %r9, buffer;
        shl.b32 %r1, %r0, 2; add.u32 %r1, %r9, %r1;
        ld.global.u32 %r2, [%d3]; st.shared.u32 [%r1], %r2;
        bar.sync 0;
        xor.b32 %r3, %r0, 63; shl.b32 %r3, %r3, 2; add.u32 %r3, %r9, %r3;
        ld.shared.u32 %r4, [%r3]; st.global.u32 [%d4], %r4;
    """
    shared = ".extern .shared .align 16 .b8 buffer[];"
    for order in ("ascending", "descending", "random"):
        y = run(body, declarations=shared, shared=256, order=order, check_races=True)
        assert torch.equal(y, torch.arange(64.0).flip(0))
    with pytest.raises(KernelError, match=r"race in shared memory: a (read|write) without order against the"):
        run(body.replace("bar.sync 0;", ""), declarations=shared, shared=256, order="descending", check_races=True)
    with pytest.raises(KernelError, match=r"shared address 252, outside the shared memory of the block \(0 to 252\)"):
        run(body, declarations=shared, shared=252)


def test_what_is_not_understood_is_an_error_that_names_the_line() -> None:
    for instruction, reason in (
        ("frobnicate.u32 %r1, %r0;", "unknown opcode frobnicate"),
        ("mad24.lo.sat.u32 %r1, %r0, 1, 2;", "unknown opcode mad24"),
        ("cvt.rn.satfinite.f32.f32 %r1, %r0;", "unknown modifier .satfinite"),
        ("mov.u32 %r1, %clock_hi;", "unknown operand %clock_hi"),
        ("add.s32 %r1, %r0, %q7;", "unknown operand %q7"),
    ):
        with pytest.raises(PtxError, match=rf"line \d+: cannot translate `.*{reason}"):
            module_of(instruction)


def test_an_access_outside_the_buffers_is_an_error() -> None:
    with pytest.raises(KernelError, match=r"store of 4 bytes at .* offset 256 .* 256 bytes .*thread 63 of"):
        run("st.global.u32 [%d4 + 4], %r0;")
    with pytest.raises(KernelError, match="load of 4 bytes at global address"):
        run("mov.u64 %d5, 0; ld.global.u32 %r1, [%d5];")
    with pytest.raises(KernelError, match="at constant address"):
        run("mov.u64 %d5, table; st.global.u32 [%d5], %r0;", declarations=".const .align 4 .b32 table[2] = {1, 2};")
    # static and dynamic shared memory do not touch
    body = ".shared .align 4 .b8 fixed[16];\nmov.u32 %r1, fixed; ld.shared.u32 %r2, [%r1 + 16];"
    with pytest.raises(KernelError, match=r"shared address 16, outside .*\(0 to 16, 256 to 320\)"):
        run(body, shared=64, declarations=".extern .shared .align 16 .b8 buffer[];")


def test_a_misaligned_access_is_an_error() -> None:
    with pytest.raises(KernelError, match=r"misaligned load of 4 bytes (.|\n)*ld.global.u32 %r1, \[%d3 \+ 2\]"):
        run("ld.global.u32 %r1, [%d3 + 2];")
    with pytest.raises(KernelError, match="misaligned store of 16 bytes at shared"):
        run(".shared .align 16 .b8 s[64];\nst.shared.v4.u32 [s + 8], {%r0, %r0, %r0, %r0};", threads=1)


def test_barriers_that_not_all_threads_reach_are_errors() -> None:
    split = "setp.lt.u32 %p1, %r0, 32; @%p1 bra low;\n"
    with pytest.raises(KernelError, match="divergent barrier in block"):
        run(f"{split}bar.sync 0; bra done;\nlow:\nbar.sync 0;\ndone:")
    with pytest.raises(KernelError, match="a thread exited before a barrier that others wait at"):
        run("setp.lt.u32 %p1, %r0, 7;\n@%p1 ret;\nbar.sync 0;")
    with pytest.raises(KernelError, match="lane 0 is not in its own mask"):
        run("bar.warp.sync 0xfffffffe;")
    with pytest.raises(KernelError, match="names a lane that has exited"):
        run("setp.eq.u32 %p1, %r0, 7;\n@%p1 ret;\nshfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;")
    with pytest.raises(KernelError, match="lanes of one mask are in different warp operations"):
        run("setp.eq.u32 %p1, %r0, 7;\n@%p1 bar.warp.sync -1;\n@!%p1 shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;")
    with pytest.raises(KernelError, match=r"shfl\.sync reads lane 16, which is not in the mask"):
        run("setp.gt.u32 %p1, %r0, 15;\n@%p1 ret;\nshfl.sync.down.b32 %r1, %r0, 1, 31, 0xffff;", threads=32)


def test_a_named_barrier_holds_the_threads_it_counts() -> None:
    body = """
        .shared .align 4 .b8 s[256];
        setp.lt.u32 %p1, %r0, 64; @%p1 bra low; bra done;
        low: shl.b32 %r1, %r0, 2; mov.u32 %r9, s; add.u32 %r1, %r1, %r9; st.shared.u32 [%r1], %r0;
        bar.sync 1, 64;
        xor.b32 %r2, %r1, 252; ld.shared.u32 %r3, [%r2]; st.global.u32 [%d4], %r3;
        done: bar.sync 0;
    """
    y = run(body, threads=128, check_races=True)
    assert torch.equal(y.view(torch.int32)[:64], torch.arange(64, dtype=torch.int32).flip(0))


def test_races_between_blocks_and_within_a_warp_are_found() -> None:
    with pytest.raises(KernelError, match="race in global memory: a write without order against the write"):
        run("st.global.u32 [%d1], %r0;", check_races=True)
    with pytest.raises(KernelError, match="race in global memory"):
        run("mov.u32 %r1, %ctaid.x; st.global.u32 [%d4], %r1;", blocks=2, check_races=True)
    run("st.global.u32 [%d1], 7;", blocks=2, check_races=True)  # the same value from all
    run("red.global.add.u32 [%d1], 1;", blocks=2, check_races=True)
    exchange = """
        st.global.u32 [%d4], %r0;
        {}
        xor.b32 %r1, %r0, 1; mul.wide.u32 %d5, %r1, 4; add.s64 %d6, %d1, %d5;
        ld.global.u32 %r2, [%d6];
    """
    run(exchange.format("bar.warp.sync -1;"), check_races=True)
    with pytest.raises(KernelError, match=r"race in global memory: a (read|write) without order"):
        run(exchange.format("shfl.sync.bfly.b32 %r7, %r0, 1, 31, -1;"), check_races=True)


def test_a_copy_lands_only_when_waited_for() -> None:
    body = """
        .shared .align 16 .b8 s[256];
        shl.b32 %r1, %r0, 2; mov.u32 %r9, s; add.u32 %r1, %r1, %r9;
        cp.async.ca.shared.global [%r1], [%d3], 4, {};
        cp.async.commit_group;
        cp.async.wait_group {};
        ld.shared.u32 %r2, [%r1]; st.global.u32 [%d4], %r2;
    """
    assert torch.equal(run(body.format(4, 0)), torch.arange(64.0))
    assert torch.equal(run(body.format(0, 0)), torch.zeros(64))  # filled with zeros
    assert run(body.format(4, 1)).isnan().all()  # the poison of shared memory


def test_a_trace_counts_sectors_bank_conflicts_and_instructions() -> None:
    body = """
        .shared .align 16 .b8 s[8192];
        shl.b32 %r1, %r0, {}; mov.u32 %r9, s; add.u32 %r1, %r1, %r9;
        st.shared.u32 [%r1], %r0;
        st.global.u32 [%d4], %r0;
    """
    x, y = torch.zeros(64), torch.empty(128)[8:72]  # y need not begin at a sector
    conflicts = {}
    for shift in (2, 3, 7):
        trace = module_of(body.format(shift)).launch("k", (1,), (64,), 0, [x, y], trace=True)
        shared, memory = trace.memory
        assert (shared.space, shared.kind, shared.bytes, shared.requests, shared.lanes) == ("shared", "store", 4, 2, 64)
        conflicts[shift] = shared.wavefronts / shared.fewest_wavefronts
        assert (memory.space, memory.fewest_sectors) == ("global", 8)
        assert 8 <= memory.sectors <= 10
        assert trace.instructions["memory"] == 128
    assert conflicts == {2: 1, 3: 2, 7: 32}


def test_arguments_that_do_not_fit_are_refused() -> None:
    module = module_of("")
    x = torch.zeros(4)
    for arguments, error, reason in (
        ([x], ValueError, "arguments: 1 for k, which takes 2"),
        ([x, 1.5], TypeError, r"arguments\[1\]: a float for a parameter of type .u64"),
        ([x, "x"], TypeError, r"arguments\[1\]: str for a parameter"),
    ):
        with pytest.raises(error, match=reason):
            module.launch("k", (1,), (1,), 0, arguments)
    with pytest.raises(ValueError, match="the PTX has no kernel 'other'; it has k"):
        module.launch("other", (1,), (1,), 0, [x, x])
    with pytest.raises(KernelError, match="invalid launch"):
        module.launch("k", (1,), (2048,), 0, [x, x])
    with pytest.raises(ValueError, match="0 static and 300000 dynamic bytes exceed"):
        module.launch("k", (1,), (1,), 300000, [x, x])


def test_barriers_of_some_threads_confuse_nobody_else() -> None:
    """Threads that pass named barriers alone are still ordered against the others by the barrier of the block."""
    body = """
        .shared .align 4 .b8 s[512];
        setp.lt.u32 %p1, %r0, 64;
        @!%p1 bra all;
        bar.sync 1, 64; bar.sync 1, 64;
        all: bar.sync 0;
        shl.b32 %r1, %r0, 2; mov.u32 %r9, s; add.u32 %r1, %r1, %r9; st.shared.u32 [%r1], %r0;
        {}
        xor.b32 %r2, %r1, 508; ld.shared.u32 %r3, [%r2]; st.global.u32 [%d4], %r3;
    """
    y = run(body.format("bar.sync 0;"), threads=128, check_races=True)
    assert torch.equal(y.view(torch.int32), torch.arange(128, dtype=torch.int32).flip(0))
    with pytest.raises(KernelError, match="race in shared memory"):
        run(body.format(""), threads=128, check_races=True)
