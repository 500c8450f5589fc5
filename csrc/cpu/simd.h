// Vectors of this translation unit's width, and the functions that the kernels need on them.
//
// GCC and Clang vector extensions, and intrinsics only where they do not find the instruction: the same source serves
// every instruction set, and the width is a macro of the build (INVFLOW_VECTOR_BYTES). Everything has internal linkage,
// because the same file is compiled once per instruction set and a merged inline function could otherwise carry
// instructions that the processor lacks.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace {

#define INVFLOW_INLINE static inline __attribute__((always_inline))
#define INVFLOW_INLINE_MEMBER inline __attribute__((always_inline))

template <class T>
struct VectorOf;

template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(INVFLOW_VECTOR_BYTES)));
  typedef int32_t Int __attribute__((vector_size(INVFLOW_VECTOR_BYTES)));
  using IntLane = int32_t;
  static constexpr int32_t kSign = INT32_MIN;
  static constexpr int kMantissaBits = 23, kExponentBias = 127;
  static constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  // ln 2 = high + low; the product of an exponent and the first 15 bits is exact
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860682030941723e-6f;
  static constexpr float kExpLow = -176.0f, kExpHigh = 176.39f;  // see exponential
  static constexpr float kTanhLimit = 43.0f;                     // the derivative of tanh is 0 beyond
  static constexpr float kSmallest = 1.17549435e-38f;
  // (exp(r) - 1 - r) / r^2 for |r| <= ln(2)/2, highest power first: a fit by least squares (error below 1.2e-10; a
  // Taylor polynomial's, 5e-9, has one sign and adds up over an image)
  static constexpr float kExp[] = {1.99535548e-4f, 1.39357780e-3f, 8.33319763e-3f, 4.16664554e-2f, 1.0f / 6.0f, 0.5f};
  // (2 atanh(f) - 2 f) / f^3 in powers of f^2, |f| <= 0.1716: remainder below 8e-10 in the logarithm
  static constexpr float kLog[] = {2.0f / 9.0f, 2.0f / 7.0f, 2.0f / 5.0f, 2.0f / 3.0f};
  // (atan(t) - t) / t^3 in powers of t^2, |t| <= tan(pi / 8), interpolated: remainder below 2.4e-9
  static constexpr float kAtan[] = {-6.45192821e-2f, 1.07437315e-1f, -1.42639556e-1f, 1.99995405e-1f, -3.33333318e-1f};
};

template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(INVFLOW_VECTOR_BYTES)));
  typedef int64_t Int __attribute__((vector_size(INVFLOW_VECTOR_BYTES)));
  using IntLane = int64_t;
  static constexpr int64_t kSign = INT64_MIN;
  static constexpr int kMantissaBits = 52, kExponentBias = 1023;
  static constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2High = 0x1.62e42fee00000p-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kExpLow = -1418.5, kExpHigh = 1418.5;
  static constexpr double kTanhLimit = 350.0;
  static constexpr double kSmallest = 2.2250738585072014e-308;
  // Taylor: the first power left out is below 4e-18
  static constexpr double kExp[] = {1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0,
                                    1.0 / 362880.0,     1.0 / 40320.0,     1.0 / 5040.0,     1.0 / 720.0,
                                    1.0 / 120.0,        1.0 / 24.0,        1.0 / 6.0,        0.5};
  // remainder below 5e-18
  static constexpr double kAtan[] = {-1.9176887119062259e-2, 3.92316582955871913e-2, -5.08544973794025986e-2,
                                     5.85814891280220988e-2, -6.664511447381948e-2,  7.69218319082608656e-2,
                                     -9.0909045781239019e-2, 1.11111110152563617e-1, -1.42857142846665429e-1,
                                     1.99999999999955207e-1, -3.33333333333333302e-1};
  static constexpr double kLog[] = {2.0 / 21.0, 2.0 / 19.0, 2.0 / 17.0, 2.0 / 15.0, 2.0 / 13.0,
                                    2.0 / 11.0, 2.0 / 9.0,  2.0 / 7.0,  2.0 / 5.0,  2.0 / 3.0};
};

