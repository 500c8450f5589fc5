// One kernel for each feature of CUDA that nvcc turns into PTX of its own kind. Each writes what test_ptx_nvcc.py
// computes again.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#include <stdint.h>

__constant__ float table[4] = {1.f, 2.f, 4.f, 8.f};
__device__ int calls = 0;

// out[i] = sum over the block of x, with shuffles, cooperative groups and shared memory of both kinds
extern "C" __global__ void block_sum(const float* x, float* out) {
  namespace cg = cooperative_groups;
  extern __shared__ float dynamic[];
  __shared__ float warps[8];
  const auto block = cg::this_thread_block();
  const auto warp = cg::tiled_partition<32>(block);
  const int i = threadIdx.x;
  dynamic[i] = x[blockIdx.x * blockDim.x + i] * table[i & 3];
  block.sync();
  float sum = cg::reduce(warp, dynamic[blockDim.x - 1 - i], cg::plus<float>());
  if (warp.thread_rank() == 0) warps[i / 32] = sum;
  __syncthreads();
  if (i < 32) {
    sum = i < int(blockDim.x) / 32 ? warps[i] : 0.f;
    for (int distance = 16; distance; distance >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, distance);
    if (i == 0) {
      out[blockIdx.x] = sum;
      atomicAdd(&calls, 1);
    }
  }
}

// out[i] = sum over tiles of a neighbour's element, through double-buffered cp.async
extern "C" __global__ void pipelined(const float* x, float* out, int tiles) {
  __shared__ __align__(16) float buffer[2][512];
  const int i = threadIdx.x;
  auto fetch = [&](int tile) {
    __pipeline_memcpy_async(&buffer[tile & 1][4 * i], x + tile * 512 + 4 * i, 16);
    __pipeline_commit();
  };
  fetch(0);
  float sum = 0.f;
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) fetch(tile + 1);
    __pipeline_wait_prior(tile + 1 < tiles ? 1 : 0);
    __syncthreads();
    sum += buffer[tile & 1][(4 * i + 5) % 512] * (tile + 1);
    __syncthreads();
  }
  out[i] = sum;
}

// votes, every kind of shuffle, integer arithmetic
extern "C" __global__ void warp_operations(const float* x, float* out) {
  const unsigned full = 0xffffffffu;
  const int i = threadIdx.x;
  const float value = x[i];
  out[i] = __popc(__ballot_sync(full, value > 0)) + __shfl_xor_sync(full, value, 3) +
           __shfl_up_sync(full, value, 2, 16) + __shfl_sync(full, value, 7, 8) + (__any_sync(full, value > 2) ? 1 : 0) +
           (__all_sync(full, value > -9) ? 2 : 0) + (i * 7919) / (int(blockDim.x) - 3) % 11 + __clz(i + 1) +
           __ffs(i + 1);
#if __CUDA_ARCH__ >= 800
  out[i] += __reduce_add_sync(full, i);
#else
  out[i] += 496 + 1024 * (i / 32);
#endif
}

// half and bfloat16 arithmetic, one and two at a time
extern "C" __global__ void halves(const float* x, float* out) {
  const int i = threadIdx.x;
  const __half2 pair = __floats2half2_rn(x[i], x[i + 1]);
  const __half2 product = __hadd2(__hfma2(pair, pair, __float2half2_rn(0.5f)), pair);
  __nv_bfloat16 brain = __float2bfloat16_rn(x[i]);
#if __CUDA_ARCH__ >= 800
  brain = __hmul(__hfma(brain, brain, brain), brain);
#else
  const float wide = __bfloat162float(brain), sum = __bfloat162float(__float2bfloat16_rn(fmaf(wide, wide, wide)));
  brain = __float2bfloat16_rn(sum * wide);
#endif
  out[i] = __low2float(product) + __high2float(product) + __bfloat162float(brain);
}

// the mathematical library with its slow paths, float64, an array indexed at run time
extern "C" __global__ void mathematics(const float* x, double* out, int n) {
  const int i = threadIdx.x;
  float local[16];
  for (int k = 0; k < 16; ++k) local[k] = x[(i + k) % n] * k;
  double sum = 0;
  for (int k = 0; k < 16; ++k) sum += local[(int(fabsf(x[i]) * 7) + k % 9) & 15];
  const float value = x[i];
  out[i] = sum / 3.0 + sinf(1e6f * value) + logf(fabsf(value) + 1e-30f) + powf(fabsf(value), 1.7f) + erff(value) +
           tanhf(value) + log1pf(value * value) + exp(double(value)) + sqrt(fabs(double(value))) + expm1f(value);
}

// switch, integer atomics
extern "C" __global__ void branches(const float* x, int* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const int value = int(x[i] * 1000);
  switch (i % 6) {
    case 0:
      atomicMax(&out[0], value);
      break;
    case 1:
      atomicMin(&out[1], value);
      break;
    case 2:
      atomicAdd(&out[2], value);
      break;
    case 3:
      atomicOr(&out[3], 1 << (i % 31));
      break;
    case 4:
      atomicXor(&out[4], value);
      break;
    default:
      atomicCAS(&out[5], 0, i);
      break;
  }
}

struct Scaling {
  const float* x;
  float factor;
  int n;
};
// a structure as parameter, 128-bit loads and stores
extern "C" __global__ void scaled(Scaling scaling, float* out) {
  const int i = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= scaling.n) return;
  float4 value = *reinterpret_cast<const float4*>(scaling.x + i);
  value.x *= scaling.factor;
  value.y *= scaling.factor;
  value.z *= scaling.factor;
  value.w *= scaling.factor;
  *reinterpret_cast<float4*>(out + i) = value;
}

#if __CUDA_ARCH__ >= 800
// out = a b for a of 16 x 16 and b of 16 x 8, through ldmatrix and mma.sync
extern "C" __global__ void tensor_core(const __half* a, const __half* b, float* out) {
  __shared__ __align__(16) __half left[16 * 16], right[16 * 8];
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) left[i] = a[i];
  for (int i = lane; i < 128; i += 32) right[i] = b[i];
  __syncwarp();
  uint32_t l[4], r[2];
  const auto left_row = uint32_t(__cvta_generic_to_shared(&left[lane % 16 * 16 + lane / 16 * 8]));
  const auto right_row = uint32_t(__cvta_generic_to_shared(&right[lane % 16 * 8]));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(l[0]), "=r"(l[1]), "=r"(l[2]), "=r"(l[3])
               : "r"(left_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(right_row));
  float c[4] = {0.f, 0.f, 0.f, 0.f};
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(l[0]), "r"(l[1]), "r"(l[2]), "r"(l[3]), "r"(r[0]), "r"(r[1]));
  const int row = lane / 4, column = 2 * (lane % 4);
  out[row * 8 + column] = c[0];
  out[row * 8 + column + 1] = c[1];
  out[(row + 8) * 8 + column] = c[2];
  out[(row + 8) * 8 + column + 1] = c[3];
}
#endif
