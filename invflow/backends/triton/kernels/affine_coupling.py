"""Kernels of ``affine_coupling``, and so of the affine injector and of ``gaussian_split``: no matrix, only maps.

A program owns ``BLOCK`` pixels of one channel of one sample. Channels that are not transformed are copied. The floor of
the forward kernel is to read x and h and to write y. The floor of the backward kernel is to read grad_y, x and h and to
write grad_x and grad_h. An element takes about 40 operations, so memory decides.
"""

import triton
import triton.language as tl

from invflow.backends.triton.kernels.elementwise import (
    gradients,
    load_shift_and_raw,
    store_part,
    store_shift_and_raw,
    transform,
)


@triton.jit
def _place(pixels, BLOCK: tl.constexpr):
    """Return sample, channel, block of pixels, pixels (BLOCK,) of this program, and a mask of those that exist."""
    blocks = tl.cdiv(pixels, BLOCK)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    p = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return sample, tl.program_id(1).to(tl.int64), block, p, p < pixels


@triton.jit
def affine_coupling_fwd_kernel(
    x_ptr,  # state (B, C, P)
    x_b,  # its strides: samples, channels, pixels
    x_c,
    x_p,
    h_ptr,  # raw network output (B / repeat, 2 COUNT, P)
    h_b,
    h_c,
    h_p,
    repeat,  # samples of x that share a sample of h
    y_ptr,  # result (B, C, P)
    y_b,
    y_c,
    y_p,
    log_det_ptr,  # its parts (B, COUNT, cdiv(P, GRAIN)), contiguous; their dtype is that of all arithmetic
    pixels,  # P
    size,  # see tuning.py
    START: tl.constexpr,  # first transformed channel
    COUNT: tl.constexpr,  # how many
    FORM: tl.constexpr,
    INVERSE: tl.constexpr,
    GRAIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (B cdiv(P, BLOCK), C)."""
    dtype = log_det_ptr.dtype.element_ty
    sample, channel, block, p, inside = _place(pixels, BLOCK)
    x = tl.load(x_ptr + sample * x_b + channel * x_c + p * x_p, mask=inside, other=0.0)  # (BLOCK,)
    y_ptrs = y_ptr + sample * y_b + channel * y_c + p * y_p
    j = channel - START
    if (j >= 0) & (j < COUNT):
        h_sample = h_ptr + (sample // repeat) * h_b
        shift, raw = load_shift_and_raw(h_sample, h_c, j, p * h_p, inside, COUNT, FORM, dtype)
        y, log_det = transform(x.to(dtype), shift, raw, FORM, INVERSE)
        tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=inside)
        parts = tl.cdiv(pixels, GRAIN)
        part = tl.sum(tl.where(inside, log_det, 0.0), 0)
        store_part(log_det_ptr + (sample * COUNT + j) * parts, parts, part, block, BLOCK, GRAIN)
    else:
        tl.store(y_ptrs, x, mask=inside)


@triton.jit
def affine_coupling_bwd_kernel(
    grad_y_ptr,  # (B, C, P)
    gy_b,
    gy_c,
    gy_p,
    grad_log_det_ptr,  # (B,), contiguous; its dtype is that of all arithmetic
    x_ptr,  # state (B, C, P)
    x_b,
    x_c,
    x_p,
    h_ptr,  # raw network output (B / repeat, 2 COUNT, P)
    h_b,
    h_c,
    h_p,
    repeat,
    grad_x_ptr,  # result (B, C, P)
    gx_b,
    gx_c,
    gx_p,
    grad_h_ptr,  # result (B, 2 COUNT, P): a sample for each of x, whatever ``repeat`` is
    gh_b,
    gh_c,
    gh_p,
    pixels,
    size,
    START: tl.constexpr,
    COUNT: tl.constexpr,
    FORM: tl.constexpr,
    INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (B cdiv(P, BLOCK), C)."""
    dtype = grad_log_det_ptr.dtype.element_ty
    sample, channel, _, p, inside = _place(pixels, BLOCK)
    grad_y = tl.load(grad_y_ptr + sample * gy_b + channel * gy_c + p * gy_p, mask=inside, other=0.0)
    grad_x_ptrs = grad_x_ptr + sample * gx_b + channel * gx_c + p * gx_p
    j = channel - START
    if (j >= 0) & (j < COUNT):
        x = tl.load(x_ptr + sample * x_b + channel * x_c + p * x_p, mask=inside, other=0.0)
        h_sample = h_ptr + (sample // repeat) * h_b
        shift, raw = load_shift_and_raw(h_sample, h_c, j, p * h_p, inside, COUNT, FORM, dtype)
        grad_log_det = tl.load(grad_log_det_ptr + sample)
        grad_x, grad_shift, grad_raw = gradients(grad_y.to(dtype), grad_log_det, x.to(dtype), shift, raw, FORM, INVERSE)
        tl.store(grad_x_ptrs, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)
        store_shift_and_raw(grad_h_ptr + sample * gh_b, gh_c, j, p * gh_p, inside, grad_shift, grad_raw, COUNT, FORM)
    else:
        tl.store(grad_x_ptrs, grad_y.to(grad_x_ptr.dtype.element_ty), mask=inside)
