// Arrays aligned to lines of the cache. Not std::unique_ptr: its inline functions would be merged across instruction
// sets (see simd.h).
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

// Scratch memory that a thread keeps for its next call: fresh memory costs a page fault every 4096 bytes.
struct KeptMemory {
  ~KeptMemory() { delete buffer; }

  template <class T>
  T* reserve(int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    if (bytes > size) {
      delete buffer;
      buffer = nullptr;
      size = 0;
      buffer = new Buffer<char>(bytes);
      size = bytes;
    }
    return reinterpret_cast<T*>(buffer->data);
  }

  Buffer<char>* buffer = nullptr;
  int64_t size = 0;
};

// For one workspace at a time.
static thread_local KeptMemory kept_memory;

}  // namespace
