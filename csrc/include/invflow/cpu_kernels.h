// The native CPU kernels, free of torch headers: raw pointers to contiguous NCHW float32 data.
#pragma once

#include <cstdint>

namespace invflow {

enum class Scale : int { kSigmoid = 0, kExp = 1, kBoundedExp = 2 };
enum class Order : int { kShiftThenScale = 0, kScaleThenShift = 1 };
enum class Packing : int { kCross = 0, kSplit = 1 };

// How the raw network output h = (shift, raw) becomes an elementwise affine map.
struct AffineForm {
  Scale scale;
  float parameter;  // eps of the sigmoid, bound of the bounded exponential, unused for the exponential
  Order order;
  Packing packing;
  bool inverse;
};

// State of `batch` samples x `channels` x `pixels`; the map acts on channels [start, start + count),
// and h holds 2 * count channels.
struct CouplingShape {
  int64_t batch;
  int64_t channels;
  int64_t start;
  int64_t count;
  int64_t pixels;
};

// One instruction set's versions of every kernel.
struct Kernels {
  const char* isa;

  // y[b, o, p] = shift[o] + sum_i matrix[o, i] * x[b, i, p]
  void (*channel_affine)(const float* x, const float* matrix, const float* shift, float* y, int64_t batch,
                         int64_t channels, int64_t pixels);

  // y and log_det[b] = +-sum log(scale)
  void (*affine_coupling)(const float* x, const float* h, float* y, float* log_det, const CouplingShape& shape,
                          const AffineForm& form);

  // grad_x and grad_h from the gradients of y and log_det
  void (*affine_coupling_backward)(const float* grad_y, const float* grad_log_det, const float* x, const float* h,
                                   float* grad_x, float* grad_h, const CouplingShape& shape, const AffineForm& form);
};

}  // namespace invflow
