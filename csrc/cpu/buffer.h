// A scratch array, aligned to lines of the cache. Not std::unique_ptr: its inline functions would be merged across
// instruction sets (see simd.h).
#pragma once

#include <cstdint>
#include <new>

namespace {

template <class T>
struct Buffer {
  explicit Buffer(int64_t size) : data(static_cast<T*>(::operator new(size * sizeof(T), kAlignment))) {}
  ~Buffer() { ::operator delete(data, kAlignment); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  static constexpr std::align_val_t kAlignment{64};
  T* const data;
};

}  // namespace
