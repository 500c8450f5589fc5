// Arithmetic of PTX on host values, where C++ differs from it. Compile with -ffp-contract=off.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace cuda_on_cpu {

// Approximate functions (ex2.approx and its like) give the correctly rounded value, or with this set, one that is wrong
// by as much as the PTX manual admits, up or down as a hash of the value says.
extern bool worst_approximations;

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "a change of type, not of size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

inline float as_f32(uint32_t bits) { return bits_as<float>(bits); }
inline double as_f64(uint64_t bits) { return bits_as<double>(bits); }
inline uint32_t f32_bits(float value) { return bits_as<uint32_t>(value); }
inline uint64_t f64_bits(double value) { return bits_as<uint64_t>(value); }

// ---- float16, bfloat16, tf32
// ------------------------------------------------------------------------------------------------

inline float as_f16(uint16_t bits) { return static_cast<float>(bits_as<_Float16>(bits)); }
// From double at once, so that values are rounded a single time.
inline uint16_t f16_bits(double value) { return bits_as<uint16_t>(static_cast<_Float16>(value)); }
inline uint16_t f16_bits(float value) { return bits_as<uint16_t>(static_cast<_Float16>(value)); }

inline float as_bf16(uint16_t bits) { return as_f32(static_cast<uint32_t>(bits) << 16); }
inline uint16_t bf16_bits(float value) {
  if (std::isnan(value)) return 0x7fff;
  const uint32_t bits = f32_bits(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
// The double is first rounded to odd, which makes the second rounding harmless.
inline uint16_t bf16_bits(double value) {
  float rounded = static_cast<float>(value);
  if (std::isfinite(rounded) && rounded != value && !(f32_bits(rounded) & 1)) {
    rounded = std::nextafterf(rounded, value > rounded ? INFINITY : -INFINITY);
  }
  return bf16_bits(rounded);
}
inline uint16_t f16_bits_towards_zero(float value) {
  const uint16_t bits = f16_bits(value);
  return std::isfinite(value) && std::fabs(as_f16(bits)) > std::fabs(value) ? bits - 1 : bits;
}
inline uint16_t bf16_bits_towards_zero(float value) {
  return std::isnan(value) ? 0x7fff : static_cast<uint16_t>(f32_bits(value) >> 16);
}

constexpr uint32_t TF32_BITS = 0xffffe000u;  // what a tf32 product sees of a float32
inline uint32_t tf32_bits(float value) {     // to nearest, ties away from zero
  const uint32_t bits = f32_bits(value);
  return std::isfinite(value) ? (bits + 0x1000) & TF32_BITS : bits;
}
inline uint32_t tf32_bits_nearest_even(float value) {
  const uint32_t bits = f32_bits(value);
  return std::isfinite(value) ? (bits + 0xfff + (bits >> 13 & 1)) & TF32_BITS : bits;
}

// ---- float32 and float64
// ----------------------------------------------------------------------------------------------------

inline float flush(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.f, value) : value; }
inline double flush(double value) { return value; }  // .ftz has no effect on float64
template <typename T>
inline T saturate(T value) {  // NaN becomes 0
  return value > 0 ? (value < 1 ? value : T(1)) : T(0);
}
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }

