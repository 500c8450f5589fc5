// Vectors of float32 of this translation unit's width, and the functions that the kernels need on them.
//
// GCC and Clang vector extensions, no intrinsics: the same source serves every instruction set, and the width is a
// macro of the build (INVFLOW_VECTOR_BYTES). Everything has internal linkage, because the same file is compiled once per
// instruction set and a merged inline function could otherwise carry instructions that the processor lacks.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

constexpr int kLanes = INVFLOW_VECTOR_BYTES / 4;
typedef float vfloat __attribute__((vector_size(INVFLOW_VECTOR_BYTES)));
typedef int32_t vint __attribute__((vector_size(INVFLOW_VECTOR_BYTES)));

#define INVFLOW_INLINE static inline __attribute__((always_inline))

INVFLOW_INLINE vfloat broadcast(float value) { return vfloat{} + value; }

INVFLOW_INLINE vfloat load(const float* from) {
  vfloat v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

INVFLOW_INLINE void store(float* to, vfloat v) { std::memcpy(to, &v, sizeof(v)); }

// The first n < kLanes floats; the other lanes are zero.
INVFLOW_INLINE vfloat load_first(const float* from, int n) {
  float buffer[kLanes] = {};
  std::memcpy(buffer, from, n * sizeof(float));
  return load(buffer);
}

INVFLOW_INLINE void store_first(float* to, vfloat v, int n) {
  float buffer[kLanes];
  store(buffer, v);
  std::memcpy(to, buffer, n * sizeof(float));
}

INVFLOW_INLINE vint as_int(vfloat v) {
  vint i;
  std::memcpy(&i, &v, sizeof(i));
  return i;
}

INVFLOW_INLINE vfloat as_float(vint i) {
  vfloat v;
  std::memcpy(&v, &i, sizeof(v));
  return v;
}

// exp(x) = 2^n (1 + q): x = n ln 2 + r with |r| <= ln(2)/2 and q = exp(r) - 1, a polynomial of degree 7 fitted by least
// squares (error below 1.2e-10; a Taylor polynomial's, 5e-9, has one sign and adds up over an image). 2^n comes in two
// factors, so that results overflow to infinity and underflow through the subnormals as they should. NaN stays NaN.
struct Exponential {
  vfloat q, factor, other_factor;
};

INVFLOW_INLINE Exponential exponential(vfloat x) {
  const vfloat low = broadcast(-104.0f), high = broadcast(89.0f);
  x = x < low ? low : x;
  x = x > high ? high : x;
  const vfloat round = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const vfloat n = (x * 1.44269504088896341f + round) - round;
  vfloat r = x - n * 0.693145751953125f;  // the first 15 bits of ln 2: the product is exact
  r = r - n * 1.42860682030941723e-6f;
  vfloat p = broadcast(1.99535548e-4f);
  p = p * r + 1.39357780e-3f;
  p = p * r + 8.33319763e-3f;
  p = p * r + 4.16664554e-2f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  const vint k = __builtin_convertvector(n, vint), half = k >> 1;
  return {(p * r) * r + r, as_float((half + 127) << 23), as_float((k - half + 127) << 23)};
}

INVFLOW_INLINE vfloat exp(vfloat x) {
  const Exponential e = exponential(x);
  return (e.q + 1.0f) * e.factor * e.other_factor;
}

// tanh and its derivative, from m = exp(2 |x|) - 1 = 2^n q + (2^n - 1), which loses nothing near zero: tanh |x| is
// m / (m + 2) for small and 1 - 2 / (m + 2) for large |x|, and the derivative 4 (m + 1) / (m + 2)^2, without cancellation.
struct TanhAndSlope {
  vfloat tanh, slope;
};

INVFLOW_INLINE TanhAndSlope tanh_and_slope(vfloat x) {
  const vfloat limit = broadcast(43.0f);  // from here on the derivative is zero, and m would soon overflow
  const vint sign = as_int(x) & INT32_MIN;
  vfloat a = as_float(as_int(x) ^ sign);
  a = a > limit ? limit : a;
  const Exponential e = exponential(a + a);
  const vfloat power = e.factor * e.other_factor;
  const vfloat m = power * e.q + (power - 1.0f);
  const vint large = a > 0.5f;
  const vfloat quotient = (large ? broadcast(-2.0f) : m) / (m + 2.0f);
  const vfloat t = large ? quotient + 1.0f : quotient;
  const vfloat half = 2.0f / (m + 2.0f);
  return {as_float(as_int(t) | sign), half * (half * (m + 1.0f))};
}

// log(x) for normal x > 0: x = 2^k m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh(f) with f = (m - 1) / (m + 1),
// |f| <= 0.1716, odd series to f^9 (remainder below 8e-10). Zero gives -infinity, NaN stays NaN; the kernels never pass a
// negative number. A subnormal argument is treated as the smallest normal number.
INVFLOW_INLINE vfloat log(vfloat x) {
  const vfloat smallest = broadcast(1.17549435e-38f), infinity = broadcast(__builtin_inff());
  const vfloat clamped = x < smallest ? smallest : x;
  const vint bits = as_int(clamped);
  vint k = ((bits >> 23) & 255) - 127;
  vfloat m = as_float((bits & 0x007fffff) | 0x3f800000);
  const vint large = m > 1.41421356f;
  m = large ? m * 0.5f : m;
  k = k - large;  // a true comparison is -1
  const vfloat f = (m - 1.0f) / (m + 1.0f);
  const vfloat f2 = f * f;
  vfloat p = broadcast(2.0f / 9.0f);
  p = p * f2 + 2.0f / 7.0f;
  p = p * f2 + 2.0f / 5.0f;
  p = p * f2 + 2.0f / 3.0f;
  const vfloat kf = __builtin_convertvector(k, vfloat);
  vfloat result = kf * 0.693145751953125f + (2.0f * f + (p * f2 * f + kf * 1.42860682030941723e-6f));
  result = x == 0.0f ? -infinity : result;
  result = x == infinity ? infinity : result;
  return x != x ? x : result;
}

// log(1 / (1 + exp(-x))), finite where the sigmoid itself underflows: min(x, 0) - log(1 + e) with e = exp(-|x|), the last
// term corrected for what rounding 1 + e lost.
INVFLOW_INLINE vfloat log_sigmoid(vfloat x) {
  const vfloat e = exp(x < 0.0f ? x : -x);
  const vfloat u = e + 1.0f;
  const vfloat log_u = log(u) + (e - (u - 1.0f)) / u;
  return (x < 0.0f ? x : broadcast(0.0f)) - log_u;
}

}  // namespace
