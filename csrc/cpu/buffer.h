// A scratch array. Not std::unique_ptr: its inline functions would be merged across instruction sets (see simd.h).
#pragma once

#include <cstdint>

namespace {

template <class T>
struct Buffer {
  explicit Buffer(int64_t size) : data(new T[size]) {}
  ~Buffer() { delete[] data; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* const data;
};

}  // namespace
