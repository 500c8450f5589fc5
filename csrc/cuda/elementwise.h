// Elementwise affine maps of pixels, their log-determinants and their gradients.
//
// With s the scale made from `raw` and t the shift (both from h):
//   shift_then_scale: y = (x + t) s    inverse: y = x / s - t
//   scale_then_shift: y = x s + t      inverse: y = (x - t) / s
//   log_det = sum log s                inverse: -sum log s
// Without a scale, s is 1 and h has no raw scales.
//
// The accurate functions are called, not the fast ones, and scales are divided by, not multiplied by their reciprocals:
// results are as close to the truth as those of plain PyTorch. A scale that leaves the normal numbers is split in two
// (see excess_of), so that a result is finite wherever it can be.
#pragma once

#include "storage.h"

namespace invflow::cuda {

INVFLOW_DEVICE float exp_of(float x) { return expf(x); }
INVFLOW_DEVICE double exp_of(double x) { return exp(x); }
INVFLOW_DEVICE float log_of(float x) { return logf(x); }
INVFLOW_DEVICE double log_of(double x) { return log(x); }
INVFLOW_DEVICE float log1p_of(float x) { return log1pf(x); }
INVFLOW_DEVICE double log1p_of(double x) { return log1p(x); }
INVFLOW_DEVICE float tanh_of(float x) { return tanhf(x); }
INVFLOW_DEVICE double tanh_of(double x) { return tanh(x); }
INVFLOW_DEVICE float atan_of(float x) { return atanf(x); }
INVFLOW_DEVICE double atan_of(double x) { return atan(x); }

// The scale is split where its logarithm is larger than this: e^-kLogLimit is a normal number.
template <class T>
constexpr T kLogLimit = sizeof(T) == 4 ? 80 : 700;

// Not fminf, which drops a NaN.
template <class T>
INVFLOW_DEVICE T clamp(T x, T limit) {
  return x < -limit ? -limit : (x > limit ? limit : x);
}

// The argument x of a sigmoid, which is as small as e^x. With an eps the scale is not.
template <class T>
INVFLOW_DEVICE T limited(T x, T parameter) {
  return parameter == T(0) && x < -kLogLimit<T> ? -kLogLimit<T> : x;
}

// What the limit takes from log(scale): the scale stands for scale * e^excess. Other scales than the exponential and
// the sigmoid without eps stay within the limit (see AffineForm).
template <class T>
INVFLOW_DEVICE T excess_of(Scale kind, T raw, T parameter) {
  if (kind == Scale::kExp) return raw - clamp(raw, kLogLimit<T>);
  const T x = raw + T(2);
  return kind == Scale::kSigmoid && limited(x, parameter) != x ? x + kLogLimit<T> : T(0);
}

// x e^excess. Beyond four limits nothing but zero and infinity comes out.
template <class T>
INVFLOW_DEVICE T with_excess(T x, T excess) {
  const T factor = exp_of(clamp(excess, 4 * kLogLimit<T>) / T(4));
  return x * factor * factor * factor * factor;
}

// The bounded scales are e^(amplitude f(raw / width)), where f is tanh or atan.
template <class T>
struct Bounds {
  bool atan;
  T amplitude, width;
};

template <class T>
INVFLOW_DEVICE Bounds<T> bounds_of(Scale kind, T parameter) {
  const bool atan = kind == Scale::kBoundedAtanExp || kind == Scale::kAtanExp;
  const bool divides = kind == Scale::kBoundedExp || kind == Scale::kBoundedAtanExp;
  return {atan, atan ? T(0.636) * parameter : parameter, divides ? parameter : T(1)};
}

template <class T>
struct ScaleAndLog {
  T scale, log;
};

template <class T>
INVFLOW_DEVICE ScaleAndLog<T> scale_and_log_of(Scale kind, T raw, T parameter) {
  if (kind == Scale::kSigmoid) {
    const T x = raw + T(2), scale = T(1) / (T(1) + exp_of(-limited(x, parameter))) + parameter;
    // without eps the logarithm has a form that stays finite where the sigmoid underflows
    const T log = parameter > T(0) ? log_of(scale) : (x < T(0) ? x : T(0)) - log1p_of(exp_of(x < T(0) ? x : -x));
    return {scale, log};
  }
  if (kind == Scale::kNone) return {T(1), T(0)};
  T log = raw;
  if (kind != Scale::kExp) {
    const Bounds<T> bounds = bounds_of(kind, parameter);
    const T x = raw / bounds.width;
    log = bounds.amplitude * (bounds.atan ? atan_of(x) : tanh_of(x));
  }
  return {exp_of(clamp(log, kLogLimit<T>)), log};
}

// The slope is d log(scale) / d raw.
template <class T>
struct ScaleAndSlope {
  T scale, slope;
};

template <class T>
INVFLOW_DEVICE ScaleAndSlope<T> scale_and_slope_of(Scale kind, T raw, T parameter) {
  if (kind == Scale::kSigmoid) {
    const T e = exp_of(-limited(raw + T(2), parameter)), sigmoid = T(1) / (T(1) + e), scale = sigmoid + parameter;
    // 1 - sigmoid = e sigmoid without cancellation; e overflows only where the sigmoid is zero
    const T rest = sigmoid == T(0) ? T(1) : e * sigmoid;
    return {scale, parameter > T(0) ? sigmoid * rest / scale : rest};
  }
  if (kind == Scale::kExp) return {exp_of(clamp(raw, kLogLimit<T>)), T(1)};
  if (kind == Scale::kNone) return {T(1), T(0)};
  const Bounds<T> bounds = bounds_of(kind, parameter);
  const T x = raw / bounds.width, slope = bounds.amplitude / bounds.width;
  if (bounds.atan) return {exp_of(bounds.amplitude * atan_of(x)), slope / (T(1) + x * x)};
  const T tanh = tanh_of(x);
  return {exp_of(bounds.amplitude * tanh), slope * ((T(1) - tanh) * (T(1) + tanh))};
}

// The channels of h that belong to transformed channel c.
INVFLOW_DEVICE int64_t shift_channel(const AffineMap& map, int64_t c) {
  return map.packing == Packing::kCross && map.scale != Scale::kNone ? 2 * c : c;
}
INVFLOW_DEVICE int64_t raw_channel(const AffineMap& map, int64_t c) {
  return map.packing == Packing::kCross ? 2 * c + 1 : map.count + c;
}

// Place in the map's h of the values for some pixels of the state.
INVFLOW_DEVICE Pixels in_h(const AffineMap& map, Pixels at) {
  return {at.sample / static_cast<int>(map.repeat), at.first};
}

// Shift and raw scale of transformed channel c at the pixels.
template <class Access>
INVFLOW_DEVICE void load_shift(const AffineMap& map, Pixels at, int64_t c,
                               typename Access::T (&shift)[Access::kPixels]) {
  Access::load(map.h, offset_of(map.h, in_h(map, at), shift_channel(map, c)), shift);
}
template <class Access>
INVFLOW_DEVICE void load_raw(const AffineMap& map, Pixels at, int64_t c, typename Access::T (&raw)[Access::kPixels]) {
  if (map.scale == Scale::kNone) {
#pragma unroll
    for (int j = 0; j < Access::kPixels; ++j) raw[j] = 0;
    return;
  }
  Access::load(map.h, offset_of(map.h, in_h(map, at), raw_channel(map, c)), raw);
}

// x s, or x / s for the inverse.
template <class Map, class T>
INVFLOW_DEVICE T scaled(const Map& map, T scale, T excess, T x) {
  const T y = map.inverse ? x / scale : x * scale;
  return excess == T(0) ? y : with_excess(y, map.inverse ? -excess : excess);
}

// x becomes y; returns the log-determinant.
template <class Map, class T, int n>
INVFLOW_DEVICE T apply(const Map& map, const T (&shift)[n], const T (&raw)[n], T (&x)[n]) {
  const T parameter = static_cast<T>(map.parameter);
  const bool shift_first = map.order == Order::kShiftThenScale;
  T log_det = 0;
#pragma unroll
  for (int j = 0; j < n; ++j) {
    const ScaleAndLog<T> s = scale_and_log_of(map.scale, raw[j], parameter);
    const T excess = excess_of(map.scale, raw[j], parameter);
    if (map.inverse) {
      const T y = scaled(map, s.scale, excess, shift_first ? x[j] : x[j] - shift[j]);
      x[j] = shift_first ? y - shift[j] : y;
    } else {
      const T y = scaled(map, s.scale, excess, shift_first ? x[j] + shift[j] : x[j]);
      x[j] = shift_first ? y : y + shift[j];
    }
    log_det += s.log;
  }
  return map.inverse ? -log_det : log_det;
}

// x, channel `channel` of the state, through the map if it transforms that channel; returns the log-determinant.
template <class Access>
INVFLOW_DEVICE typename Access::T apply_to_channel(const AffineMap& map, Pixels at, int channel,
                                                   typename Access::T (&x)[Access::kPixels]) {
  const int64_t c = channel - map.start;
  if (c < 0 || c >= map.count) return 0;
  typename Access::T shift[Access::kPixels], raw[Access::kPixels];
  load_shift<Access>(map, at, c, shift);
  load_raw<Access>(map, at, c, raw);
  return apply(map, shift, raw, x);
}

// See scaled_part.
template <class Map, class T, int n>
INVFLOW_DEVICE void add_shift(const Map& map, const T (&shift)[n], T (&x)[n]) {
  if ((map.order == Order::kShiftThenScale) == map.inverse) return;
#pragma unroll
  for (int j = 0; j < n; ++j) x[j] = map.inverse ? x[j] - shift[j] : x[j] + shift[j];
}

// Replaces x, of transformed channel c, by the operand of the scale: x, or x with the shift. The gradients depend on it
// and on the raw scale.
template <class Access>
INVFLOW_DEVICE void scaled_part(const AffineMap& map, Pixels at, int64_t c, typename Access::T (&x)[Access::kPixels]) {
  if ((map.order == Order::kShiftThenScale) == map.inverse) return;
  typename Access::T shift[Access::kPixels];
  load_shift<Access>(map, at, c, shift);
  add_shift(map, shift, x);
}

// `grad`, the gradient of y, becomes that of x; `operand` (see scaled_part) becomes that of the shift, and `raw` that
// of itself.
template <class Map, class T, int n>
INVFLOW_DEVICE void differentiate(const Map& map, T grad_log_det, T (&operand)[n], T (&raw)[n], T (&grad)[n]) {
  const T parameter = static_cast<T>(map.parameter);
  const bool shift_first = map.order == Order::kShiftThenScale;
#pragma unroll
  for (int j = 0; j < n; ++j) {
    const ScaleAndSlope<T> s = scale_and_slope_of(map.scale, raw[j], parameter);
    const T excess = excess_of(map.scale, raw[j], parameter);
    const T grad_x = scaled(map, s.scale, excess, grad[j]);
    // dy / d log(scale), or its opposite for the inverse
    const T product = scaled(map, s.scale, excess, operand[j]);
    const T grad_raw = (grad[j] * product + grad_log_det) * s.slope;
    raw[j] = map.inverse ? -grad_raw : grad_raw;
    if (map.inverse)
      operand[j] = shift_first ? -grad[j] : -grad_x;
    else
      operand[j] = shift_first ? grad_x : grad[j];
    grad[j] = grad_x;
  }
}

// Place in which the gradient of an h is summed over the samples that share it, in the arithmetic's type: grad_h itself
// if it has that type. One thread adds them, one after the other.
struct SharedSums {
  View before[kMaxMaps], after;
};

template <class T, int n>
INVFLOW_DEVICE void add_sum(const View& sums, int64_t offset, T (&values)[n]) {
  T sum[n];
  load_run<T>(sums.data, offset, sum);
#pragma unroll
  for (int j = 0; j < n; ++j) values[j] += sum[j];
}

// Writes the gradients of shift and raw of transformed channel c, or adds them to those of the samples before.
template <class Access>
INVFLOW_DEVICE void store_grad_h(const AffineMap& map, const View& sums, Pixels at, int64_t c,
                                 typename Access::T (&grad_shift)[Access::kPixels],
                                 typename Access::T (&grad_raw)[Access::kPixels]) {
  const Pixels to = in_h(map, at);
  const int turn = at.sample - to.sample * static_cast<int>(map.repeat);
  const int64_t shift = shift_channel(map, c), raw = raw_channel(map, c);
  const bool has_raw = map.scale != Scale::kNone;
  if (turn > 0) {
    add_sum(sums, offset_of(sums, to, shift), grad_shift);
    if (has_raw) add_sum(sums, offset_of(sums, to, raw), grad_raw);
  }
  if (turn == map.repeat - 1) {
    Access::store(map.grad_h, offset_of(map.grad_h, to, shift), grad_shift);
    if (has_raw) Access::store(map.grad_h, offset_of(map.grad_h, to, raw), grad_raw);
  } else {
    store_run<typename Access::T>(sums.data, offset_of(sums, to, shift), grad_shift);
    if (has_raw) store_run<typename Access::T>(sums.data, offset_of(sums, to, raw), grad_raw);
  }
}

}  // namespace invflow::cuda
