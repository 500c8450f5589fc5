"""Kernels of ``flow_step`` for many channels: matrix products of tiles.

A program owns ``BLOCK_P`` pixels of one sample and ``BLOCK_C`` channels of the result. The product runs over the
channels that the matrix sums in tiles of ``BLOCK_K``, so that few operands are in registers at a time. The floor of the
forward kernel is to read x and h, write y, and C^2 multiply-adds a pixel, if one tile holds all channels. Each further
tile reads x and the coupling's h again.

The gradients take two kernels. The first runs only if an injector follows the channel map. It computes M x + v again,
and the gradients of the injector. The second multiplies by the transposed matrix and goes back through the maps before.
"""

import triton
import triton.language as tl

from invflow.backends.triton.kernels.elementwise import (
    gradients,
    gradients_before_matrix,
    load_shift_and_raw,
    store_part,
    store_shift_and_raw,
    transform,
    transform_before_matrix,
)

#: Products that are added one after the other; sums of so many are then added.
_SUMMED = tl.constexpr(128)


@triton.jit
def _place(pixels, BLOCK_P: tl.constexpr):
    """Sample and pixels (1, BLOCK_P) of this program."""
    blocks = tl.cdiv(pixels, BLOCK_P)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    return sample, p[None, :]


@triton.jit
def _affine_map(
    x_ptr, x_c, x_p, matrix_ptr, m_o, m_i, shift_ptr, coupling_ptr, c_c, c_p, injector_ptr, i_c, i_p, p, pixels, o,
    C: tl.constexpr, START: tl.constexpr, COUNT: tl.constexpr,
    COUPLING: tl.constexpr, INJECTOR: tl.constexpr, INVERSE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """M z + v for channels o (BLOCK_C, 1) and pixels p (1, BLOCK_P), where z is x after the maps before the matrix.

    The second result is the log_det of these maps (BLOCK_K, BLOCK_P), summed over tiles of channels.
    """
    dtype = matrix_ptr.dtype.element_ty
    y = tl.zeros((BLOCK_C, BLOCK_P), dtype)
    if shift_ptr is not None:
        y += tl.load(shift_ptr + o, mask=o < C, other=0.0)
    log_det = tl.zeros((BLOCK_K, BLOCK_P), dtype)
    # tl.dot adds number by number, so that its roundings grow with the length of a sum
    for group in tl.static_range(0, C, _SUMMED):
        products = tl.zeros((BLOCK_C, BLOCK_P), dtype)
        for first in range(group, min(group + _SUMMED, C), BLOCK_K):
            k = first + tl.arange(0, BLOCK_K).to(tl.int64)
            c = k[:, None]
            inside = (c < C) & (p < pixels)
            x = tl.load(x_ptr + c * x_c + p * x_p, mask=inside, other=0.0).to(dtype)  # (BLOCK_K, BLOCK_P)
            z, part = transform_before_matrix(
                x, coupling_ptr, c_c, c - START, p * c_p, inside & (c >= START) & (c < START + COUNT),
                injector_ptr, i_c, c, p * i_p, inside, COUNT, C, COUPLING, INJECTOR, INVERSE,
            )  # fmt: skip
            log_det += part
            # a pixel or channel that does not exist is no longer zero after a map
            m = tl.load(matrix_ptr + o * m_o + k[None, :] * m_i, mask=(o < C) & (k[None, :] < C), other=0.0)
            products = tl.dot(m, tl.where(inside, z, 0.0), products, input_precision=PRECISION, out_dtype=dtype)
        y += products
    return y, log_det


@triton.jit
def flow_step_tiled_fwd_kernel(
    x_ptr,  # state (B, C, P)
    x_b,  # its strides: samples, channels, pixels
    x_c,
    x_p,
    matrix_ptr,  # M (C, C); its dtype is that of all arithmetic
    m_o,  # its strides: rows, columns
    m_i,
    shift_ptr,  # v (C,), contiguous, or None for zero
    coupling_ptr,  # h of the coupling (B / coupling_repeat, 2 COUNT, P), or None
    c_b,
    c_c,
    c_p,
    coupling_repeat,  # samples of x that share a sample of it
    injector_ptr,  # h of the injector (B / injector_repeat, 2 C, P), or None
    i_b,
    i_c,
    i_p,
    injector_repeat,
    y_ptr,  # result (B, C, P)
    y_b,
    y_c,
    y_p,
    log_det_ptr,  # its parts (B, cdiv(C, BLOCK_C), cdiv(P, GRAIN)), contiguous, or None
    pixels,  # P
    size,  # see tuning.py
    C: tl.constexpr,
    START: tl.constexpr,  # first channel that the coupling transforms
    COUNT: tl.constexpr,  # how many
    COUPLING: tl.constexpr,  # form of the coupling
    INJECTOR: tl.constexpr,  # form of the injector
    INVERSE: tl.constexpr,
    PRECISION: tl.constexpr,  # of products of float32: "ieee", "tf32x3" or "tf32"
    GRAIN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Grid: (B cdiv(P, BLOCK_P), cdiv(C, BLOCK_C))."""
    sample, p = _place(pixels, BLOCK_P)
    o = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64))[:, None]
    inside = (o < C) & (p < pixels)
    if coupling_ptr is not None:
        coupling_ptr += (sample // coupling_repeat) * c_b
    if injector_ptr is not None:
        injector_ptr += (sample // injector_repeat) * i_b
    y, log_dets = _affine_map(
        x_ptr + sample * x_b, x_c, x_p, matrix_ptr, m_o, m_i, shift_ptr, coupling_ptr, c_c, c_p, injector_ptr, i_c, i_p,
        p, pixels, o, C, START, COUNT, COUPLING, INJECTOR, INVERSE, PRECISION, BLOCK_C, BLOCK_K, BLOCK_P,
    )  # fmt: skip
    # every tile of channels went through all of what precedes the matrix, but only one counts it
    log_det = tl.where(tl.program_id(1) == 0, tl.sum(log_dets), 0.0)
    if injector_ptr is not None and not INVERSE:
        shift, raw = load_shift_and_raw(injector_ptr, i_c, o, p * i_p, inside, C, INJECTOR, y.dtype)
        y, part = transform(y, shift, raw, INJECTOR, INVERSE)
        log_det += tl.sum(tl.where(inside, part, 0.0))
    tl.store(y_ptr + sample * y_b + o * y_c + p * y_p, y.to(y_ptr.dtype.element_ty), mask=inside)
    if log_det_ptr is not None:
        parts = tl.cdiv(pixels, GRAIN)
        row = log_det_ptr + (sample * tl.num_programs(1) + tl.program_id(1)) * parts
        store_part(row, parts, log_det, tl.program_id(0) % tl.cdiv(pixels, BLOCK_P), BLOCK_P, GRAIN)


@triton.jit
def flow_step_output_bwd_kernel(
    grad_y_ptr,  # (B, C, P)
    gy_b,
    gy_c,
    gy_p,
    grad_log_det_ptr,  # (B,), contiguous
    x_ptr,  # state (B, C, P)
    x_b,
    x_c,
    x_p,
    matrix_ptr,  # M (C, C), contiguous; its dtype is that of all arithmetic
    shift_ptr,  # v (C,), contiguous
    coupling_ptr,  # h of the coupling, or None
    c_b,
    c_c,
    c_p,
    coupling_repeat,
    injector_ptr,  # h of the injector
    i_b,
    i_c,
    i_p,
    injector_repeat,
    grad_injector_ptr,  # result (B, 2 C, P): a sample for each of x
    gi_b,
    gi_c,
    gi_p,
    grad_affine_ptr,  # result (B, C, P), contiguous: gradient of M x + v
    pixels,
    size,
    C: tl.constexpr,
    START: tl.constexpr,
    COUNT: tl.constexpr,
    COUPLING: tl.constexpr,
    INJECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Gradients of the injector that follows the channel map, encoding, and of that map's result. Grid as forward."""
    sample, p = _place(pixels, BLOCK_P)
    o = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64))[:, None]
    inside = (o < C) & (p < pixels)
    if coupling_ptr is not None:
        coupling_ptr += (sample // coupling_repeat) * c_b
    injector_ptr += (sample // injector_repeat) * i_b
    u, _ = _affine_map(
        x_ptr + sample * x_b, x_c, x_p, matrix_ptr, C, 1, shift_ptr, coupling_ptr, c_c, c_p, injector_ptr, i_c, i_p,
        p, pixels, o, C, START, COUNT, COUPLING, INJECTOR, False, PRECISION, BLOCK_C, BLOCK_K, BLOCK_P,
    )  # fmt: skip
    grad_y = tl.load(grad_y_ptr + sample * gy_b + o * gy_c + p * gy_p, mask=inside, other=0.0).to(u.dtype)
    grad_log_det = tl.load(grad_log_det_ptr + sample)
    shift, raw = load_shift_and_raw(injector_ptr, i_c, o, p * i_p, inside, C, INJECTOR, u.dtype)
    grad, grad_shift, grad_raw = gradients(grad_y, grad_log_det, u, shift, raw, INJECTOR, False)
    store_shift_and_raw(grad_injector_ptr + sample * gi_b, gi_c, o, p * gi_p, inside, grad_shift, grad_raw, C, INJECTOR)
    tl.store(grad_affine_ptr + (sample * C + o) * pixels + p, grad, mask=inside)


@triton.jit
def flow_step_input_bwd_kernel(
    grad_affine_ptr,  # gradient of the channel map's result (B, C, P)
    ga_b,
    ga_c,
    ga_p,
    grad_log_det_ptr,  # (B,), contiguous
    x_ptr,  # state (B, C, P)
    x_b,
    x_c,
    x_p,
    matrix_ptr,  # M (C, C), contiguous; its dtype is that of all arithmetic
    coupling_ptr,  # h of the coupling, or None
    c_b,
    c_c,
    c_p,
    coupling_repeat,
    injector_ptr,  # h of the injector, decoding; or None
    i_b,
    i_c,
    i_p,
    injector_repeat,
    grad_x_ptr,  # result (B, C, P)
    gx_b,
    gx_c,
    gx_p,
    grad_coupling_ptr,  # result (B, 2 COUNT, P): a sample for each of x
    gc_b,
    gc_c,
    gc_p,
    grad_injector_ptr,  # result (B, 2 C, P): a sample for each of x
    gi_b,
    gi_c,
    gi_p,
    pixels,
    size,
    C: tl.constexpr,
    START: tl.constexpr,
    COUNT: tl.constexpr,
    COUPLING: tl.constexpr,
    INJECTOR: tl.constexpr,
    INVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Gradients of x and of the h of the maps before the matrix. Grid as forward."""
    sample, p = _place(pixels, BLOCK_P)
    i = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64))[:, None]
    inside = (i < C) & (p < pixels)
    grad, _ = _affine_map(
        grad_affine_ptr + sample * ga_b, ga_c, ga_p, matrix_ptr, 1, C, None, None, 0, 0, None, 0, 0,
        p, pixels, i, C, START, COUNT, COUPLING, INJECTOR, INVERSE, PRECISION, BLOCK_C, BLOCK_K, BLOCK_P,
    )  # fmt: skip
    if coupling_ptr is not None:
        coupling_ptr += (sample // coupling_repeat) * c_b
        grad_coupling_ptr += sample * gc_b
    if injector_ptr is not None:
        injector_ptr += (sample // injector_repeat) * i_b
        grad_injector_ptr += sample * gi_b
    grad = gradients_before_matrix(
        grad, tl.load(grad_log_det_ptr + sample), x_ptr + sample * x_b + i * x_c + p * x_p,
        coupling_ptr, c_c, i - START, p * c_p, inside & (i >= START) & (i < START + COUNT),
        injector_ptr, i_c, i, p * i_p, inside,
        grad_coupling_ptr, gc_c, p * gc_p, grad_injector_ptr, gi_c, p * gi_p,
        COUNT, C, COUPLING, INJECTOR, INVERSE,
    )  # fmt: skip
    tl.store(grad_x_ptr + sample * gx_b + i * gx_c + p * gx_p, grad.to(grad_x_ptr.dtype.element_ty), mask=inside)
