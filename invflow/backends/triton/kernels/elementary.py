"""Elementary functions in float32 and float64 that are as accurate as those of the host.

Triton's own ``exp`` and ``log`` compile to approximations of the processor, whose relative error grows with the
argument. Triton has ``tanh`` in vendor libraries only, which its interpreter lacks. These functions are a range
reduction and a polynomial, the same on every processor and in the interpreter. In float64 Triton's functions are
accurate.

Every function takes and returns a tensor of any shape and keeps NaN.
"""

import triton
import triton.language as tl

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
# ln 2 in two parts, of which the first has few enough digits for its product with an exponent to be exact
_LN2_HIGH: tl.constexpr = tl.constexpr(0.693145751953125)
_LN2_LOW: tl.constexpr = tl.constexpr(1.4286068203094172e-06)
_SQRT_HALF_BITS: tl.constexpr = tl.constexpr(0x3F3504F3)


@triton.jit
def _exponential(x):
    """exp(x) = a b (1 + q) in float32, where a and b are powers of two. NaN becomes a number.

    Two factors let results overflow to infinity, and underflow through the subnormal numbers, as they should. At the
    upper limit of x they are as large as they can be, and the product with any normal number overflows. At the lower
    limit they are zero.
    """
    x = tl.where(x > -176.0, x, -176.0)
    x = tl.where(x < 176.39, x, 176.39)
    n = tl.floor(x * _LOG2_E + 0.5)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    # exp(r) - 1 = r + r^2 p(r) for |r| <= ln(2) / 2
    p = 1.99535548e-4 * r + 1.39357780e-3
    p = p * r + 8.33319763e-3
    p = p * r + 4.16664554e-2
    p = p * r + 1.66666667e-1
    p = p * r + 0.5
    k = n.to(tl.int32)
    half = k >> 1
    a = ((half + 127) << 23).to(tl.float32, bitcast=True)
    b = ((k - half + 127) << 23).to(tl.float32, bitcast=True)
    return a, b, (p * r) * r + r


@triton.jit
def exp(x):
    """e^x."""
    if x.dtype == tl.float64:
        y = tl.exp(x)
    else:
        a, b, q = _exponential(x)
        y = tl.where(x == x, (q + 1.0) * a * b, x)
    return y


@triton.jit
def times_exp(x, power):
    """x e^power, finite wherever it can be, although e^power may overflow or underflow."""
    if x.dtype == tl.float64:
        within = tl.where(power < -700.0, -700.0, tl.where(power > 700.0, 700.0, power))
        beyond = power - within
        beyond = tl.where(beyond < -800.0, -800.0, tl.where(beyond > 800.0, 800.0, beyond))
        y = x * tl.exp(within) * tl.exp(0.5 * beyond) * tl.exp(0.5 * beyond)
    else:
        a, b, q = _exponential(power)
        y = tl.where(power == power, x * ((q + 1.0) * a) * b, power)
    return y


@triton.jit
def _log_of_sum(m, k):
    """log(2^k (1 + m)) in float32 for 1 + m in [sqrt(1/2), sqrt(2)]: log(1 + m) = 2 atanh(f) with f = m / (2 + m)."""
    f = m / (m + 2.0)
    f2 = f * f
    p = (2.0 / 9.0) * f2 + 2.0 / 7.0
    p = p * f2 + 2.0 / 5.0
    p = p * f2 + 2.0 / 3.0
    return k * _LN2_HIGH + (2.0 * f + (p * f2 * f + k * _LN2_LOW))


@triton.jit
def log(x):
    """log(x) for a normal x > 0, which is the only kind that the kernels pass, for zero and for infinity."""
    if x.dtype == tl.float64:
        y = tl.log(x)
    else:
        bits = tl.where(x > 1.1754944e-38, x, 1.1754944e-38).to(tl.int32, bitcast=True)
        k = (bits - _SQRT_HALF_BITS) >> 23
        m = (bits - (k << 23)).to(tl.float32, bitcast=True)
        y = _log_of_sum(m - 1.0, k.to(tl.float32))
        y = tl.where(x == 0.0, float("-inf"), y)
        y = tl.where(x < float("inf"), y, x)  # infinity and NaN
    return y