template <class T>
using Vec = typename VectorOf<T>::Type;
template <class T>
using IntVec = typename VectorOf<T>::Int;
template <class T>
constexpr int kLanes = INVFLOW_VECTOR_BYTES / sizeof(T);

template <class T>
INVFLOW_INLINE Vec<T> broadcast(T value) {
  return value - Vec<T>{};  // not a sum, which would turn -0 into 0 and is therefore carried out
}

template <class T>
INVFLOW_INLINE Vec<T> load(const T* from) {
  Vec<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <class T>
INVFLOW_INLINE void store(T* to, Vec<T> v) {
  std::memcpy(to, &v, sizeof(v));
}

// To an address aligned to the vector, past the caches where the processor can: for results that are too large to be
// found there again. finish_streaming() puts these stores before all that follow.
template <class T>
INVFLOW_INLINE void stream(T* to, Vec<T> v) {
#if INVFLOW_VECTOR_BYTES == 64 && defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(v));
#elif INVFLOW_VECTOR_BYTES == 32 && defined(__AVX__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(v));
#elif INVFLOW_VECTOR_BYTES == 16 && defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), reinterpret_cast<__m128i>(v));
#else
  store<T>(to, v);
#endif
}

INVFLOW_INLINE void finish_streaming() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// The first n < kLanes elements; the other lanes are zero.
template <class T>
INVFLOW_INLINE Vec<T> load_first(const T* from, int n) {
  T buffer[kLanes<T>] = {};
  std::memcpy(buffer, from, n * sizeof(T));
  return load<T>(buffer);
}

template <class T>
INVFLOW_INLINE void store_first(T* to, Vec<T> v, int n) {
  T buffer[kLanes<T>];
  store<T>(buffer, v);
  std::memcpy(to, buffer, n * sizeof(T));
}

template <class T>
INVFLOW_INLINE double sum_of_lanes(Vec<T> v) {
  double total = 0.0;
  for (int lane = 0; lane < kLanes<T>; ++lane) total += v[lane];
  return total;
}

template <class T>
INVFLOW_INLINE IntVec<T> as_int(Vec<T> v) {
  IntVec<T> i;
  std::memcpy(&i, &v, sizeof(i));
  return i;
}

template <class T>
INVFLOW_INLINE Vec<T> as_real(IntVec<T> i) {
  Vec<T> v;
  std::memcpy(&v, &i, sizeof(v));
  return v;
}

// Horner's rule, highest power first.
template <class T, int count>
INVFLOW_INLINE Vec<T> polynomial(Vec<T> x, const T (&coefficients)[count]) {
  Vec<T> p = broadcast<T>(coefficients[0]);
#pragma GCC unroll 16
  for (int i = 1; i < count; ++i) p = p * x + coefficients[i];
  return p;
}

// NaN stays NaN.
template <class T>
INVFLOW_INLINE Vec<T> clamp(Vec<T> x, T low, T high) {
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 4) return _mm512_min_ps(broadcast<T>(high), _mm512_max_ps(broadcast<T>(low), x));
#endif
  x = x < low ? broadcast<T>(low) : x;
  return x > high ? broadcast<T>(high) : x;
}

// exp(x) = 2^n (1 + q): x = n ln 2 + r with |r| <= ln(2)/2 and q = exp(r) - 1, a polynomial. 2^n comes in two factors,
// so that results overflow to infinity and underflow through the subnormals as they should. NaN stays NaN.
//
// x may be twice as large as the logarithm of any number. At kExpHigh both factors are the largest power of two, and
// the product with any normal number overflows. At kExpLow both are zero, as they are if n has no halves of its own.
template <class T>
struct Exponential {
  Vec<T> q, factor, other_factor;
};

