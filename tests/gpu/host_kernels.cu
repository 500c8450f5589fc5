// Kernels, and mistakes in them, for test_source.py. Each function returns null or what went wrong.
#include "cuda_on_cpu.h"

namespace kernels {

enum Mistake { NONE, NO_BARRIER, NO_ATOMIC, PAST_SHARED, PAST_GLOBAL, MISALIGNED, DIVERGENT, EARLY_EXIT, WRONG_MASK };

constexpr int THREADS = 64;

// out[0] += sum of x, which has 4 numbers for each thread of the grid.
template <int mistake>
__global__ void __launch_bounds__(THREADS) sum_kernel(const float* x, float* out, int n) {
  float* const values = static_cast<float*>(cuda_on_cpu::shared_memory());
  __shared__ float warps[THREADS / 32];
  const int i = threadIdx.x, at = 4 * (blockIdx.x * blockDim.x + i);
  if (mistake == EARLY_EXIT && i == 7) return;
  float4 four = {0.f, 0.f, 0.f, 0.f};
  if (at < n || mistake == PAST_GLOBAL) four = *reinterpret_cast<const float4*>(x + at + (mistake == MISALIGNED));
  values[i + (mistake == PAST_SHARED && i == THREADS - 1)] = four.x + four.y + four.z + four.w;
  if (mistake != NO_BARRIER) __syncthreads();
  if (mistake == DIVERGENT) {
    if (i < 32)
      __syncthreads();
    else
      __syncthreads();
  }
  float sum = values[THREADS - 1 - i];
  const unsigned mask = mistake == WRONG_MASK ? 0xffffu : 0xffffffffu;
  if (mistake == WRONG_MASK && i >= 16) return;
  for (int distance = 16; distance; distance /= 2) sum += __shfl_down_sync(mask, sum, distance);
  if (i % 32 == 0) warps[i / 32] = sum;
  __syncthreads();
  if (i > 0) return;
  for (int warp = 1; warp < THREADS / 32; ++warp) sum += warps[warp];
  if (mistake == NO_ATOMIC)
    *out += sum;
  else
    atomicAdd(out, sum);
}

template <int mistake>
const char* launch_sum(const float* x, float* out, int n) {
  const int blocks = (n + 4 * THREADS - 1) / (4 * THREADS);
  return cuda_on_cpu::launch(sum_kernel<mistake>, blocks, THREADS, THREADS * sizeof(float), x, out, n);
}

// Copies what shared memory of both kinds holds before anything is written.
__global__ void unwritten_kernel(float* out) {
  __shared__ float fixed[32];
  out[threadIdx.x] = fixed[threadIdx.x];
  out[32 + threadIdx.x] = static_cast<float*>(cuda_on_cpu::shared_memory())[threadIdx.x];
  __syncthreads();
  fixed[threadIdx.x] = 1.f;
}

// The order in which threads come.
__global__ void order_kernel(int* out, int* count) { out[atomicAdd(count, 1)] = blockIdx.x * blockDim.x + threadIdx.x; }

// out[i]: number of positive numbers in the warp, and shuffles of every kind
__global__ void warp_kernel(const float* x, float* out) {
  const float value = x[threadIdx.x];
  const unsigned all = 0xffffffffu;
  const unsigned votes = __ballot_sync(all, value > 0);
  out[threadIdx.x] = __builtin_popcount(votes) + __shfl_xor_sync(all, value, 3) + __shfl_up_sync(all, value, 2, 16) +
                     __shfl_sync(all, value, 7, 8) + __any_sync(all, value > 2) + 2 * __all_sync(all, value > -9) +
                     static_cast<float>(__shfl_down_sync(all, static_cast<double>(value), 1));
}

}  // namespace kernels

using namespace kernels;

extern "C" const char* sum(int mistake, const float* x, float* out, int n) {
  switch (mistake) {
    case NO_BARRIER:
      return launch_sum<NO_BARRIER>(x, out, n);
    case NO_ATOMIC:
      return launch_sum<NO_ATOMIC>(x, out, n);
    case PAST_SHARED:
      return launch_sum<PAST_SHARED>(x, out, n);
    case PAST_GLOBAL:
      return launch_sum<PAST_GLOBAL>(x, out, n);
    case MISALIGNED:
      return launch_sum<MISALIGNED>(x, out, n);
    case DIVERGENT:
      return launch_sum<DIVERGENT>(x, out, n);
    case EARLY_EXIT:
      return launch_sum<EARLY_EXIT>(x, out, n);
    case WRONG_MASK:
      return launch_sum<WRONG_MASK>(x, out, n);
    default:
      return launch_sum<NONE>(x, out, n);
  }
}
extern "C" const char* unwritten(float* out) {
  return cuda_on_cpu::launch(unwritten_kernel, 2, 32, 32 * sizeof(float), out);
}
extern "C" const char* order(int* out, int* count) { return cuda_on_cpu::launch(order_kernel, 3, 64, 0, out, count); }
extern "C" const char* warp(const float* x, float* out) { return cuda_on_cpu::launch(warp_kernel, 1, 64, 0, x, out); }
