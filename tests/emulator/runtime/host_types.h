// The number and vector types of CUDA's headers, for a host compiler without them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define CUDA_ON_CPU_VECTOR(T, name, bytes)       \
  struct alignas(2 * bytes) name##2 { T x, y; }; \
  struct alignas(4 * bytes < 16 ? 4 * bytes : 16) name##4 { T x, y, z, w; };
CUDA_ON_CPU_VECTOR(float, float, 4)
CUDA_ON_CPU_VECTOR(int, int, 4)
CUDA_ON_CPU_VECTOR(unsigned, uint, 4)
#undef CUDA_ON_CPU_VECTOR
struct alignas(16) double2 {
  double x, y;
};

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __half2float(__half value) {
  _Float16 number;
  memcpy(&number, &value, sizeof number);
  return static_cast<float>(number);
}
inline __half __float2half_rn(float value) {
  const _Float16 number = static_cast<_Float16>(value);
  __half half;
  memcpy(&half, &number, sizeof half);
  return half;
}
inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float number;
  memcpy(&number, &bits, sizeof number);
  return number;
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  if (std::isnan(value)) return {0x7fff};
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