template <class T>
INVFLOW_INLINE Exponential<T> exponential(Vec<T> x) {
  using V = VectorOf<T>;
  constexpr int shift = V::kMantissaBits, bias = V::kExponentBias;
  x = clamp<T>(x, V::kExpLow, V::kExpHigh);
  const Vec<T> rounded = x * T(1.44269504088896340736) + V::kRounder;
  const Vec<T> n = rounded - V::kRounder;
  Vec<T> r = x - n * V::kLn2High;
  r = r - n * V::kLn2Low;
  // the last bits of the sum with the rounder are n as an integer
  const IntVec<T> k = as_int<T>(rounded) - as_int<T>(broadcast<T>(V::kRounder)), half = k >> 1;
  return {(polynomial<T>(r, V::kExp) * r) * r + r, as_real<T>((half + bias) << shift),
          as_real<T>((k - half + bias) << shift)};
}

template <class T>
INVFLOW_INLINE Vec<T> exp(Vec<T> x) {
  const Exponential<T> e = exponential<T>(x);
  return (e.q + T(1)) * e.factor * e.other_factor;
}

// exp(x) as a product. The number that exp(x) multiplies is multiplied by one factor after the other: the result is
// then finite wherever it can be, although exp(x) may overflow, and loses nothing where exp(x) underflows.
template <class T>
struct TwoFactors {
  Vec<T> first, second;
};

template <class T>
INVFLOW_INLINE TwoFactors<T> exp_in_factors(Vec<T> x) {
  const Exponential<T> e = exponential<T>(x);
  return {(e.q + T(1)) * e.factor, e.other_factor};
}

// Several vectors that go through the same operations in step. The operations of one vector wait for each other, and a
// processor looks ahead only so far: it finds more to do where independent operations stand side by side.
template <class T, int n>
struct Group {
  Vec<T> v[n];
};

// 1 + exp(x) for |x| <= limit, where limit keeps 2^n among the normal numbers; what lies beyond is taken for the limit.
// The sum (1 + 2^n) + 2^n q comes with what rounding it lost: `high` is rounded, `low` the rest. `exp` is exp(x).
template <class T, int n>
struct OnePlusExp {
  Group<T, n> high, low, exp;
};

template <class T, int n>
INVFLOW_INLINE OnePlusExp<T, n> one_plus_exp_within(Group<T, n> x, T limit) {
  using V = VectorOf<T>;
  constexpr typename V::IntLane one = typename V::IntLane(V::kExponentBias) << V::kMantissaBits;
  Group<T, n> rounded, r, p, power, first, high, exp;
  for (int i = 0; i < n; ++i) x.v[i] = clamp<T>(x.v[i], -limit, limit);
  for (int i = 0; i < n; ++i) rounded.v[i] = x.v[i] * T(1.44269504088896340736) + V::kRounder;
  for (int i = 0; i < n; ++i) r.v[i] = x.v[i] - (rounded.v[i] - V::kRounder) * V::kLn2High;
  for (int i = 0; i < n; ++i) r.v[i] = r.v[i] - (rounded.v[i] - V::kRounder) * V::kLn2Low;
  for (int i = 0; i < n; ++i) p.v[i] = broadcast<T>(V::kExp[0]);
#pragma GCC unroll 16
  for (unsigned k = 1; k < sizeof(V::kExp) / sizeof(T); ++k)
    for (int i = 0; i < n; ++i) p.v[i] = p.v[i] * r.v[i] + V::kExp[k];
  for (int i = 0; i < n; ++i) p.v[i] = p.v[i] * r.v[i];
  for (int i = 0; i < n; ++i) p.v[i] = p.v[i] * r.v[i] + r.v[i];
  // the shift leaves n in the exponent
  for (int i = 0; i < n; ++i) power.v[i] = as_real<T>((as_int<T>(rounded.v[i]) << V::kMantissaBits) + one);
  for (int i = 0; i < n; ++i) first.v[i] = power.v[i] + T(1);
  for (int i = 0; i < n; ++i) high.v[i] = power.v[i] * p.v[i] + first.v[i];
  // exact: the second term is smaller than the first, and a product with a power of two is not rounded
  for (int i = 0; i < n; ++i) exp.v[i] = power.v[i] * p.v[i] + power.v[i];
  for (int i = 0; i < n; ++i) p.v[i] = power.v[i] * p.v[i] - (high.v[i] - first.v[i]);
  return {high, p, exp};
}

