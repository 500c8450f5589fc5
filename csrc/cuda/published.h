// Elementwise maps of the published form, a sigmoid with an eps and the shift first, for kernels of vectors: what a map
// is, is known to the compiler, and what can be computed before a launch is.
#pragma once

#include "elementwise.h"

namespace invflow::cuda {

// 1 / x for x of at least 1, or for normal x with a normal reciprocal; within one unit in the last place.
INVFLOW_DEVICE float reciprocal_of(float x) {
#ifdef INVFLOW_CUDA_ON_CPU
  return 1.f / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// x / y, given 1 / y; corrected once, unless it is no finite number.
INVFLOW_DEVICE float quotient_of(float x, float y, float reciprocal) {
  const float quotient = x * reciprocal, rest = fmaf(-y, quotient, x);
  const float better = fmaf(rest, reciprocal, quotient);
  return fabsf(quotient) <= 3.4e38f ? better : quotient;
}

// The least eps of a known map: eight scales of that size multiply to a normal number.
constexpr double kLeastEps = 1e-4, kMostEps = 1;

template <bool inverse>
struct KnownMap {
  float eps;

  // x becomes y; returns the log-determinant. The logarithm is one for all pixels: see kLeastEps.
  template <int n>
  INVFLOW_DEVICE float apply(const float (&shift)[n], const float (&raw)[n], float (&x)[n]) const {
    static_assert(n <= 8, "the product of the scales leaves the normal numbers");
    float product = 1;
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const float scale = reciprocal_of(1.f + expf(-(raw[j] + 2.f))) + eps;
      product *= scale;
      x[j] = inverse ? quotient_of(x[j], scale, reciprocal_of(scale)) - shift[j] : (x[j] + shift[j]) * scale;
    }
    const float log = logf(product);
    return inverse ? -log : log;
  }

  // As `differentiate`.
  template <int n>
  INVFLOW_DEVICE void differentiate(float grad_log_det, float (&operand)[n], float (&raw)[n], float (&grad)[n]) const {
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const float e = expf(-(raw[j] + 2.f)), sigmoid = reciprocal_of(1.f + e), scale = sigmoid + eps;
      const float reciprocal = reciprocal_of(scale);
      // 1 - sigmoid without cancellation; e overflows only where the sigmoid is zero
      const float rest = sigmoid == 0.f ? 1.f : e * sigmoid, slope = quotient_of(sigmoid * rest, scale, reciprocal);
      const float grad_x = inverse ? quotient_of(grad[j], scale, reciprocal) : grad[j] * scale;
      const float product = inverse ? quotient_of(operand[j], scale, reciprocal) : operand[j] * scale;
      const float grad_raw = (grad[j] * product + grad_log_det) * slope;
      raw[j] = inverse ? -grad_raw : grad_raw;
      operand[j] = inverse ? -grad[j] : grad_x;
      grad[j] = grad_x;
    }
  }
};

// n numbers of kBytes bytes each, as they lie in memory.
template <int kBytes, int n>
struct Packed {
  static constexpr int kWords = kBytes * n / 4;
  uint32_t words[kWords];
};

template <int kBytes, int n>
INVFLOW_DEVICE void fetch(const char* from, Packed<kBytes, n>& packed) {
  using Word =
      typename WordOf<uint32_t, (Packed<kBytes, n>::kWords % 4 == 0 ? 16 : Packed<kBytes, n>::kWords * 4)>::Type;
#pragma unroll
  for (int i = 0; i < Packed<kBytes, n>::kWords; i += sizeof(Word) / 4) {
    const Word word = *reinterpret_cast<const Word*>(from + 4 * i);
    memcpy(packed.words + i, &word, sizeof(Word));
  }
}

template <int kBytes, int n>
INVFLOW_DEVICE void place(const Packed<kBytes, n>& packed, char* to) {
  using Word =
      typename WordOf<uint32_t, (Packed<kBytes, n>::kWords % 4 == 0 ? 16 : Packed<kBytes, n>::kWords * 4)>::Type;
#pragma unroll
  for (int i = 0; i < Packed<kBytes, n>::kWords; i += sizeof(Word) / 4) {
    Word word;
    memcpy(&word, packed.words + i, sizeof(Word));
    *reinterpret_cast<Word*>(to + 4 * i) = word;
  }
}

