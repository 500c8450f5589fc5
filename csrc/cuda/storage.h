// Pixels in and out of memory. Every dtype is turned into the arithmetic's type T, float or double, on the way.
#pragma once

#include <cstring>
#include <type_traits>

#include "launch.h"

namespace invflow::cuda {

template <class T, class Stored>
INVFLOW_DEVICE T arithmetic_of(Stored value) {
  if constexpr (std::is_same_v<Stored, __half>)
    return static_cast<T>(__half2float(value));
  else if constexpr (std::is_same_v<Stored, __nv_bfloat16>)
    return static_cast<T>(__bfloat162float(value));
  else
    return static_cast<T>(value);
}

template <class Stored, class T>
INVFLOW_DEVICE Stored stored_of(T value) {
  if constexpr (std::is_same_v<Stored, __half>)
    return __float2half_rn(static_cast<float>(value));
  else if constexpr (std::is_same_v<Stored, __nv_bfloat16>)
    return __float2bfloat16_rn(static_cast<float>(value));
  else
    return static_cast<Stored>(value);
}

template <class Stored>
constexpr Dtype kDtypeOf = std::is_same_v<Stored, float>    ? Dtype::kFloat32
                           : std::is_same_v<Stored, double> ? Dtype::kFloat64
                           : std::is_same_v<Stored, __half> ? Dtype::kFloat16
                                                            : Dtype::kBFloat16;

INVFLOW_BOTH int64_t size_of(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

// The unit of one access. Two doubles have a word of their own: of four integers, the compiler takes the store apart.
template <class Stored, int bytes>
struct WordOf;
template <class Stored>
struct WordOf<Stored, 16> {
  using Type = std::conditional_t<std::is_same_v<Stored, double>, double2, uint4>;
};
template <class Stored>
struct WordOf<Stored, 8> {
  using Type = uint2;
};
template <class Stored>
struct WordOf<Stored, 4> {
  using Type = uint32_t;
};
template <class Stored>
struct WordOf<Stored, 2> {
  using Type = uint16_t;
};

// n successive elements, in accesses of 16 bytes or, if they are fewer, one.
template <class Stored, int n>
struct Run {
  static constexpr int kBytes = n * static_cast<int>(sizeof(Stored)) < 16 ? n * static_cast<int>(sizeof(Stored)) : 16;
  static constexpr int kStep = kBytes / static_cast<int>(sizeof(Stored));
  using Word = typename WordOf<Stored, kBytes>::Type;
};

template <class Stored, class T, int n>
INVFLOW_DEVICE void load_run(const void* data, int64_t offset, T (&values)[n]) {
  using R = Run<Stored, n>;
  const Stored* const from = static_cast<const Stored*>(data) + offset;
#pragma unroll
  for (int i = 0; i < n; i += R::kStep) {
    const typename R::Word word = *reinterpret_cast<const typename R::Word*>(from + i);
    Stored part[R::kStep];
    memcpy(part, &word, R::kBytes);
#pragma unroll
    for (int j = 0; j < R::kStep; ++j) values[i + j] = arithmetic_of<T>(part[j]);
  }
}

template <class Stored, class T, int n>
INVFLOW_DEVICE void store_run(void* data, int64_t offset, const T (&values)[n]) {
  using R = Run<Stored, n>;
  Stored* const to = static_cast<Stored*>(data) + offset;
#pragma unroll
  for (int i = 0; i < n; i += R::kStep) {
    Stored part[R::kStep];
#pragma unroll
    for (int j = 0; j < R::kStep; ++j) part[j] = stored_of<Stored>(values[i + j]);
    typename R::Word word;
    memcpy(&word, part, R::kBytes);
    *reinterpret_cast<typename R::Word*>(to + i) = word;
  }
}

// n successive pixels of a tensor of any dtype.
template <class T, int n>
INVFLOW_DEVICE void load_any(const View& view, int64_t offset, T (&values)[n]) {
  switch (view.dtype) {
    case Dtype::kFloat32: return load_run<float>(view.data, offset, values);
    case Dtype::kFloat64: return load_run<double>(view.data, offset, values);
    case Dtype::kBFloat16: return load_run<__nv_bfloat16>(view.data, offset, values);
    case Dtype::kFloat16: return load_run<__half>(view.data, offset, values);
  }
}

template <class T, int n>
INVFLOW_DEVICE void store_any(const View& view, int64_t offset, const T (&values)[n]) {
  switch (view.dtype) {
    case Dtype::kFloat32: return store_run<float>(view.data, offset, values);
    case Dtype::kFloat64: return store_run<double>(view.data, offset, values);
    case Dtype::kBFloat16: return store_run<__nv_bfloat16>(view.data, offset, values);
    case Dtype::kFloat16: return store_run<__half>(view.data, offset, values);
  }
}

// Access to memory by a thread: kPixels successive pixels at once. The state and its gradients are accessed by
// load_state and store_state, h and its gradient by load and store.
//
// Vectors: kPixels of a state whose numbers have kBytes bytes, 16 bytes unless said otherwise, and as many of an h of
// any dtype.
template <int kBytes, int kPixels_ = 16 / kBytes>
struct Vectors {
  using T = float;
  static constexpr int kPixels = kPixels_;

  static INVFLOW_DEVICE void load_state(const View& view, int64_t offset, T (&values)[kPixels]) {
    if constexpr (kBytes == 4)
      load_run<float>(view.data, offset, values);
    else if (view.dtype == Dtype::kFloat16)
      load_run<__half>(view.data, offset, values);
    else
      load_run<__nv_bfloat16>(view.data, offset, values);
  }
  static INVFLOW_DEVICE void store_state(const View& view, int64_t offset, const T (&values)[kPixels]) {
    if constexpr (kBytes == 4)
      store_run<float>(view.data, offset, values);
    else if (view.dtype == Dtype::kFloat16)
      store_run<__half>(view.data, offset, values);
    else
      store_run<__nv_bfloat16>(view.data, offset, values);
  }
  static INVFLOW_DEVICE void load(const View& view, int64_t offset, T (&values)[kPixels]) {
    load_any(view, offset, values);
  }
  static INVFLOW_DEVICE void store(const View& view, int64_t offset, const T (&values)[kPixels]) {
    store_any(view, offset, values);
  }
};

// Elements: one pixel of any dtype, with any strides.
template <class Arithmetic>
struct Elements {
  using T = Arithmetic;
  static constexpr int kPixels = 1;

  static INVFLOW_DEVICE void load(const View& view, int64_t offset, T (&values)[1]) { load_any(view, offset, values); }
  static INVFLOW_DEVICE void store(const View& view, int64_t offset, const T (&values)[1]) {
    store_any(view, offset, values);
  }
  static INVFLOW_DEVICE void load_state(const View& view, int64_t offset, T (&values)[1]) {
    load(view, offset, values);
  }
  static INVFLOW_DEVICE void store_state(const View& view, int64_t offset, const T (&values)[1]) {
    store(view, offset, values);
  }
};

// Successive pixels of one sample.
struct Pixels {
  int sample;
  int64_t first;
};

INVFLOW_DEVICE int64_t offset_of(const View& view, Pixels at, int64_t channel) {
  return at.sample * view.sample_stride + channel * view.channel_stride + at.first * view.pixel_stride;
}

// True if runs of n pixels of a tensor can be accessed as Vectors do.
inline bool has_runs(const View& view, int n) {
  const int64_t size = size_of(view.dtype), bytes = n * size < 16 ? n * size : 16;
  return view.pixel_stride == 1 && reinterpret_cast<intptr_t>(view.data) % bytes == 0 &&
         view.sample_stride * size % bytes == 0 && view.channel_stride * size % bytes == 0;
}

// Calls visit(access) with the widest way to access all tensors of a step, and of its gradients if there are any.
template <class Visitor>
void with_access(const FlowStep& step, const FlowStepGradients* gradients, const Visitor& visit) {
  if (step.x.dtype == Dtype::kFloat64) return visit(Elements<double>{});
  const int pixels = static_cast<int>(16 / size_of(step.x.dtype));
  bool runs = step.pixels % pixels == 0 && has_runs(step.x, pixels);
  const auto consider = [&](const AffineMap& map) {
    runs = runs && has_runs(map.h, pixels) && (gradients == nullptr || has_runs(map.grad_h, pixels));
  };
  for (int i = 0; i < step.before_count; ++i) consider(step.before[i]);
  if (step.has_after) consider(step.after);
  if (gradients == nullptr)
    runs = runs && has_runs(step.y, pixels);
  else
    runs = runs && has_runs(gradients->grad_y, pixels) && has_runs(gradients->grad_x, pixels) &&
           gradients->grad_y.dtype == step.x.dtype && gradients->grad_x.dtype == step.x.dtype;
  runs = runs && reinterpret_cast<intptr_t>(step.matrix) % 16 == 0 && reinterpret_cast<intptr_t>(step.shift) % 16 == 0;
  if (!runs) return visit(Elements<float>{});
  if (step.x.dtype == Dtype::kFloat32) return visit(Vectors<4>{});
  visit(Vectors<2>{});
}

// Calls visit(access) with every way to access tensors of a step whose state has that dtype.
template <class Visitor>
void with_each_access(Dtype dtype, const Visitor& visit) {
  if (dtype == Dtype::kFloat64) return visit(Elements<double>{});
  visit(Elements<float>{});
  if (dtype == Dtype::kFloat32) return visit(Vectors<4>{});
  visit(Vectors<2>{});
}

}  // namespace invflow::cuda
