// The kernels of coupling_known.h for channels_last tensors. A unit is a few successive channels of one pixel: 16 bytes
// of a float32 state, or less. Neighbouring threads take neighbouring units.
#pragma once

#include "channels_last.h"
#include "coupling_known.h"

namespace invflow::cuda {

struct LastUnits {
  unsigned of_pixel, of_sample;
  int blocks;  // of a sample
};

// The unit of a thread in one turn. Those past the last are not inside of the sample.
template <int kOwn, int kUnits>
struct LastUnit {
  INVFLOW_DEVICE LastUnit(const LastUnits& units, unsigned block, int turn) {
    const unsigned unit = (block * kUnits + turn) * kUnitThreads + threadIdx.x;
    pixel = static_cast<int>(unit / units.of_pixel);
    channel = static_cast<int>(unit - pixel * units.of_pixel) * kOwn;
    inside = unit < units.of_sample;
  }

  INVFLOW_DEVICE Pixels at(unsigned sample) const { return {static_cast<int>(sample), pixel}; }

  int pixel, channel;
  bool inside;
};

template <int kOwn>
INVFLOW_DEVICE void take_apart(const float (&h)[2 * kOwn], float (&shift)[kOwn], float (&raw)[kOwn]) {
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    shift[i] = h[2 * i];
    raw[i] = h[2 * i + 1];
  }
}

template <int kStateBytes, int kBytesOfH, int kOwn, bool inverse, int kUnits>
__global__ void __launch_bounds__(kUnitThreads, 3)
    coupling_last_kernel(const __grid_constant__ KnownStep step, const LastUnits units, float* log_dets) {
  const KnownMapArguments& map = step.before[0];
  const unsigned sample = blockIdx.x / units.blocks, block = blockIdx.x - sample * units.blocks;
  Packed<kStateBytes, kOwn> x[kUnits];
  Packed<kBytesOfH, 2 * kOwn> h[kUnits];
#pragma unroll
  for (int turn = 0; turn < kUnits; ++turn) {
    const LastUnit<kOwn, kUnits> unit(units, block, turn);
    if (!unit.inside) continue;
    fetch(at_channel<kStateBytes>(step.x, sample, unit.pixel, unit.channel), x[turn]);
    if (map.transforms(unit.channel))
      fetch(at_shift<kBytesOfH>(map, map.h.shifts, unit.at(sample), unit.channel), h[turn]);
  }
  float log_det = 0;
#pragma unroll
  for (int turn = 0; turn < kUnits; ++turn) {
    const LastUnit<kOwn, kUnits> unit(units, block, turn);
    if (!unit.inside) continue;
    if (map.transforms(unit.channel)) {
      float values[kOwn], numbers[2 * kOwn], shift[kOwn], raw[kOwn];
      unpack(x[turn], step.dtype, values);
      unpack(h[turn], map.dtype, numbers);
      take_apart(numbers, shift, raw);
      log_det += KnownMap<inverse>{map.eps}.apply(shift, raw, values);
      pack(values, step.dtype, x[turn]);
    }
    place(x[turn], at_channel<kStateBytes>(step.y, sample, unit.pixel, unit.channel));
  }
  let_next_begin();
  const float total = sum_of_block<kUnitThreads>(log_det);
  if (threadIdx.x == 0) log_dets[blockIdx.x] = total;
}

template <int kStateBytes, int kBytesOfH, int kOwn, bool inverse, int kUnits>
__global__ void __launch_bounds__(kUnitThreads, 3)
    coupling_backward_last_kernel(const __grid_constant__ KnownStep step, const LastUnits units) {
  const KnownMapArguments& map = step.before[0];
  const unsigned sample = blockIdx.x / units.blocks, block = blockIdx.x - sample * units.blocks;
  Packed<kStateBytes, kOwn> x[kUnits], grad_y[kUnits];
  Packed<kBytesOfH, 2 * kOwn> h[kUnits];
#pragma unroll
  for (int turn = 0; turn < kUnits; ++turn) {
    const LastUnit<kOwn, kUnits> unit(units, block, turn);
    if (!unit.inside) continue;
    fetch(at_channel<kStateBytes>(step.grad_y, sample, unit.pixel, unit.channel), grad_y[turn]);
    if (!map.transforms(unit.channel)) continue;
    fetch(at_channel<kStateBytes>(step.x, sample, unit.pixel, unit.channel), x[turn]);
    fetch(at_shift<kBytesOfH>(map, map.h.shifts, unit.at(sample), unit.channel), h[turn]);
  }
  const float grad_log_det = step.grad_log_det[sample];
#pragma unroll
  for (int turn = 0; turn < kUnits; ++turn) {
    const LastUnit<kOwn, kUnits> unit(units, block, turn);
    if (!unit.inside) continue;
    if (map.transforms(unit.channel)) {
      float grad[kOwn], operand[kOwn], numbers[2 * kOwn], shift[kOwn], raw[kOwn];
      unpack(grad_y[turn], step.dtype, grad);
      unpack(x[turn], step.dtype, operand);
      unpack(h[turn], map.dtype, numbers);
      take_apart(numbers, shift, raw);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) operand[i] += inverse ? 0.f : shift[i];
      KnownMap<inverse>{map.eps}.differentiate(grad_log_det, operand, raw, grad);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        numbers[2 * i] = operand[i];
        numbers[2 * i + 1] = raw[i];
      }
      pack(numbers, map.dtype, h[turn]);
      place(h[turn], at_shift<kBytesOfH>(map, map.grad_h.shifts, unit.at(sample), unit.channel));
      pack(grad, step.dtype, grad_y[turn]);
    }
    place(grad_y[turn], at_channel<kStateBytes>(step.grad_x, sample, unit.pixel, unit.channel));
  }
}

}  // namespace invflow::cuda