// 1 / b + c, where b is between 1 and 2^126. A division of 512-bit vectors takes 16 cycles, an approximate reciprocal
// and a Newton step 4.
template <class T, int n>
INVFLOW_INLINE Group<T, n> reciprocal_plus(const OnePlusExp<T, n>& b, T c) {
  Group<T, n> r, rest;
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 4) {
    for (int i = 0; i < n; ++i) r.v[i] = _mm512_rcp14_ps(b.high.v[i]);
    for (int i = 0; i < n; ++i) rest.v[i] = (T(1) - b.high.v[i] * r.v[i]) - b.low.v[i] * r.v[i];
    for (int i = 0; i < n; ++i) r.v[i] += rest.v[i] * r.v[i] + c;
    return r;
  }
#endif
  for (int i = 0; i < n; ++i) r.v[i] = T(1) / b.high.v[i];
  for (int i = 0; i < n; ++i) rest.v[i] = b.low.v[i] * r.v[i];
  for (int i = 0; i < n; ++i) r.v[i] += c - rest.v[i] * r.v[i];
  return r;
}

// a / b for b between 2^-100 and 2^120, to 1.5 units in the last place.
template <class T, int n>
INVFLOW_INLINE Group<T, n> quotient(Group<T, n> a, const Group<T, n>& b) {
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 4) {
    Group<T, n> r;
    for (int i = 0; i < n; ++i) r.v[i] = _mm512_rcp14_ps(b.v[i]);
    for (int i = 0; i < n; ++i) r.v[i] = r.v[i] + r.v[i] * (T(1) - b.v[i] * r.v[i]);
    for (int i = 0; i < n; ++i) a.v[i] *= r.v[i];
    return a;
  }
#endif
  for (int i = 0; i < n; ++i) a.v[i] /= b.v[i];
  return a;
}

// tanh and its derivative, from m = exp(2 |x|) - 1 = 2^n q + (2^n - 1), which loses nothing near zero: tanh |x| is
// m / (m + 2) for small and 1 - 2 / (m + 2) for large |x|, and the derivative 4 (m + 1) / (m + 2)^2, without
// cancellation.
template <class T>
struct ValueAndSlope {
  Vec<T> value, slope;
};

template <class T>
INVFLOW_INLINE ValueAndSlope<T> tanh_and_slope(Vec<T> x) {
  using V = VectorOf<T>;
  const IntVec<T> sign = as_int<T>(x) & V::kSign;
  Vec<T> a = as_real<T>(as_int<T>(x) ^ sign);
  a = a > V::kTanhLimit ? broadcast<T>(V::kTanhLimit) : a;
  const Exponential<T> e = exponential<T>(a + a);
  const Vec<T> power = e.factor * e.other_factor;
  const Vec<T> m = power * e.q + (power - T(1));
  const IntVec<T> large = a > T(0.5);
  const Vec<T> quotient = (large ? broadcast<T>(T(-2)) : m) / (m + T(2));
  const Vec<T> t = large ? quotient + T(1) : quotient;
  const Vec<T> half = T(2) / (m + T(2));
  return {as_real<T>(as_int<T>(t) | sign), half * (half * (m + T(1)))};
}

// atan(x): an odd polynomial of t with |t| <= tan(pi / 8), where t is x, (x - 1) / (x + 1) or -1 / x, and atan(x) is
// atan(t) plus 0, pi / 4 or pi / 2.
template <class T>
INVFLOW_INLINE Vec<T> atan(Vec<T> x) {
  using V = VectorOf<T>;
  const IntVec<T> sign = as_int<T>(x) & V::kSign;
  const Vec<T> a = as_real<T>(as_int<T>(x) ^ sign), one = broadcast<T>(T(1));
  const IntVec<T> above = a > T(0.41421356237309504880), far = a > T(2.41421356237309504880);
  const Vec<T> t = (far ? -one : above ? a - T(1) : a) / (far ? a : above ? a + T(1) : one);
  const Vec<T> t2 = t * t;
  const Vec<T> base = far     ? broadcast<T>(T(1.57079632679489661923))
                      : above ? broadcast<T>(T(0.78539816339744830962))
                              : Vec<T>{};
  const Vec<T> y = base + (polynomial<T>(t2, V::kAtan) * t2 * t + t);
  return as_real<T>(as_int<T>(y) | sign);
}

