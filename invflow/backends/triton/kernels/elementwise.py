r"""Elementwise maps that a network's output h makes, and their gradients, on tensors in registers.

``FORM`` is :meth:`invflow.AffineForm.for_kernels`: scale, parameter, order, packing. It makes a shift :math:`t` and a
scale :math:`s` of h:

====================  ====================  ==========================
order                 forward               inverse
====================  ====================  ==========================
shift_then_scale      :math:`(x + t) s`     :math:`x / s - t`
scale_then_shift      :math:`x s + t`       :math:`(x - t) / s`
====================  ====================  ==========================

Of the scale ``"none"``, s is 1 and h has shifts only.
"""

import triton
import triton.language as tl

from invflow.backends.triton.kernels.elementary import (
    atan,
    exp,
    log,
    log_sigmoid,
    sigmoid_and_rest,
    tanh_and_slope,
    times_exp,
)


@triton.jit
def load_shift_and_raw(
    h_ptr, h_c, channel, offsets, mask, COUNT: tl.constexpr, FORM: tl.constexpr, DTYPE: tl.constexpr
):
    """Shift and raw scale of a transformed channel, cast to ``DTYPE`` at once.

    Args:
        h_ptr: the sample of h.
        h_c: stride of its channels.
        channel: transformed channel, 0 to ``COUNT`` - 1, int64, broadcastable against ``offsets``.
        offsets: of the pixels, in elements, int64.
        mask: which elements exist.
    """
    if FORM[0] == "none":
        shift = tl.load(h_ptr + channel * h_c + offsets, mask=mask, other=0.0)
        raw = tl.zeros(shift.shape, DTYPE)
    elif FORM[3] == "cross":
        shift = tl.load(h_ptr + (2 * channel) * h_c + offsets, mask=mask, other=0.0)
        raw = tl.load(h_ptr + (2 * channel + 1) * h_c + offsets, mask=mask, other=0.0)
    else:
        shift = tl.load(h_ptr + channel * h_c + offsets, mask=mask, other=0.0)
        raw = tl.load(h_ptr + (channel + COUNT) * h_c + offsets, mask=mask, other=0.0)
    return shift.to(DTYPE), raw.to(DTYPE)


@triton.jit
def store_shift_and_raw(h_ptr, h_c, channel, offsets, mask, shift, raw, COUNT: tl.constexpr, FORM: tl.constexpr):
    """The opposite of :func:`load_shift_and_raw`, for gradients."""
    dtype = h_ptr.dtype.element_ty
    if FORM[0] == "none":
        tl.store(h_ptr + channel * h_c + offsets, shift.to(dtype), mask=mask)
    elif FORM[3] == "cross":
        tl.store(h_ptr + (2 * channel) * h_c + offsets, shift.to(dtype), mask=mask)
        tl.store(h_ptr + (2 * channel + 1) * h_c + offsets, raw.to(dtype), mask=mask)
    else:
        tl.store(h_ptr + channel * h_c + offsets, shift.to(dtype), mask=mask)
        tl.store(h_ptr + (channel + COUNT) * h_c + offsets, raw.to(dtype), mask=mask)


@triton.jit
def bounded_and_slope(raw, FORM: tl.constexpr):
    """log(scale) = a tanh(raw / b) or 0.636 a atan(raw / b), where b is a or 1, and its derivative."""
    WIDTH: tl.constexpr = FORM[1] if FORM[0] == "bounded_exp" or FORM[0] == "bounded_atan_exp" else 1.0
    x = raw / WIDTH
    if FORM[0] == "atan_exp" or FORM[0] == "bounded_atan_exp":
        log_scale = (0.636 * FORM[1]) * atan(x)
        slope = (0.636 * FORM[1] / WIDTH) / (1.0 + x * x)
    else:
        tanh, slope = tanh_and_slope(x)
        log_scale = FORM[1] * tanh
        slope = (FORM[1] / WIDTH) * slope
    return log_scale, slope


