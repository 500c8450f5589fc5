// Sums in a fixed order, without atomic operations: every block writes a partial sum, and a second kernel adds the
// partial sums up in double precision.
#pragma once

#include "launch.h"

namespace invflow::cuda {

// The sum of `value` over the threads of a block, for thread 0. Every thread must call it.
template <int threads, class T>
INVFLOW_DEVICE T sum_of_block(T value) {
  __shared__ T sums[threads / 32];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_down_sync(0xffffffffu, value, distance);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  T total = 0;
#pragma unroll
  for (int warp = 0; warp < threads / 32; ++warp) total += sums[warp];
  return total;
}

// Writes a block's sum of log-determinants to its place in `log_dets`. Of a step without maps, for which that is null,
// it writes zeros for all samples.
template <int threads, class T>
INVFLOW_DEVICE void finish_log_det(T log_det, T* log_dets, T* of_samples, int64_t batch) {
  if (log_dets == nullptr) {
    if (blockIdx.x == 0)
#pragma unroll 1
      for (int64_t i = threadIdx.x; i < batch; i += threads) of_samples[i] = 0;
    return;
  }
  const T total = sum_of_block<threads>(log_det);
  if (threadIdx.x == 0) log_dets[blockIdx.x] = total;
}

// totals[i] = sum_k partial[i * total_stride + k * term_stride] over `terms` terms, for i < count.
struct PartialSums {
  const void* partial;
  void* totals;
  int64_t count, terms, total_stride, term_stride;
};

// In one launch. T is the state's arithmetic type.
template <class T>
void add_partial_sums(const Site& site, const PartialSums& some, const PartialSums& others = {});

}  // namespace invflow::cuda