template <int kBytes, int n>
INVFLOW_DEVICE void unpack(const Packed<kBytes, n>& packed, Dtype dtype, float (&values)[n]) {
  if constexpr (kBytes == 4) {
    memcpy(values, packed.words, sizeof(values));
  } else if (dtype == Dtype::kFloat16) {
    __half part[n];
    memcpy(part, packed.words, sizeof(part));
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] = __half2float(part[i]);
  } else {
    __nv_bfloat16 part[n];
    memcpy(part, packed.words, sizeof(part));
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] = __bfloat162float(part[i]);
  }
}

template <int kBytes, int n>
INVFLOW_DEVICE void pack(const float (&values)[n], Dtype dtype, Packed<kBytes, n>& packed) {
  if constexpr (kBytes == 4) {
    memcpy(packed.words, values, sizeof(values));
  } else if (dtype == Dtype::kFloat16) {
    __half part[n];
#pragma unroll
    for (int i = 0; i < n; ++i) part[i] = __float2half_rn(values[i]);
    memcpy(packed.words, part, sizeof(part));
  } else {
    __nv_bfloat16 part[n];
#pragma unroll
    for (int i = 0; i < n; ++i) part[i] = __float2bfloat16_rn(values[i]);
    memcpy(packed.words, part, sizeof(part));
  }
}

// A tensor whose pixels are in line; distances in bytes.
struct Rows {
  char* data;
  int64_t sample;
  int row;

  // Where some pixels of row 0 stand.
  template <int kBytes>
  INVFLOW_DEVICE char* at(Pixels pixels) const {
    return data + pixels.sample * sample + pixels.first * kBytes;
  }
};

// The same of an h or its gradient: row i are the shifts of the map's channel i, and their raw scales stand `raws`
// bytes further.
struct MapRows {
  Rows shifts;
  int raws;
};

struct KnownMapArguments {
  MapRows h, grad_h;
  int start, count, repeat, kept;  // kept: see flow_step_backward_known.h
  float eps;
  Dtype dtype;

  INVFLOW_DEVICE bool transforms(int channel) const {
    return static_cast<unsigned>(channel - start) < static_cast<unsigned>(count);
  }
};

// A FlowStep and its gradients as these kernels take them: what can be computed before the launch is.
struct KnownStep {
  Rows x, y, grad_y, grad_x;
  const float *matrix, *shift, *grad_log_det;
  float* log_det;
  int batch, pixels, before_count;
  bool has_after;
  Dtype dtype;
  KnownMapArguments before[kMaxMaps], after;
};

// What these kernels are made for: bytes of a number of the state and of an h, and the direction; zeros if a step is
// none of that.
struct KnownKind {
  int state_bytes, h_bytes;
  bool inverse, channels_last;
};

// Successive channels that a thread reads at once of channels_last tensors. A map transforms all of them or none: its
// first channel and its number of channels are multiples.
INVFLOW_BOTH constexpr int run_of_channels(int64_t channels) { return channels % 8 == 0 ? 4 : 2; }

inline bool fits_int(int64_t value) { return value >= 0 && value <= INT32_MAX; }

// Rows of a tensor in runs of 16 bytes of pixels or, if it is channels_last, of `run` channels.
inline bool take_rows(const View& view, bool channels_last, int run, Rows& rows) {
  const int64_t bytes = size_of(view.dtype), row = channels_last ? view.pixel_stride : view.channel_stride;
  rows = {static_cast<char*>(view.data), view.sample_stride * bytes, static_cast<int>(row * bytes)};
  if (!fits_int(2 * row * bytes)) return false;
  if (!channels_last) return true;  // see with_access
  const int64_t access = std::min<int64_t>(run * bytes, 16);
  return view.channel_stride == 1 && reinterpret_cast<intptr_t>(view.data) % access == 0 &&
         view.sample_stride * bytes % access == 0 && row * bytes % access == 0;
}

