// The only place with CUDA's own syntax, <<<>>> and extern __shared__, and the only one that calls CUDA's run time.
// INVFLOW_CUDA_ON_CPU compiles the kernels as C++ for the host, where tests run them without a GPU.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef INVFLOW_CUDA_ON_CPU
#include "cuda_on_cpu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include "invflow/cuda_kernels.h"

#define INVFLOW_DEVICE __device__ __forceinline__
#define INVFLOW_BOTH __host__ __device__ __forceinline__

#ifdef INVFLOW_CUDA_ON_CPU
#define INVFLOW_SHARED(T, name) T* const name = static_cast<T*>(cuda_on_cpu::shared_memory())
#else
#define INVFLOW_SHARED(T, name)                            \
  extern __shared__ __align__(16) unsigned char shared_[]; \
  T* const name = reinterpret_cast<T*>(shared_)
#endif

namespace invflow::cuda {

// threadIdx.x, computed anew as far as the compiler knows: what is derived from it is then not kept in registers from
// one use to the next, where those are scarce.
INVFLOW_DEVICE int thread_again() {
  int thread = threadIdx.x;
  asm volatile("" : "+r"(thread));
  return thread;
}

// Lets the kernel that is launched next, by launch_behind, come to its wait before this one ends.
INVFLOW_DEVICE void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Until the kernel before has ended, and what it wrote can be read. Before, a kernel of launch_behind reads and writes
// nothing.
INVFLOW_DEVICE void wait_for_former() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// A launch: the name of the kernel, for messages, and its device and stream.
struct Site {
  const char* kernel;
  const FlowStep& step;
  const Place& place;
};

// Properties that decide the division of work: the number of multiprocessors, and the bytes of shared memory that each
// of them has and that a block may have.
struct Device {
  int multiprocessors, shared_of_multiprocessor, shared_of_block;
};

inline void check(const char* error, const Site& site) {
  if (error == nullptr) return;
  throw std::runtime_error(std::string(site.kernel) + " cannot run for a state of " + std::to_string(site.step.batch) +
                           " samples, " + std::to_string(site.step.channels) + " channels and " +
                           std::to_string(site.step.pixels) + " pixels on CUDA device " +
                           std::to_string(site.place.device) + ": " + error);
}

#ifdef INVFLOW_CUDA_ON_CPU

template <class... Parameters, class... Arguments>
void launch(const Site& site, void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
            const Arguments&... arguments) {
  check(cuda_on_cpu::launch(kernel, blocks, threads, shared_bytes, static_cast<Parameters>(arguments)...), site);
}

template <class... Parameters, class... Arguments>
void launch_behind(const Site& site, void (*kernel)(Parameters...), int64_t blocks, int threads,
                   const Arguments&... arguments) {
  launch(site, kernel, blocks, threads, 0, arguments...);
}

inline Device device_of(const Site&) {
  const cuda_on_cpu::Device& device = cuda_on_cpu::cuda_on_cpu_device;
  return {device.multiprocessors, device.shared_of_multiprocessor, device.shared_of_block};
}

template <class Kernel>
const char* why_not_on(int, Kernel*) {
  return "";
}

struct DeviceGuard {
  explicit DeviceGuard(const Site&) {}
};

#else

// Null if there is no error. CUDA forgets an error that is told here: the next call's is not to be this one.
inline const char* text_of(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

template <class... Parameters, class... Arguments>
void launch(const Site& site, void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
            const Arguments&... arguments) {
  if (blocks > INT32_MAX) check("it has more than 2^31 - 1 tiles", site);
  // Without asking, a block may have 48 KiB, static memory included. What once was allowed stays: a captured launch may
  // have needed it.
  if (shared_bytes > 47 * 1024) {
    cudaFuncAttributes now;
    check(text_of(cudaFuncGetAttributes(&now, kernel)), site);
    const int allowed = now.maxDynamicSharedSizeBytes, wanted = static_cast<int>(shared_bytes);
    if (wanted > allowed || allowed <= 48 * 1024)
      check(text_of(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         wanted > allowed ? wanted : allowed)),
            site);
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, static_cast<cudaStream_t>(site.place.stream)>>>(
      static_cast<Parameters>(arguments)...);
  if (const char* const error = text_of(cudaGetLastError()))
    check((std::string(error) + " (which may be an earlier kernel's error)").c_str(), site);
}

// The same of a kernel that waits for the one before itself (see wait_for_former), where the device can do that: its
// launch then costs no time of its own. Such a kernel needs no shared memory but static one.
template <class... Parameters, class... Arguments>
void launch_behind(const Site& site, void (*kernel)(Parameters...), int64_t blocks, int threads,
                   const Arguments&... arguments) {
  if (blocks > INT32_MAX) check("it has more than 2^31 - 1 tiles", site);
  int major = 0;
  check(text_of(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, site.place.device)), site);
  cudaLaunchAttribute behind;
  behind.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  behind.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(site.place.stream);
  config.attrs = &behind;
  config.numAttrs = major >= 9 ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  if (const char* const text = text_of(error))
    check((std::string(text) + " (which may be an earlier kernel's error)").c_str(), site);
}

inline Device device_of(const Site& site) {
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check(text_of(cudaDeviceGetAttribute(&value, name, site.place.device)), site);
    return value;
  };
  return {attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
}

// Makes the device of a call the current one of this thread, and the former one again at the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(const Site& site) {
    check(text_of(cudaGetDevice(&former_)), site);
    if (former_ == site.place.device) return;
    check(text_of(cudaSetDevice(site.place.device)), site);
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(former_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int former_ = 0;
  bool changed_ = false;
};

// Why a device cannot run a kernel; empty if it can.
template <class Kernel>
const char* why_not_on(int device, Kernel* kernel) {
  int former = 0;
  cudaError_t error = cudaGetDevice(&former);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  cudaFuncAttributes attributes;
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  cudaGetLastError();  // what it returned is not the error of a later launch
  if (former != device) cudaSetDevice(former);
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

#endif

}  // namespace invflow::cuda