@triton.jit
def scale_and_log(raw, FORM: tl.constexpr):
    """A scale and its logarithm. The scale may leave the normal numbers if it is exp or a sigmoid without eps."""
    if FORM[0] == "sigmoid":
        sigmoid, _ = sigmoid_and_rest(raw + 2.0)
        scale = sigmoid + FORM[1]
        if FORM[1] > 0.0:
            log_scale = log(scale)
        else:
            log_scale = log_sigmoid(raw + 2.0)
    elif FORM[0] == "exp":
        scale = exp(raw)
        log_scale = raw
    elif FORM[0] == "none":
        scale = tl.full(raw.shape, 1.0, raw.dtype)
        log_scale = tl.zeros(raw.shape, raw.dtype)
    else:
        log_scale, _ = bounded_and_slope(raw, FORM)
        scale = exp(log_scale)
    return scale, log_scale


@triton.jit
def scaled(x, raw, scale, FORM: tl.constexpr, INVERSE: tl.constexpr):
    """x s, or x / s for the inverse: finite wherever it can be, although s may not be a normal number."""
    if FORM[0] == "none":
        y = x
    elif FORM[0] == "exp":
        y = times_exp(x, -raw if INVERSE else raw)
    elif FORM[0] == "sigmoid" and FORM[1] == 0.0:
        r = raw + 2.0
        if INVERSE:
            y = x + times_exp(x, -r)
        else:
            y = times_exp(x, tl.where(r < 0.0, r, 0.0)) / (1.0 + exp(-tl.abs(r)))
            y = tl.where(r == r, y, r)
    else:
        y = x / scale if INVERSE else x * scale
    return y


@triton.jit
def transform(x, shift, raw, FORM: tl.constexpr, INVERSE: tl.constexpr):
    """y and the element's share of log_det."""
    scale, log_scale = scale_and_log(raw, FORM)
    if FORM[2] == "shift_then_scale":
        y = scaled(x, raw, scale, FORM, INVERSE) - shift if INVERSE else scaled(x + shift, raw, scale, FORM, INVERSE)
    else:
        y = scaled(x - shift, raw, scale, FORM, INVERSE) if INVERSE else scaled(x, raw, scale, FORM, INVERSE) + shift
    log_det = -log_scale if INVERSE else log_scale
    return y, log_det


@triton.jit
def gradients(grad_y, grad_log_det, x, shift, raw, FORM: tl.constexpr, INVERSE: tl.constexpr):
    """Gradients of x, shift and raw, from those of y and log_det."""
    if FORM[0] == "sigmoid":
        sigmoid, rest = sigmoid_and_rest(raw + 2.0)
        scale = sigmoid + FORM[1]
        slope = sigmoid * rest / scale if FORM[1] > 0.0 else rest  # d log(scale) / d raw
    elif FORM[0] == "exp":
        scale = exp(raw)
        slope = tl.full(raw.shape, 1.0, raw.dtype)
    elif FORM[0] == "none":
        scale = raw
        slope = raw
    else:
        log_scale, slope = bounded_and_slope(raw, FORM)
        scale = exp(log_scale)
    grad_x = scaled(grad_y, raw, scale, FORM, INVERSE)
    if FORM[2] == "shift_then_scale":
        product = scaled(x if INVERSE else x + shift, raw, scale, FORM, INVERSE)
        grad_shift = -grad_y if INVERSE else grad_x
    else:
        product = scaled(x - shift if INVERSE else x, raw, scale, FORM, INVERSE)
        grad_shift = -grad_x if INVERSE else grad_y
    # the product is d y / d log(scale), its opposite for the inverse
    grad_raw = (grad_y * product + grad_log_det) * slope
    return grad_x, grad_shift, -grad_raw if INVERSE else grad_raw