inline bool take_map_rows(const AffineMap& map, const View& view, bool channels_last, int run, MapRows& rows) {
  const bool cross = map.packing == Packing::kCross;
  if (!take_rows(view, channels_last, 2 * run, rows.shifts)) return false;
  if (channels_last) return cross && map.start % run == 0 && map.count % run == 0;
  const int row = rows.shifts.row;
  rows.raws = cross ? row : static_cast<int>(row * map.count);
  if (cross) rows.shifts.row = 2 * row;
  return fits_int(row * map.count);
}

// The arguments of a step, whose pixels can be accessed as Vectors are unless it is channels_last. The kind says
// whether there are kernels for it.
inline KnownKind known_kind(const FlowStep& step, const FlowStepGradients* gradients, bool channels_last,
                            KnownStep& known) {
  known = {};
  const int run = run_of_channels(step.channels);
  KnownKind kind{static_cast<int>(size_of(step.x.dtype)), 0, false, channels_last};
  const auto rows = [&](const View& view, Rows& own) {
    return view.dtype == step.x.dtype && take_rows(view, channels_last, run, own);
  };
  bool all = fits_int(step.pixels) && fits_int(step.batch) && rows(step.x, known.x);
  all = all && (!channels_last || step.matrix == nullptr || step.pixels % 4 == 0) &&
        reinterpret_cast<intptr_t>(step.matrix) % 16 == 0 && reinterpret_cast<intptr_t>(step.shift) % 16 == 0;
  if (gradients == nullptr)
    all = all && rows(step.y, known.y);
  else
    all = all && rows(gradients->grad_y, known.grad_y) && rows(gradients->grad_x, known.grad_x);
  known.matrix = static_cast<const float*>(step.matrix);
  known.shift = static_cast<const float*>(step.shift);
  known.log_det = static_cast<float*>(step.log_det);
  known.grad_log_det = gradients == nullptr ? nullptr : static_cast<const float*>(gradients->grad_log_det);
  known.batch = static_cast<int>(step.batch);
  known.pixels = static_cast<int>(step.pixels);
  known.before_count = step.before_count;
  known.has_after = step.has_after;
  known.dtype = step.x.dtype;
  int kept = 0;
  const auto take = [&](const AffineMap& map, KnownMapArguments& own) {
    const int bytes = static_cast<int>(size_of(map.h.dtype));
    if (kind.h_bytes == 0) kind.inverse = map.inverse;
    all = all && map.scale == Scale::kSigmoid && map.order == Order::kShiftThenScale && map.parameter >= kLeastEps &&
          map.parameter <= kMostEps && map.inverse == kind.inverse && (kind.h_bytes == 0 || kind.h_bytes == bytes) &&
          take_map_rows(map, map.h, channels_last, run, own.h);
    if (gradients != nullptr)
      all = all && map.repeat == 1 && map.grad_h.dtype == map.h.dtype &&
            take_map_rows(map, map.grad_h, channels_last, run, own.grad_h);
    kind.h_bytes = bytes;
    own.start = static_cast<int>(map.start);
    own.count = static_cast<int>(map.count);
    own.repeat = static_cast<int>(map.repeat);
    own.kept = 2 * (kept - own.start);
    own.eps = static_cast<float>(map.parameter);
    own.dtype = map.h.dtype;
    kept += own.count;
  };
  for (int i = 0; i < step.before_count; ++i) take(step.before[i], known.before[i]);
  if (step.has_after) take(step.after, known.after);
  if (kind.h_bytes == 0) kind.h_bytes = kind.state_bytes;
  all = all && (kind.inverse ? !step.has_after : step.before_count < 2);
  all = all && kind.state_bytes <= 4 && (kind.h_bytes == 2 || (kind.h_bytes == 4 && kind.state_bytes == 4));
  return all ? kind : KnownKind{};
}

}  // namespace invflow::cuda