template <typename T>
inline T smaller(T a, T b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
template <typename T>
inline T larger(T a, T b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  return a > b || (a == b && !std::signbit(a)) ? a : b;
}
template <typename T>
inline T smaller_or_nan(T a, T b) {
  return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : smaller(a, b);
}
template <typename T>
inline T larger_or_nan(T a, T b) {
  return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : larger(a, b);
}

// Rounding to float32 towards -infinity ('m'), +infinity ('p') or zero ('z'): the nearest float is moved if it lies on
// the wrong side of the exact value, `value + rest`.
inline float towards(char direction, long double value, long double rest = 0) {
  const float nearest = static_cast<float>(value);
  const long double above = (nearest - value) - rest;
  const bool exact_is_negative = value < 0;
  if (above > 0 && (direction == 'm' || (direction == 'z' && !exact_is_negative)))
    return std::nextafterf(nearest, -INFINITY);
  if (above < 0 && (direction == 'p' || (direction == 'z' && exact_is_negative)))
    return std::nextafterf(nearest, INFINITY);
  return nearest;
}
// a b + c; the product of two float32 is exact in float64, and what the sum loses is recovered (Knuth's two-sum).
inline float fused_towards(char direction, float a, float b, float c) {
  const double product = double(a) * b, sum = product + c, addend = sum - product;
  if (!std::isfinite(sum)) return static_cast<float>(sum);
  return towards(direction, sum, (product - (sum - addend)) + (c - addend));
}

// ---- approximations
// ---------------------------------------------------------------------------------------------------------

inline bool pushed_up(uint64_t bits) { return (bits * 0x9e3779b97f4a7c15ull) >> 63; }
inline float off_by(float value, int units) {  // of the last place
  if (!worst_approximations || !std::isfinite(value) || value == 0) return value;
  for (int i = 0; i < units; ++i) value = std::nextafterf(value, pushed_up(f32_bits(value)) ? INFINITY : -INFINITY);
  return value;
}
inline float off_by_relative(float value, float error) {
  if (!worst_approximations || !std::isfinite(value)) return value;
  return value * (pushed_up(f32_bits(value)) ? 1 + error : 1 - error);
}
inline float off_by_absolute(float value, float error) {
  if (!worst_approximations || !std::isfinite(value)) return value;
  return value + (pushed_up(f32_bits(value)) ? error : -error);
}
inline float approximate_ex2(float x) { return off_by(static_cast<float>(std::exp2(double(x))), 2); }
inline float approximate_lg2(float x) {
  const float value = static_cast<float>(std::log2(double(x)));
  return x > 0.5f && x < 2 ? off_by_absolute(value, 0x1p-22f) : off_by(value, 2);
}
inline float approximate_rcp(float x) { return off_by(1 / x, 1); }
inline float approximate_sqrt(float x) { return off_by_relative(std::sqrt(x), 0x1p-23f); }
inline float approximate_rsqrt(float x) {
  return off_by_relative(static_cast<float>(1 / std::sqrt(double(x))), 1.28e-7f);
}
inline float approximate_div(float a, float b) { return off_by(a / b, 2); }
inline float approximate_sin(float x) { return off_by_absolute(static_cast<float>(std::sin(double(x))), 6.7e-7f); }
inline float approximate_cos(float x) { return off_by_absolute(static_cast<float>(std::cos(double(x))), 6.7e-7f); }
inline float approximate_tanh(float x) { return off_by_relative(static_cast<float>(std::tanh(double(x))), 0x1p-11f); }
// rcp.approx.ftz.f64 and rsqrt.approx.ftz.f64 deal in the upper 32 bits only; subnormals count as zero.
inline double upper_half(double x) { return as_f64(f64_bits(x) & 0xffffffff00000000ull); }
inline double flush_f64(double x) { return std::fabs(x) < 0x1p-1022 ? std::copysign(0.0, x) : x; }
inline double approximate_rcp_f64(double x) { return upper_half(flush_f64(1 / flush_f64(upper_half(x)))); }
inline double approximate_rsqrt_f64(double x) { return upper_half(1 / std::sqrt(flush_f64(upper_half(x)))); }

// ---- integers
// ---------------------------------------------------------------------------------------------------------------

template <typename T>
inline T absolute(T a) {
  return a < 0 ? T(0) - std::make_unsigned_t<T>(a) : a;
}
// A division by zero gives what the hardware gives.
template <typename T>
inline T quotient(T a, T b) {
  if (b == 0) return T(-1);
  if (std::is_signed_v<T> && b == T(-1)) return T(0 - std::make_unsigned_t<T>(a));
  return a / b;
}
template <typename T>
inline T remainder(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == T(-1)) return 0;
  return a % b;
}
inline uint16_t high_product(uint16_t a, uint16_t b) { return (uint32_t(a) * b) >> 16; }
inline int16_t high_product(int16_t a, int16_t b) { return (int32_t(a) * b) >> 16; }
inline uint32_t high_product(uint32_t a, uint32_t b) { return (uint64_t(a) * b) >> 32; }
inline int32_t high_product(int32_t a, int32_t b) { return (int64_t(a) * b) >> 32; }
inline uint64_t high_product(uint64_t a, uint64_t b) { return (static_cast<unsigned __int128>(a) * b) >> 64; }
inline int64_t high_product(int64_t a, int64_t b) { return (static_cast<__int128>(a) * b) >> 64; }

