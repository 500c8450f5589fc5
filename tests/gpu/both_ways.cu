// A kernel with its launch, for test_through_ptx.py: compiled for the CPU, and by nvcc to PTX.
#ifdef INVFLOW_CUDA_ON_CPU
#include "cuda_on_cpu.h"
#else
#include <cuda_fp16.h>
#include <stdint.h>
#endif

namespace both_ways {

struct Scaling {
  const void* x;
  double factor;
  int n;
};

__device__ inline float number_of(float value) { return value; }
__device__ inline float number_of(__half value) { return __half2float(value); }

// out[i] = factor x[i] + block
template <typename T>
__global__ void scale_kernel(bool add, Scaling scaling, float* out) {
  __shared__ float block;
  if (threadIdx.x == 0) block = add ? float(blockIdx.x) : 0.f;
  __syncthreads();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < scaling.n) out[i] = scaling.factor * number_of(static_cast<const T*>(scaling.x)[i]) + block;
}

template __global__ void scale_kernel<float>(bool, Scaling, float*);
template __global__ void scale_kernel<__half>(bool, Scaling, float*);

}  // namespace both_ways

#ifdef INVFLOW_CUDA_ON_CPU
extern "C" const char* scale(int half, const void* x, double factor, int n, float* out) {
  using namespace both_ways;
  return cuda_on_cpu::launch(half ? scale_kernel<__half> : scale_kernel<float>, (n + 63) / 64, 64, 0, true,
                             Scaling{x, factor, n}, out);
}
#endif
