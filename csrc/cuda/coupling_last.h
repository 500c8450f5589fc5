// The kernels of coupling_known.h for channels_last tensors. A unit is a few successive channels of one pixel: 16 bytes
// of a float32 state, or less. Neighbouring threads take neighbouring units.
#pragma once

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

  int pixel, channel;
  bool inside;
};

// Where a unit stands in a state, and in an h or its gradient: shift and raw scale of each channel in turn.
template <int kBytes, class U>
INVFLOW_DEVICE char* unit_of_state(const Rows& rows, unsigned sample, const U& unit) {
  return rows.data + sample * rows.sample + static_cast<int64_t>(unit.pixel) * rows.row + unit.channel * kBytes;
}
template <int kBytes, class U>
INVFLOW_DEVICE char* unit_of_h(const KnownMapArguments& map, const Rows& rows, unsigned sample, const U& unit) {
  return rows.data + sample * rows.sample + static_cast<int64_t>(unit.pixel) * rows.row +
         2 * (unit.channel - map.start) * kBytes;
}

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
  const unsigned in_h = map.repeat == 1 ? sample : sample / map.repeat;
  Packed<kStateBytes, kOwn> x[kUnits];
  Packed<kBytesOfH, 2 * kOwn> h[kUnits];
#pragma unroll
  for (int turn = 0; turn < kUnits; ++turn) {
    const LastUnit<kOwn, kUnits> unit(units, block, turn);
    if (!unit.inside) continue;
    fetch(unit_of_state<kStateBytes>(step.x, sample, unit), x[turn]);
    if (map.transforms(unit.channel)) fetch(unit_of_h<kBytesOfH>(map, map.h.shifts, in_h, unit), h[turn]);
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
    place(x[turn], unit_of_state<kStateBytes>(step.y, sample, unit));
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
    fetch(unit_of_state<kStateBytes>(step.grad_y, sample, unit), grad_y[turn]);
    if (!map.transforms(unit.channel)) continue;
    fetch(unit_of_state<kStateBytes>(step.x, sample, unit), x[turn]);
    fetch(unit_of_h<kBytesOfH>(map, map.h.shifts, sample, unit), h[turn]);
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
      place(h[turn], unit_of_h<kBytesOfH>(map, map.grad_h.shifts, sample, unit));
      pack(grad, step.dtype, grad_y[turn]);
    }
    place(grad_y[turn], unit_of_state<kStateBytes>(step.grad_x, sample, unit));
  }
}

}  // namespace invflow::cuda