@triton.jit
def transform_before_matrix(
    x, coupling_ptr, c_c, j, c_offsets, in_coupling, injector_ptr, i_c, k, i_offsets, inside,
    COUNT: tl.constexpr, C: tl.constexpr, COUPLING: tl.constexpr, INJECTOR: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """The state that the matrix of a flow step multiplies, after coupling and (decoding) injector, and their log_det.

    Args:
        x: state, channels by pixels or pixels of one channel.
        coupling_ptr, injector_ptr: the sample of h, or None for the identity.
        c_c, i_c: stride of its channels.
        j, k: channel of x, counted from the first transformed one; for coupling and injector.
        c_offsets, i_offsets: of the pixels in h.
        in_coupling, inside: masks of the elements that each of them transforms.
    """
    log_det = tl.zeros(x.shape, x.dtype)
    if coupling_ptr is not None:
        shift, raw = load_shift_and_raw(coupling_ptr, c_c, j, c_offsets, in_coupling, COUNT, COUPLING, x.dtype)
        y, part = transform(x, shift, raw, COUPLING, INVERSE)
        x = tl.where(in_coupling, y, x)
        log_det += tl.where(in_coupling, part, 0.0)
    if injector_ptr is not None and INVERSE:
        shift, raw = load_shift_and_raw(injector_ptr, i_c, k, i_offsets, inside, C, INJECTOR, x.dtype)
        x, part = transform(x, shift, raw, INJECTOR, INVERSE)
        log_det += tl.where(inside, part, 0.0)
    return x, log_det


@triton.jit
def gradients_before_matrix(
    grad, grad_log_det, x_ptrs, coupling_ptr, c_c, j, c_offsets, in_coupling, injector_ptr, i_c, k, i_offsets, inside,
    grad_coupling_ptr, gc_c, gc_offsets, grad_injector_ptr, gi_c, gi_offsets,
    COUNT: tl.constexpr, C: tl.constexpr, COUPLING: tl.constexpr, INJECTOR: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """The gradient of x from that of :func:`transform_before_matrix`, whose arguments these are; stores those of h."""
    x = grad
    if coupling_ptr is not None or (injector_ptr is not None and INVERSE):
        x = tl.load(x_ptrs, mask=inside, other=0.0).to(grad.dtype)
    if injector_ptr is not None and INVERSE:
        between, _ = transform_before_matrix(
            x, coupling_ptr, c_c, j, c_offsets, in_coupling, None, 0, k, i_offsets, inside,
            COUNT, C, COUPLING, INJECTOR, INVERSE,
        )  # fmt: skip
        shift, raw = load_shift_and_raw(injector_ptr, i_c, k, i_offsets, inside, C, INJECTOR, grad.dtype)
        grad, grad_shift, grad_raw = gradients(grad, grad_log_det, between, shift, raw, INJECTOR, INVERSE)
        store_shift_and_raw(grad_injector_ptr, gi_c, k, gi_offsets, inside, grad_shift, grad_raw, C, INJECTOR)
    if coupling_ptr is not None:
        shift, raw = load_shift_and_raw(coupling_ptr, c_c, j, c_offsets, in_coupling, COUNT, COUPLING, grad.dtype)
        grad_x, grad_shift, grad_raw = gradients(grad, grad_log_det, x, shift, raw, COUPLING, INVERSE)
        store_shift_and_raw(grad_coupling_ptr, gc_c, j, gc_offsets, in_coupling, grad_shift, grad_raw, COUNT, COUPLING)
        grad = tl.where(in_coupling, grad_x, grad)
    return grad


@triton.jit
def store_part(ptr, parts, value, block, BLOCK: tl.constexpr, GRAIN: tl.constexpr):
    """Store the sum over a block of pixels in the first of its parts, and zeros in the rest.

    There is a part for every ``GRAIN`` pixels, so their number does not depend on the size of blocks, which is tuned.
    """
    i = tl.arange(0, BLOCK // GRAIN)
    part = block * (BLOCK // GRAIN) + i
    tl.store(ptr + part, tl.where(i == 0, value, 0.0), mask=part < parts)