template <typename T>
inline T shift_left(T a, uint32_t n) {
  return n >= 8 * sizeof(T) ? 0 : static_cast<T>(a << n);
}
template <typename T>
inline T shift_right(T a, uint32_t n) {
  if (n < 8 * sizeof(T)) return static_cast<T>(a >> n);
  return std::is_signed_v<T> && a < 0 ? T(-1) : T(0);
}
// shf: a funnel shift of the 64 bits high:low.
inline uint32_t funnel_shift(uint32_t low, uint32_t high, uint32_t n, bool left, bool wrap) {
  n = wrap ? n & 31 : (n < 32 ? n : 32);
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  if (!left) return static_cast<uint32_t>(both >> n);
  return n == 32 ? low : static_cast<uint32_t>(both << n >> 32);
}
// prmt in its default mode: four bytes picked from eight.
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t pick = selector >> 4 * i & 15;
    uint32_t byte = bytes >> 8 * (pick & 7) & 0xff;
    if (pick & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign, replicated
    result |= byte << 8 * i;
  }
  return result;
}
// lop3: any function of three bits, given as its truth table.
inline uint32_t lookup_logic(uint32_t a, uint32_t b, uint32_t c, unsigned table) {
  uint32_t result = 0;
  for (int i = 0; i < 8; ++i) {
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return result;
}
template <typename T>
inline T extract_bits(T a, uint32_t position, uint32_t length) {
  constexpr unsigned SIZE = 8 * sizeof(T);
  position &= 0xff;
  length &= 0xff;
  const unsigned top = position + length - 1 < SIZE ? position + length - 1 : SIZE - 1;
  const bool sign = std::is_signed_v<T> && length && (uint64_t(a) >> top & 1);
  T result = 0;
  for (unsigned i = 0; i < SIZE; ++i) {
    const bool bit = i < length && position + i < SIZE ? uint64_t(a) >> (position + i) & 1 : sign;
    result = static_cast<T>(result | T(bit) << i);
  }
  return result;
}
template <typename T>
inline T insert_bits(T from, T into, uint32_t position, uint32_t length) {
  constexpr unsigned SIZE = 8 * sizeof(T);
  position &= 0xff;
  length &= 0xff;
  for (unsigned i = 0; i < length && position + i < SIZE; ++i) {
    const T bit = T(1) << (position + i);
    into = (into & ~bit) | (from >> i & 1 ? bit : 0);
  }
  return into;
}
inline uint32_t leading_zeros(uint64_t a, int size) { return a ? __builtin_clzll(a) - (64 - size) : size; }
// bfind: the highest bit that is not the sign's, or the shift that brings it to the top; all ones if there is none.
template <typename T>
inline uint32_t highest_bit(T a, bool as_shift) {
  constexpr int SIZE = 8 * sizeof(T);
  const auto bits = static_cast<std::make_unsigned_t<T>>(a < 0 ? ~a : a);
  if (!bits) return ~0u;
  const uint32_t zeros = leading_zeros(bits, SIZE);
  return as_shift ? zeros : SIZE - 1 - zeros;
}
template <typename T>
inline T reversed_bits(T a) {
  T result = 0;
  for (unsigned i = 0; i < 8 * sizeof(T); ++i) result |= (a >> i & 1) << (8 * sizeof(T) - 1 - i);
  return result;
}

// ---- conversions to integers
// ------------------------------------------------------------------------------------------------

// Of a float that is a whole number already: saturates; NaN gives 0.
template <typename T, typename F>
inline T to_integer(F value) {
  constexpr T LOWEST = std::numeric_limits<T>::min(), HIGHEST = std::numeric_limits<T>::max();
  if (std::isnan(value)) return 0;
  if (value <= static_cast<F>(LOWEST)) return LOWEST;
  if (value >= static_cast<F>(HIGHEST)) return HIGHEST;
  return static_cast<T>(value);
}
// cvt.sat between integers.
template <typename T>
inline T clamp_integer(__int128 value) {
  constexpr __int128 LOWEST = std::numeric_limits<T>::min(), HIGHEST = std::numeric_limits<T>::max();
  return static_cast<T>(value < LOWEST ? LOWEST : value > HIGHEST ? HIGHEST : value);
}

}  // namespace cuda_on_cpu
