"""Kernels of ``flow_step`` for few channels: a thread holds all channels of its pixels.

A program owns ``BLOCK`` pixels of one sample. Each thread loads its pixels of every channel, as many as fill 128 bits,
and multiplies them by the matrix, whose elements are read from the cache. Nothing goes through shared memory. The floor
of the forward kernel is to read x and h, write y, and C^2 multiply-adds a pixel.

Strides of channels are declared as int64, because the number of a channel is a constant. Other strides multiply int64
numbers and are not declared. Only then does Triton make a constant of a stride of 1. Without it, Triton would load one
number at a time.

``channel_affine`` is the forward kernel without maps. So is its gradient with respect to x, by the transposed matrix.
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


@triton.jit
def flow_step_fwd_kernel(
    x_ptr,  # state (B, C, P)
    x_b,  # its strides: samples, channels, pixels
    x_c: tl.int64,
    x_p,
    matrix_ptr,  # M (C, C); its dtype is that of all arithmetic
    m_o,  # its strides: rows, columns
    m_i,
    shift_ptr,  # v (C,), contiguous, or None for zero
    coupling_ptr,  # h of the coupling (B / coupling_repeat, 2 COUNT, P), or None
    c_b,
    c_c: tl.int64,
    c_p,
    coupling_repeat,  # samples of x that share a sample of it
    injector_ptr,  # h of the injector (B / injector_repeat, 2 C, P), or None
    i_b,
    i_c: tl.int64,
    i_p,
    injector_repeat,
    y_ptr,  # result (B, C, P)
    y_b,
    y_c: tl.int64,
    y_p,
    log_det_ptr,  # its parts (B, cdiv(P, GRAIN)), contiguous, or None
    pixels,  # P
    size,  # see tuning.py
    C: tl.constexpr,
    START: tl.constexpr,  # first channel that the coupling transforms
    COUNT: tl.constexpr,  # how many
    COUPLING: tl.constexpr,  # form of the coupling
    INJECTOR: tl.constexpr,  # form of the injector
    INVERSE: tl.constexpr,
    GRAIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (B cdiv(P, BLOCK),)."""
    dtype = matrix_ptr.dtype.element_ty
    blocks = tl.cdiv(pixels, BLOCK)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    p = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = p < pixels
    x_ptr += sample * x_b
    y_ptr += sample * y_b
    if coupling_ptr is not None:
        coupling_ptr += (sample // coupling_repeat) * c_b
    if injector_ptr is not None:
        injector_ptr += (sample // injector_repeat) * i_b
    log_det = tl.zeros((BLOCK,), dtype)
    state = ()  # C tensors (BLOCK,)
    for k in tl.static_range(C):
        x = tl.load(x_ptr + k * x_c + p * x_p, mask=inside, other=0.0).to(dtype)
        z, part = transform_before_matrix(
            x, coupling_ptr if k >= START and k < START + COUNT else None, c_c, k - START, p * c_p, inside,
            injector_ptr, i_c, k, p * i_p, inside, COUNT, C, COUPLING, INJECTOR, INVERSE,
        )  # fmt: skip
        log_det += part
        state = state + (z,)
    for o in range(C):
        y = tl.zeros((BLOCK,), dtype)
        if shift_ptr is not None:
            y += tl.load(shift_ptr + o)
        for k in tl.static_range(C):
            y += tl.load(matrix_ptr + o * m_o + k * m_i) * state[k]
        if injector_ptr is not None and not INVERSE:
            shift, raw = load_shift_and_raw(injector_ptr, i_c, o, p * i_p, inside, C, INJECTOR, dtype)
            y, part = transform(y, shift, raw, INJECTOR, INVERSE)
            log_det += part
        tl.store(y_ptr + o * y_c + p * y_p, y.to(y_ptr.dtype.element_ty), mask=inside)
    if log_det_ptr is not None:
        parts = tl.cdiv(pixels, GRAIN)
        part = tl.sum(tl.where(inside, log_det, 0.0), 0)
        store_part(log_det_ptr + sample * parts, parts, part, block, BLOCK, GRAIN)


@triton.jit
def flow_step_bwd_kernel(
    grad_y_ptr,  # (B, C, P)
    gy_b,
    gy_c: tl.int64,
    gy_p,
    grad_log_det_ptr,  # (B,), contiguous
    x_ptr,  # state (B, C, P)
    x_b,
    x_c: tl.int64,
    x_p,
    matrix_ptr,  # M (C, C), contiguous; its dtype is that of all arithmetic
    shift_ptr,  # v (C,), contiguous
    coupling_ptr,  # h of the coupling, or None
    c_b,
    c_c: tl.int64,
    c_p,
    coupling_repeat,
    injector_ptr,  # h of the injector, or None
    i_b,
    i_c: tl.int64,
    i_p,
    injector_repeat,
    grad_x_ptr,  # result (B, C, P)
    gx_b,
    gx_c: tl.int64,
    gx_p,
    grad_coupling_ptr,  # result (B, 2 COUNT, P): a sample for each of x
    gc_b,
    gc_c: tl.int64,
    gc_p,
    grad_injector_ptr,  # result (B, 2 C, P): a sample for each of x
    gi_b,
    gi_c: tl.int64,
    gi_p,
    grad_affine_ptr,  # result (B, C, P), contiguous: gradient of M x + v, where an injector follows it; else None
    pixels,
    size,
    C: tl.constexpr,
    START: tl.constexpr,
    COUNT: tl.constexpr,
    COUPLING: tl.constexpr,
    INJECTOR: tl.constexpr,
    INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of everything but M and v, which :mod:`matrix_gradient` sums. Grid: (B cdiv(P, BLOCK),)."""
    dtype = matrix_ptr.dtype.element_ty
    blocks = tl.cdiv(pixels, BLOCK)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = p < pixels
    x_ptr += sample * x_b
    grad_y_ptr += sample * gy_b
    grad_x_ptr += sample * gx_b
    if coupling_ptr is not None:
        coupling_ptr += (sample // coupling_repeat) * c_b
        grad_coupling_ptr += sample * gc_b
    if injector_ptr is not None:
        injector_ptr += (sample // injector_repeat) * i_b
        grad_injector_ptr += sample * gi_b
    grad_log_det = tl.load(grad_log_det_ptr + sample)

    state = ()  # what M multiplies, where the injector's gradient needs M x + v
    grad_state = ()  # C tensors (BLOCK,)
    for k in tl.static_range(C):
        if injector_ptr is not None and not INVERSE:
            x = tl.load(x_ptr + k * x_c + p * x_p, mask=inside, other=0.0).to(dtype)
            z, _ = transform_before_matrix(
                x, coupling_ptr if k >= START and k < START + COUNT else None, c_c, k - START, p * c_p, inside,
                injector_ptr, i_c, k, p * i_p, inside, COUNT, C, COUPLING, INJECTOR, INVERSE,
            )  # fmt: skip
            state = state + (z,)
        grad_state = grad_state + (tl.zeros((BLOCK,), dtype),)
    for o in range(C):
        grad = tl.load(grad_y_ptr + o * gy_c + p * gy_p, mask=inside, other=0.0).to(dtype)
        if injector_ptr is not None and not INVERSE:
            u = tl.zeros((BLOCK,), dtype) + tl.load(shift_ptr + o)
            for k in tl.static_range(C):
                u += tl.load(matrix_ptr + o * C + k) * state[k]
            shift, raw = load_shift_and_raw(injector_ptr, i_c, o, p * i_p, inside, C, INJECTOR, dtype)
            grad, grad_shift, grad_raw = gradients(grad, grad_log_det, u, shift, raw, INJECTOR, INVERSE)
            store_shift_and_raw(grad_injector_ptr, gi_c, o, p * gi_p, inside, grad_shift, grad_raw, C, INJECTOR)
            tl.store(grad_affine_ptr + (sample * C + o) * pixels + p, grad, mask=inside)
        summed = ()
        for k in tl.static_range(C):
            summed = summed + (grad_state[k] + tl.load(matrix_ptr + o * C + k) * grad,)
        grad_state = summed
    for k in tl.static_range(C):
        grad = gradients_before_matrix(
            grad_state[k], grad_log_det, x_ptr + k * x_c + p * x_p,
            coupling_ptr if k >= START and k < START + COUNT else None, c_c, k - START, p * c_p, inside,
            injector_ptr, i_c, k, p * i_p, inside,
            grad_coupling_ptr, gc_c, p * gc_p, grad_injector_ptr, gi_c, p * gi_p,
            COUNT, C, COUPLING, INJECTOR, INVERSE,
        )  # fmt: skip
        tl.store(grad_x_ptr + k * gx_c + p * gx_p, grad.to(grad_x_ptr.dtype.element_ty), mask=inside)
