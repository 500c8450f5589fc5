// The kernels of coupling.cu for a map that the compiler knows (see published.h): every thread asks for all that it
// needs of several units at once. A unit is 16 bytes of the pixels of one channel.
#pragma once

#include "flow_step_known.h"

namespace invflow::cuda {

constexpr int kUnitThreads = 256;

struct KnownUnits {
  unsigned channels, of_channel;
  int blocks;  // of a sample
};

// The unit of a thread in one turn.
template <int kPixels, int kUnits>
INVFLOW_DEVICE bool unit_at(const KnownUnits& units, unsigned block, int turn, int& channel, int64_t& pixel) {
  const unsigned unit = (block * kUnits + turn) * kUnitThreads + threadIdx.x;
  channel = static_cast<int>(unit / units.of_channel);
  pixel = static_cast<int64_t>(unit - channel * units.of_channel) * kPixels;
  return unit < units.channels * units.of_channel;
}

template <int kStateBytes, int kBytesOfH, bool inverse, int kUnits>
__global__ void __launch_bounds__(kUnitThreads, 3)
    coupling_known_kernel(const __grid_constant__ KnownStep step, const KnownUnits units, float* log_dets) {
  constexpr int kPixels = 16 / kStateBytes;
  const KnownMapArguments& map = step.before[0];
  const unsigned sample = blockIdx.x / units.blocks, block = blockIdx.x - sample * units.blocks;
  const int in_h = map.repeat == 1 ? sample : sample / map.repeat;
  Packed<kStateBytes, kPixels> x[kUnits];
  Fetched<kBytesOfH, kPixels, 1> h[kUnits];
#pragma unroll
  for (int turn = 0; turn < kUnits; ++turn) {
    int channel;
    int64_t pixel;
    if (!unit_at<kPixels, kUnits>(units, block, turn, channel, pixel)) continue;
    const Pixels at{static_cast<int>(sample), pixel};
    fetch(step.x.template at<kStateBytes>(at) + static_cast<int64_t>(channel) * step.x.row, x[turn]);
    h[turn].fetch_rows(map, map.h.shifts.template at<kBytesOfH>({in_h, pixel}), channel);
  }
  float log_det = 0;
#pragma unroll
  for (int turn = 0; turn < kUnits; ++turn) {
    int channel;
    int64_t pixel;
    if (!unit_at<kPixels, kUnits>(units, block, turn, channel, pixel)) continue;
    if (map.transforms(channel)) {
      float values[kPixels], shift[kPixels], raw[kPixels];
      unpack(x[turn], step.dtype, values);
      h[turn].get(map, 0, shift, raw);
      log_det += KnownMap<inverse>{map.eps}.apply(shift, raw, values);
      pack(values, step.dtype, x[turn]);
    }
    const Pixels at{static_cast<int>(sample), pixel};
    place(x[turn], step.y.template at<kStateBytes>(at) + static_cast<int64_t>(channel) * step.y.row);
  }
  let_next_begin();
  const float total = sum_of_block<kUnitThreads>(log_det);
  if (threadIdx.x == 0) log_dets[blockIdx.x] = total;
}

template <int kStateBytes, int kBytesOfH, bool inverse, int kUnits>
__global__ void __launch_bounds__(kUnitThreads, 3)
    coupling_backward_known_kernel(const __grid_constant__ KnownStep step, const KnownUnits units) {
  constexpr int kPixels = 16 / kStateBytes;
  const KnownMapArguments& map = step.before[0];
  const unsigned sample = blockIdx.x / units.blocks, block = blockIdx.x - sample * units.blocks;
  Packed<kStateBytes, kPixels> x[kUnits], grad_y[kUnits];
  Fetched<kBytesOfH, kPixels, 1> h[kUnits];
#pragma unroll
  for (int turn = 0; turn < kUnits; ++turn) {
    int channel;
    int64_t pixel;
    if (!unit_at<kPixels, kUnits>(units, block, turn, channel, pixel)) continue;
    const Pixels at{static_cast<int>(sample), pixel};
    fetch(step.grad_y.template at<kStateBytes>(at) + static_cast<int64_t>(channel) * step.grad_y.row, grad_y[turn]);
    if (!map.transforms(channel)) continue;
    fetch(step.x.template at<kStateBytes>(at) + static_cast<int64_t>(channel) * step.x.row, x[turn]);
    h[turn].fetch_rows(map, map.h.shifts.template at<kBytesOfH>(at), channel);
  }
  const float grad_log_det = step.grad_log_det[sample];
#pragma unroll
  for (int turn = 0; turn < kUnits; ++turn) {
    int channel;
    int64_t pixel;
    if (!unit_at<kPixels, kUnits>(units, block, turn, channel, pixel)) continue;
    const Pixels at{static_cast<int>(sample), pixel};
    if (map.transforms(channel)) {
      float grad[kPixels], operand[kPixels], shift[kPixels], raw[kPixels];
      unpack(grad_y[turn], step.dtype, grad);
      unpack(x[turn], step.dtype, operand);
      h[turn].get(map, 0, shift, raw);
      if (!inverse)
#pragma unroll
        for (int j = 0; j < kPixels; ++j) operand[j] += shift[j];
      KnownMap<inverse>{map.eps}.differentiate(grad_log_det, operand, raw, grad);
      place_gradients<kBytesOfH>(map, map.grad_h.shifts.template at<kBytesOfH>(at), channel, operand, raw);
      pack(grad, step.dtype, grad_y[turn]);
    }
    place(grad_y[turn], step.grad_x.template at<kStateBytes>(at) + static_cast<int64_t>(channel) * step.grad_x.row);
  }
}

}  // namespace invflow::cuda