@triton.jit
def sigmoid_and_rest(x):
    """sigmoid(x) and 1 - sigmoid(x), neither of which loses digits where it is small."""
    e = exp(-tl.abs(x))  # at most 1
    r = 1.0 / (1.0 + e)
    return tl.where(x >= 0.0, r, e * r), tl.where(x >= 0.0, e * r, r)


@triton.jit
def log_sigmoid(x):
    """log(sigmoid(x)), finite where the sigmoid itself underflows: min(x, 0) - log(1 + exp(-|x|))."""
    e = exp(-tl.abs(x))
    if x.dtype == tl.float64:
        # log(1 + e), with the part of e that the sum loses
        s = 1.0 + e
        log_of_sum = tl.log(s) + (e - (s - 1.0)) / s
    else:
        large = e > 0.41421356
        log_of_sum = _log_of_sum(tl.where(large, 0.5 * e - 0.5, e), large.to(tl.float32))
    return tl.where(x < 0.0, x, 0.0) - log_of_sum


@triton.jit
def atan(x):
    """atan(x), from an odd polynomial of t with |t| <= tan(pi / 8).

    t is |x|, (|x| - 1) / (|x| + 1) or -1 / |x|, and atan |x| is atan t plus 0, pi / 4 or pi / 2.
    """
    a = tl.abs(x)
    above = a > 0.41421356237309505
    far = a > 2.414213562373095
    t = tl.where(far, -1.0, tl.where(above, a - 1.0, a)) / tl.where(far, a, tl.where(above, a + 1.0, 1.0))
    t2 = t * t
    # (atan(t) - t) / t^3, interpolated: remainders below 5e-18 and 2.4e-9
    if x.dtype == tl.float64:
        p = t2 * -1.9176887119062259e-2 + 3.92316582955871913e-2
        p = p * t2 - 5.08544973794025986e-2
        p = p * t2 + 5.85814891280220988e-2
        p = p * t2 - 6.664511447381948e-2
        p = p * t2 + 7.69218319082608656e-2
        p = p * t2 - 9.0909045781239019e-2
        p = p * t2 + 1.11111110152563617e-1
        p = p * t2 - 1.42857142846665429e-1
        p = p * t2 + 1.99999999999955207e-1
        p = p * t2 - 3.33333333333333302e-1
    else:
        p = t2 * -6.45192821e-2 + 1.07437315e-1
        p = p * t2 - 1.42639556e-1
        p = p * t2 + 1.99995405e-1
        p = p * t2 - 3.33333318e-1
    zero = t * 0.0  # of the dtype of x, which a number by itself has not
    base = tl.where(far, zero + 1.5707963267948966, tl.where(above, zero + 0.7853981633974483, zero))
    y = base + (p * t2 * t + t)
    return tl.where(x < 0.0, -y, y)


@triton.jit
def tanh_and_slope(x):
    """tanh(x) and its derivative, from m = exp(2 |x|) - 1.

    |tanh x| is m / (m + 2) for small |x| and 1 - 2 / (m + 2) for large. The derivative is 4 (m + 1) / (m + 2)^2.
    """
    if x.dtype == tl.float64:
        a = tl.where(tl.abs(x) > 350.0, 350.0, tl.abs(x))
        u = tl.exp(a + a)
        # (u - 1) / log(u) is a smooth function of u: rounding u cancels (Kahan)
        m = tl.where(u == 1.0, a + a, (u - 1.0) * ((a + a) / tl.log(tl.where(u == 1.0, 2.0, u))))
        m = tl.where(a > 0.5, u - 1.0, m)
    else:
        a = tl.where(tl.abs(x) > 43.0, 43.0, tl.abs(x))
        power_a, power_b, q = _exponential(a + a)
        power = power_a * power_b
        m = power * q + (power - 1.0)
        m = tl.where(x == x, m, x)
    large = a > 0.5
    quotient = tl.where(large, -2.0, m) / (m + 2.0)
    t = tl.where(large, quotient + 1.0, quotient)
    half = 2.0 / (m + 2.0)
    return tl.where(x < 0.0, -t, t), half * (half * (m + 1.0))