// log(x) for normal x > 0: x = 2^k m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh(f) with f = (m - 1) / (m + 1),
// |f| <= 0.1716, an odd series. Zero gives -infinity, NaN stays NaN; the kernels never pass a negative or a subnormal
// number.
template <class T>
INVFLOW_INLINE Vec<T> log(Vec<T> x) {
  using V = VectorOf<T>;
  using Lane = typename V::IntLane;
  const Vec<T> infinity = broadcast<T>(T(__builtin_inf()));
  const Vec<T> clamped = x < V::kSmallest ? broadcast<T>(V::kSmallest) : x;
  const IntVec<T> bits = as_int<T>(clamped);
  IntVec<T> k = ((bits >> V::kMantissaBits) & (2 * V::kExponentBias + 1)) - V::kExponentBias;
  Vec<T> m = as_real<T>((bits & ((Lane(1) << V::kMantissaBits) - 1)) | (Lane(V::kExponentBias) << V::kMantissaBits));
  const IntVec<T> large = m > T(1.41421356237309504880);
  m = large ? m * T(0.5) : m;
  k = k - large;  // a true comparison is -1
  const Vec<T> f = (m - T(1)) / (m + T(1));
  const Vec<T> f2 = f * f;
  const Vec<T> kf = __builtin_convertvector(k, Vec<T>);
  Vec<T> result = kf * V::kLn2High + (T(2) * f + (polynomial<T>(f2, V::kLog) * f2 * f + kf * V::kLn2Low));
  result = x == T(0) ? -infinity : result;
  result = x == infinity ? infinity : result;
  return x != x ? x : result;
}

// log(1 / (1 + exp(-x))), finite where the sigmoid itself underflows: min(x, 0) - log(1 + e) with e = exp(-|x|) <= 1,
// the logarithm as in log() but from e, so that no sum with 1 is rounded: f = e / (2 + e), and (e - 1) / (e + 3) beyond
// sqrt(2).
template <class T>
INVFLOW_INLINE Vec<T> log_sigmoid(Vec<T> x) {
  using V = VectorOf<T>;
  const Vec<T> e = exp<T>(x < T(0) ? x : -x);
  const IntVec<T> large = e > T(0.41421356237309504880);
  const Vec<T> f = (large ? e - T(1) : e) / (large ? e + T(3) : e + T(2));
  const Vec<T> f2 = f * f, k = large ? broadcast<T>(T(1)) : Vec<T>{};
  const Vec<T> log_of_sum = k * V::kLn2High + (T(2) * f + (polynomial<T>(f2, V::kLog) * f2 * f + k * V::kLn2Low));
  return (x < T(0) ? x : Vec<T>{}) - log_of_sum;
}

// The lanes of two vectors in turn, beginning with the first halves or with the second.
template <class T, bool second, int... lane>
INVFLOW_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int, lane...>) {
  constexpr int n = kLanes<T>;
  return __builtin_shufflevector(a, b, ((second ? n / 2 : 0) + lane / 2 + (lane % 2) * n)...);
}

// Transposes a block of kLanes x kLanes: rows of `from` become columns of `to`. Every round interleaves the first half
// of the rows with the second; after log2(kLanes) rounds each element has changed its row for its column.
template <class T>
INVFLOW_INLINE void transpose_block(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  constexpr int n = kLanes<T>;
  constexpr std::make_integer_sequence<int, n> lanes{};
  Vec<T> rows[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) rows[i] = load<T>(from + i * from_stride);
#pragma GCC unroll 4
  for (int round = 1; round < n; round *= 2) {
    Vec<T> next[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave<T, false>(rows[i], rows[i + n / 2], lanes);
      next[2 * i + 1] = interleave<T, true>(rows[i], rows[i + n / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = next[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) store<T>(to + i * to_stride, rows[i]);
}

}  // namespace
