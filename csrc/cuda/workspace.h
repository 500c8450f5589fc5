// Parts of the memory that the caller lends to a call.
#pragma once

#include "storage.h"

namespace invflow::cuda {

// Takes parts one after the other. With a null pointer it only counts the bytes.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    T* const taken = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + size_);
    size_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return taken;
  }

  // A contiguous tensor whose rows of pixels begin at multiples of 16 bytes.
  template <class T>
  View tensor(int64_t samples, int64_t channels, int64_t pixels) {
    const int64_t row = (pixels + 3) / 4 * 4;
    return {take<T>(samples * channels * row), kDtypeOf<T>, channels * row, row, 1};
  }

  // Place in which the gradient of a map's h is summed over the samples that share it, see store_grad_h.
  template <class T>
  View sums_of(const FlowStep& step, const AffineMap& map) {
    if (map.repeat <= 1 || map.grad_h.dtype == kDtypeOf<T>) return map.grad_h;
    return tensor<T>(step.batch / map.repeat, channels_of_h(map), step.pixels);
  }

  int64_t size() const { return size_; }

 private:
  char* const memory_;
  int64_t size_ = 0;
};

}  // namespace invflow::cuda
