// CUDA C++ for a host compiler: with this header included first, kernels compile as C++ and run on fibers (see
// fibers.h). It has the part of CUDA that the project's kernels use; what is missing does not compile. It needs no CUDA
// toolkit.
//
// A host program cannot write kernel<<<...>>>(...) nor `extern __shared__`: use cuda_on_cpu::launch and
// cuda_on_cpu::shared_memory. The order in which threads and blocks run between barriers is set by the environment
// variable CUDA_ON_CPU_ORDER: ascending (the default), descending, or random:<seed>.
#pragma once

#include <math.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "fibers.h"
#include "host_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
// Blocks run one at a time, and each in one thread of the operating system. Thread-local variables can be poisoned when
// a block begins (see poison_static_shared_memory); others are surrounded by AddressSanitizer with bytes it watches.
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

#define threadIdx (cuda_on_cpu::current_thread->index)
#define blockIdx (cuda_on_cpu::launch_state.block_index)
#define blockDim (cuda_on_cpu::launch_state.block)
#define gridDim (cuda_on_cpu::launch_state.grid)

using std::max;
using std::min;

namespace cuda_on_cpu {

// Where a function with this default argument is called.
inline Site called_from(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

inline void* shared_memory() { return block_shared_memory; }  // the dynamic one

// The device that the host code asks about, set from outside (see cuda_driver.py); of a library that does not ask, zeros.
struct Device {
  int multiprocessors, shared_of_multiprocessor, shared_of_block;
};
extern "C" Device cuda_on_cpu_device;

Schedule schedule_of_environment();
void poison_static_shared_memory();

// Set from outside (see through_ptx.py), runs the kernel with this symbol from its parameters, packed as CUDA packs
// them.
using Redirect = const char* (*)(const char* symbol, Index3 grid, Index3 block, int64_t shared_bytes,
                                 const char* parameters, uint64_t parameter_bytes);
extern "C" Redirect cuda_on_cpu_redirect;
const char* redirected(void* kernel, const Launch& launch, const char* parameters, uint64_t parameter_bytes);

constexpr size_t MOST_PARAMETER_BYTES = 4096;
struct PackedParameters {
  alignas(16) char bytes[2 * MOST_PARAMETER_BYTES];  // with gaps between them
  size_t count = 0;

  template <typename T>
  void add(const T& value) {
    count = (count + alignof(T) - 1) / alignof(T) * alignof(T);
    memcpy(bytes + count, &value, sizeof value);
    count += sizeof value;
  }
};

// Runs kernel(arguments...) on a grid. Returns null, or what went wrong, until the next launch.
template <typename... Parameters>
const char* launch(void (*kernel)(Parameters...), Index3 grid, Index3 block, int64_t shared_bytes,
                   Parameters... arguments) {
  Launch request;
  request.grid = grid;
  request.block = block;
  request.shared_bytes = static_cast<unsigned>(shared_bytes);
  if (cuda_on_cpu_device.shared_of_block != 0 && shared_bytes > cuda_on_cpu_device.shared_of_block)
    return "invalid argument: more shared memory than a block may have";
  if (cuda_on_cpu_redirect) {
    static_assert((sizeof(Parameters) + ... + 0) <= MOST_PARAMETER_BYTES, "more parameters than a kernel may have");
    PackedParameters packed;
    (packed.add(arguments), ...);
    return redirected(reinterpret_cast<void*>(kernel), request, packed.bytes, packed.count);
  }
  request.schedule = schedule_of_environment();
  request.block_starts = poison_static_shared_memory;
  request.kernel = [&] { kernel(arguments...); };
  return run(std::move(request)) ? nullptr : last_error();
}

template <typename... Parameters>
const char* launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
                   Parameters... arguments) {
  return launch(kernel, Index3{static_cast<unsigned>(blocks), 1, 1}, Index3{static_cast<unsigned>(threads), 1, 1},
                shared_bytes, arguments...);
}

template <typename T>
T shuffled(T value, unsigned mask, unsigned source, bool in_range, const char* name, Site site) {
  static_assert(sizeof(T) <= 8, "shuffles move 4 or 8 bytes");
  uint32_t words[2] = {0, 0};
  memcpy(words, &value, sizeof value);
  meet(mask, words, 2, name, site);
  if (!in_range) return value;
  if (!(mask >> source & 1)) fail(site, "%s reads lane %u, which is not in the mask 0x%08x", name, source, mask);
  for (unsigned i = 0; i < 2; ++i) words[i] = published_by(source, i);
  memcpy(&value, words, sizeof value);
  return value;
}

template <typename T, typename Change>
T atomically(T* address, Change change) {
  T before;
  __atomic_load(address, &before, __ATOMIC_RELAXED);
  for (;;) {
    T after = change(before);
    if (__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return before;
  }
}

}  // namespace cuda_on_cpu

// Each takes its caller's place as last argument.
#define CUDA_ON_CPU_SITE cuda_on_cpu::Site site = cuda_on_cpu::called_from()

inline void __syncthreads(CUDA_ON_CPU_SITE) { cuda_on_cpu::block_barrier(0, 0, site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_ON_CPU_SITE) { cuda_on_cpu::warp_barrier(mask, site); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, CUDA_ON_CPU_SITE) {
  const unsigned self = cuda_on_cpu::current_thread->lane, source = (self & ~(width - 1)) | (lane & (width - 1));
  return cuda_on_cpu::shuffled(value, mask, source, true, "__shfl_sync", site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, CUDA_ON_CPU_SITE) {
  const unsigned self = cuda_on_cpu::current_thread->lane;
  const bool in_range = (self & (width - 1)) + distance < static_cast<unsigned>(width);
  return cuda_on_cpu::shuffled(value, mask, self + distance, in_range, "__shfl_down_sync", site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, CUDA_ON_CPU_SITE) {
  const unsigned self = cuda_on_cpu::current_thread->lane;
  return cuda_on_cpu::shuffled(value, mask, self - distance, (self & (width - 1)) >= distance, "__shfl_up_sync", site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CUDA_ON_CPU_SITE) {
  const unsigned self = cuda_on_cpu::current_thread->lane, source = self ^ bits;
  return cuda_on_cpu::shuffled(value, mask, source, source < (self & ~(width - 1)) + width, "__shfl_xor_sync", site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
  const uint32_t word = predicate != 0;
  cuda_on_cpu::meet(mask, &word, 1, "__ballot_sync", site);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) votes |= cuda_on_cpu::published_by(lane) << lane;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
  return __ballot_sync(mask, predicate, site) == mask;
}

template <typename T>
T atomicAdd(T* address, T value) {
  return cuda_on_cpu::atomically(address, [=](T before) { return before + value; });
}
template <typename T>
T atomicMax(T* address, T value) {
  return cuda_on_cpu::atomically(address, [=](T before) { return before < value ? value : before; });
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
