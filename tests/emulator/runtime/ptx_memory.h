// Loads and stores of PTX: every address is checked before it is touched.
//
// Generic addresses are host addresses, except those of shared memory, which begin at SHARED_WINDOW.
#pragma once
#include <cstring>

#include "fibers.h"

namespace cuda_on_cpu {

constexpr uint64_t SHARED_WINDOW = 1ull << 60;  // no host address is as large

enum class Space : unsigned char { global, shared, local };
enum class Kind : unsigned char { load, store, atomic };

// An access as the translator describes it; `site` numbers the load and store instructions of a module.
struct Access {
  int line, site;
  Kind kind;
  bool strong;  // volatile, relaxed, acquire, release and atomic accesses do not race with each other
};

// Memory that the kernel may touch.
struct Range {
  uint64_t begin, end;
  bool writable;
};

extern Range likely_range;      // the last one hit
extern bool accesses_observed;  // by the race detector or the trace

// The checks that the fast paths below leave: they find the range, fail, or report to the observers.
char* check_global(uint64_t address, unsigned bytes, const Access& access);
char* check_shared(uint32_t offset, unsigned bytes, const Access& access);
char* check_local(uint64_t address, unsigned bytes, const Access& access);

inline char* global_pointer(uint64_t address, unsigned bytes, const Access& access) {
  if (address >= likely_range.begin && address + bytes <= likely_range.end && address % bytes == 0 &&
      !accesses_observed && (likely_range.writable || access.kind == Kind::load)) {
    return reinterpret_cast<char*>(address);
  }
  return check_global(address, bytes, access);
}

inline char* shared_pointer(uint32_t offset, unsigned bytes, const Access& access) {
  return check_shared(offset, bytes, access);
}

inline char* local_pointer(uint64_t address, unsigned bytes, const Access& access) {
  return check_local(address, bytes, access);
}

inline char* generic_pointer(uint64_t address, unsigned bytes, const Access& access) {
  if (address >= SHARED_WINDOW) return check_shared(static_cast<uint32_t>(address - SHARED_WINDOW), bytes, access);
  const uint64_t stack = reinterpret_cast<uint64_t>(current_thread->stack);
  if (address >= stack && address < stack + STACK_BYTES) return check_local(address, bytes, access);
  return global_pointer(address, bytes, access);
}

template <typename T>
T load(const char* pointer) {
  T value;
  memcpy(&value, pointer, sizeof value);
  return value;
}

// Tells the race detector the bytes that a store puts where its pointer was checked.
void store_observed(const char* pointer, const void* value, unsigned bytes);

template <typename T>
void store(char* pointer, T value) {
  if (accesses_observed) store_observed(pointer, &value, sizeof value);
  memcpy(pointer, &value, sizeof value);
}

// An atomic operation: threads are interleaved only at barriers, so that a plain read, change and write is one.
template <typename T, typename Change>
T atomic(char* pointer, Change change) {
  const T before = load<T>(pointer);
  store<T>(pointer, change(before));
  return before;
}

// cp.async of PTX; `from_bytes` below `bytes` fills the rest with zeros.
void copy_async(uint32_t to, uint64_t from, unsigned bytes, unsigned from_bytes, const Access& read,
                const Access& write);

}  // namespace cuda_on_cpu
