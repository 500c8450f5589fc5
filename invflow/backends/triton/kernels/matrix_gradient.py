"""Kernel of the gradients of M and v of a channel map: sums over all pixels of all samples.

Samples are cut into blocks of ``BLOCK_P`` pixels, and these are dealt out to ``SPLITS`` programs for every tile
(``BLOCK_C``, ``BLOCK_C``) of the matrix. A program sums its blocks in registers. The parts of all programs are added
afterwards, in an order that depends on nothing but the shape. The floor is to read x, h and the gradient, and C^2
multiply-adds a pixel.
"""

import triton
import triton.language as tl

from invflow.backends.triton.kernels.elementwise import transform_before_matrix


@triton.jit
def matrix_gradient_kernel(
    grad_ptr,  # gradient of the channel map's result (B, C, P)
    g_b,  # its strides: samples, channels, pixels
    g_c,
    g_p,
    x_ptr,  # state (B, C, P)
    x_b,
    x_c,
    x_p,
    coupling_ptr,  # h of the coupling that precedes the matrix, or None
    c_b,
    c_c,
    c_p,
    coupling_repeat,  # samples of x that share a sample of it
    injector_ptr,  # h of the injector that precedes the matrix, decoding, or None
    i_b,
    i_c,
    i_p,
    injector_repeat,
    grad_matrix_ptr,  # parts (SPLITS, C, C), contiguous; their dtype is that of all arithmetic
    grad_shift_ptr,  # parts (SPLITS, C), contiguous
    samples,  # B
    pixels,  # P
    size,  # see tuning.py
    C: tl.constexpr,
    START: tl.constexpr,  # first channel that the coupling transforms
    COUNT: tl.constexpr,  # how many
    COUPLING: tl.constexpr,  # form of the coupling
    INJECTOR: tl.constexpr,  # form of the injector
    INVERSE: tl.constexpr,
    PRECISION: tl.constexpr,  # of products of float32: "ieee", "tf32x3" or "tf32"
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Grid: (SPLITS, cdiv(C, BLOCK_C), cdiv(C, BLOCK_C)): parts, rows, columns."""
    dtype = grad_matrix_ptr.dtype.element_ty
    o = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64))[:, None]
    k = (tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64))[:, None]
    blocks = tl.cdiv(pixels, BLOCK_P)
    grad_matrix = tl.zeros((BLOCK_C, BLOCK_C), dtype)
    grads = tl.zeros((BLOCK_C, BLOCK_P), dtype)
    for block in range(tl.program_id(0), samples * blocks, tl.num_programs(0)):
        sample = (block // blocks).to(tl.int64)
        p = ((block % blocks).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P))[None, :]
        grad = tl.load(grad_ptr + sample * g_b + o * g_c + p * g_p, mask=(o < C) & (p < pixels), other=0.0).to(
            dtype
        )  # (BLOCK_C, BLOCK_P)
        inside = (k < C) & (p < pixels)
        x = tl.load(x_ptr + sample * x_b + k * x_c + p * x_p, mask=inside, other=0.0).to(dtype)  # (BLOCK_C, BLOCK_P)
        z, _ = transform_before_matrix(
            x,
            None if coupling_ptr is None else coupling_ptr + (sample // coupling_repeat) * c_b,
            c_c, k - START, p * c_p, inside & (k >= START) & (k < START + COUNT),
            None if injector_ptr is None else injector_ptr + (sample // injector_repeat) * i_b,
            i_c, k, p * i_p, inside, COUNT, C, COUPLING, INJECTOR, INVERSE,
        )  # fmt: skip
        z = tl.where(inside, z, 0.0)
        grad_matrix = tl.dot(grad, tl.trans(z), grad_matrix, input_precision=PRECISION, out_dtype=dtype)
        grads += grad
    part = tl.program_id(0).to(tl.int64)
    columns = tl.trans(k)
    tl.store(grad_matrix_ptr + (part * C + o) * C + columns, grad_matrix, mask=(o < C) & (columns < C))
    if tl.program_id(2) == 0:
        tl.store(grad_shift_ptr + part * C + o, tl.sum(grads, 1)[:, None], mask=o < C)
