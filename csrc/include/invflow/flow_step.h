// Arguments of the kernels of every device: addresses, sizes and strides, free of torch headers.
#pragma once

#include <cstdint>

namespace invflow {

enum class Dtype : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };
enum class Scale : int {
  kSigmoid = 0,
  kExp = 1,
  kBoundedExp = 2,      // e^(a tanh(raw / a)), with the parameter a
  kTanhExp = 3,         // e^(a tanh(raw))
  kBoundedAtanExp = 4,  // e^(0.636 a atan(raw / a))
  kAtanExp = 5,         // e^(0.636 a atan(raw))
  kNone = 6,            // 1: h has no raw scales
};
enum class Order : int { kShiftThenScale = 0, kScaleThenShift = 1 };
enum class Packing : int { kCross = 0, kSplit = 1 };

// A tensor (samples, channels, pixels) in memory; strides count elements.
struct View {
  void* data;
  Dtype dtype;
  int64_t sample_stride, channel_stride, pixel_stride;
};

// An elementwise affine map of channels [start, start + count), made of a network's output h = (shift, raw) with
// 2 * count channels, or of h = (shift) with count channels. If h has fewer samples than the state, each of its samples
// serves `repeat` successive ones.
struct AffineMap {
  View h;
  View grad_h;  // written by the backward pass
  int64_t start, count, repeat;
  Scale scale;
  double parameter;  // eps of the sigmoid, a of the bounded scales, unused for the others
  Order order;
  Packing packing;
  bool inverse;
};

static inline int64_t channels_of_h(const AffineMap& map) {
  return map.scale == Scale::kNone ? map.count : 2 * map.count;
}

constexpr int kMaxMaps = 2;  // before the matrix: coupling and injector, inverted

// Everything between two coupling networks, in one pass over the state: the elementwise maps `before`, the channel map
// y = matrix x + shift, and the elementwise map `after`. Without a matrix there is only `before`. Arithmetic, matrix,
// shift and log_det are float64 if the state is, else float32.
struct FlowStep {
  int64_t batch, channels, pixels;
  View x, y;
  const void* matrix;  // [channels][channels]
  const void* shift;   // [channels]
  void* log_det;       // [batch]: the sum of the log-determinants of the elementwise maps
  AffineMap before[kMaxMaps], after;
  int before_count;
  bool has_after;
};

// The gradients of a FlowStep, of which x, matrix, shift and the maps are used. Reads the gradients of y and log_det,
// writes grad_x, grad_matrix, grad_shift and the grad_h of every map.
struct FlowStepGradients {
  View grad_y, grad_x;
  const void* grad_log_det;        // [batch]
  void *grad_matrix, *grad_shift;  // as matrix and shift
};

}  // namespace invflow
