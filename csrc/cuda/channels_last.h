// flow_step for channels_last tensors and maps that the compiler knows (see published.h). A unit is 4 pixels of a few
// successive channels: a thread reads it with accesses along the channels, turns it in registers and puts it into the
// tile with accesses along the pixels.
#pragma once

#include "flow_step_known.h"
#include "outer_product.h"

namespace invflow::cuda {

constexpr int kPixelsOfUnit = 4;

// The tile of a block, divided in units. Neighbouring threads take neighbouring channels.
template <int kChannels>
struct Unit {
  static constexpr int kOwn = run_of_channels(kChannels), kOfPixels = kChannels / kOwn;

  INVFLOW_DEVICE explicit Unit(int number)
      : channel(number % kOfPixels * kOwn), pixel(number / kOfPixels * kPixelsOfUnit) {}

  int channel, pixel;
};

// The numbers of a unit in memory, kNumbers for each pixel.
template <int kBytes, int kNumbers>
struct FetchedUnit {
  Packed<kBytes, kNumbers> of_pixel[kPixelsOfUnit];

  INVFLOW_DEVICE void fetch_pixels(const char* from, int row) {
#pragma unroll
    for (int j = 0; j < kPixelsOfUnit; ++j) fetch(from + static_cast<int64_t>(j) * row, of_pixel[j]);
  }

  // `values[i]` are those of all pixels for number i.
  INVFLOW_DEVICE void get(Dtype dtype, float (&values)[kNumbers][kPixelsOfUnit]) const {
#pragma unroll
    for (int j = 0; j < kPixelsOfUnit; ++j) {
      float numbers[kNumbers];
      unpack(of_pixel[j], dtype, numbers);
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) values[i][j] = numbers[i];
    }
  }
};

template <int kBytes, int kNumbers>
INVFLOW_DEVICE void place_pixels(const float (&values)[kNumbers][kPixelsOfUnit], Dtype dtype, char* to, int row) {
#pragma unroll
  for (int j = 0; j < kPixelsOfUnit; ++j) {
    float numbers[kNumbers];
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) numbers[i] = values[i][j];
    Packed<kBytes, kNumbers> packed;
    pack(numbers, dtype, packed);
    place(packed, to + static_cast<int64_t>(j) * row);
  }
}

template <int kNumbers>
INVFLOW_DEVICE void put_unit(const float (&values)[kNumbers][kPixelsOfUnit], float* tile, int stride) {
#pragma unroll
  for (int i = 0; i < kNumbers; ++i) store_run<float>(tile, i * stride, values[i]);
}

template <int kNumbers>
INVFLOW_DEVICE void get_unit(const float* tile, int stride, float (&values)[kNumbers][kPixelsOfUnit]) {
#pragma unroll
  for (int i = 0; i < kNumbers; ++i) load_run<float>(tile, i * stride, values[i]);
}

// Rows of channels_last tensors are those of pixels. Where channel `channel` of some pixels stands in a state, and
// their shift in an h.
template <int kBytes>
INVFLOW_DEVICE char* at_channel(const Rows& rows, int sample, int64_t pixel, int channel) {
  return rows.data + sample * rows.sample + pixel * rows.row + channel * kBytes;
}
template <int kBytes>
INVFLOW_DEVICE char* at_shift(const KnownMapArguments& map, const Rows& rows, Pixels at, int channel) {
  const int sample = map.repeat == 1 ? at.sample : at.sample / map.repeat;
  return at_channel<kBytes>(rows, sample, at.first, 2 * (channel - map.start));
}

// All channels of a unit through a map; returns the log-determinant. `h`: shift and raw scale of each channel in turn.
template <bool inverse, int kOwn>
INVFLOW_DEVICE float apply_unit(const KnownMapArguments& map, const float (&h)[2 * kOwn][kPixelsOfUnit],
                                float (&x)[kOwn][kPixelsOfUnit]) {
  float log_det = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) log_det += KnownMap<inverse>{map.eps}.apply(h[2 * i], h[2 * i + 1], x[i]);
  return log_det;
}

// The same for `differentiate`, of which h's gradients are written; the operand comes without the shift.
template <int kBytes, bool inverse, int kOwn>
INVFLOW_DEVICE void differentiate_unit(const KnownMapArguments& map, Pixels at, int channel, float grad_log_det,
                                       float (&operand)[kOwn][kPixelsOfUnit], float (&h)[2 * kOwn][kPixelsOfUnit],
                                       float (&grad)[kOwn][kPixelsOfUnit]) {
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
#pragma unroll
    for (int j = 0; j < kPixelsOfUnit; ++j) h[2 * i][j] = operand[i][j] + (inverse ? 0.f : h[2 * i][j]);
    KnownMap<inverse>{map.eps}.differentiate(grad_log_det, h[2 * i], h[2 * i + 1], grad[i]);
  }
  place_pixels<kBytes>(h, map.dtype, at_shift<kBytes>(map, map.grad_h.shifts, at, channel), map.grad_h.shifts.row);
}

template <int kChannels, class W>
using LastShape =
    Geometry<kChannels, kPixelsOfUnit, W::kOwned, W::kThreads, kChannels == 96 ? 24 : 16, W::kMostResident>;

template <int kStateBytes, int kBytesOfH, int kChannels, bool inverse, class W>
__global__ void __launch_bounds__(W::kThreads, W::kBlocks)
    flow_step_last_kernel(const __grid_constant__ KnownStep step, const LastShape<kChannels, W> geometry,
                          const Tiles tiles, float* log_dets) {
  using G = LastShape<kChannels, W>;
  using U = Unit<kChannels>;
  constexpr int kBefore = inverse ? 2 : 1, kOwn = U::kOwn;
  constexpr int kUnits = G::kThreads * G::kRows / kOwn;  // of a tile
  INVFLOW_SHARED(float, state);
  float* const weights = state + geometry.tile_size();
  const int stride = geometry.stride();
  const Pixels tile = tiles.at(blockIdx.x);

  float log_det = 0;
#pragma unroll 1
  for (int number = threadIdx.x; number < kUnits; number += W::kThreads) {
    const U unit(number);
    const Pixels at{tile.sample, tile.first + unit.pixel};
    const bool inside = at.first < step.pixels;
    FetchedUnit<kStateBytes, kOwn> x;
    FetchedUnit<kBytesOfH, 2 * kOwn> h[kBefore];
    if (inside) {
      x.fetch_pixels(at_channel<kStateBytes>(step.x, at.sample, at.first, unit.channel), step.x.row);
#pragma unroll
      for (int i = 0; i < kBefore; ++i)
        if (i < step.before_count && step.before[i].transforms(unit.channel))
          h[i].fetch_pixels(at_shift<kBytesOfH>(step.before[i], step.before[i].h.shifts, at, unit.channel),
                            step.before[i].h.shifts.row);
    }
    if (number < W::kThreads) load_resident(geometry, step.matrix, weights);
    float values[kOwn][kPixelsOfUnit] = {};
    if (inside) {
      x.get(step.dtype, values);
#pragma unroll
      for (int i = 0; i < kBefore; ++i)
        if (i < step.before_count && step.before[i].transforms(unit.channel)) {
          float numbers[2 * kOwn][kPixelsOfUnit];
          h[i].get(step.before[i].dtype, numbers);
          log_det += apply_unit<inverse>(step.before[i], numbers, values);
        }
    }
    put_unit(values, state + unit.channel * stride + unit.pixel, stride);
  }

  {
    const int first = geometry.first_row(0);
    float sum[G::kRows][kPixelsOfUnit];
    start_with_shift(geometry, step.shift, 0, sum);
    add_product<false>(geometry, step.matrix, weights, state, 0, sum);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < G::kRows; ++r) geometry.put(sum[r], state + (first + r) * stride);
  }
  __syncthreads();
  let_next_begin();
#pragma unroll 1
  for (int number = threadIdx.x; number < kUnits; number += W::kThreads) {
    const U unit(number);
    const Pixels at{tile.sample, tile.first + unit.pixel};
    if (at.first >= step.pixels) continue;
    float values[kOwn][kPixelsOfUnit];
    const bool transformed = !inverse && step.has_after && step.after.transforms(unit.channel);
    FetchedUnit<kBytesOfH, 2 * kOwn> h;
    if (transformed)
      h.fetch_pixels(at_shift<kBytesOfH>(step.after, step.after.h.shifts, at, unit.channel), step.after.h.shifts.row);
    get_unit(state + unit.channel * stride + unit.pixel, stride, values);
    if (transformed) {
      float numbers[2 * kOwn][kPixelsOfUnit];
      h.get(step.after.dtype, numbers);
      log_det += apply_unit<inverse>(step.after, numbers, values);
    }
    place_pixels<kStateBytes>(values, step.dtype, at_channel<kStateBytes>(step.y, at.sample, at.first, unit.channel),
                              step.y.row);
  }
  finish_log_det<W::kThreads>(log_det, log_dets, step.log_det, step.batch);
}

template <int kStateBytes, int kBytesOfH, int kChannels, bool inverse, class W>
__global__ void __launch_bounds__(W::kThreads, W::kBlocks)
    flow_step_backward_last_kernel(const __grid_constant__ KnownStep step, const LastShape<kChannels, W> geometry,
                                   const Items items, float* grad_matrix, float* grad_shift) {
  using G = LastShape<kChannels, W>;
  using U = Unit<kChannels>;
  using Outer = OuterProduct<kChannels, W::kThreads, float>;
  constexpr int kBefore = inverse ? 2 : 1, kOwn = U::kOwn;
  constexpr int kUnits = G::kThreads * G::kRows / kOwn;
  INVFLOW_SHARED(float, inner);
  float* const product = inner + geometry.tile_size();  // its gradient
  float* const weights = product + geometry.tile_size();
  float* const sums = weights + geometry.weights_size();
  const int stride = geometry.stride(), first = geometry.first_row(0);
  const bool has_after = !inverse && step.has_after;

  bool loads = true;
  for (unsigned item = blockIdx.x; item < items.count; item += gridDim.x) {
    const Pixels tile = items.tiles.at(item);
    const float grad_log_det = step.grad_log_det[tile.sample];
#pragma unroll 1
    for (int number = thread_again(); number < kUnits; number += W::kThreads) {
      const U unit(number);
      const Pixels at{tile.sample, tile.first + unit.pixel};
      const bool inside = at.first < step.pixels;
      FetchedUnit<kStateBytes, kOwn> x;
      FetchedUnit<kBytesOfH, 2 * kOwn> h[kBefore];
      if (inside) {
        x.fetch_pixels(at_channel<kStateBytes>(step.x, at.sample, at.first, unit.channel), step.x.row);
#pragma unroll
        for (int i = 0; i < kBefore; ++i)
          if (i < step.before_count && step.before[i].transforms(unit.channel))
            h[i].fetch_pixels(at_shift<kBytesOfH>(step.before[i], step.before[i].h.shifts, at, unit.channel),
                              step.before[i].h.shifts.row);
      }
      if (loads) load_resident(geometry, step.matrix, weights);
      loads = false;
      float values[kOwn][kPixelsOfUnit] = {};
      if (inside) {
        x.get(step.dtype, values);
#pragma unroll
        for (int i = 0; i < kBefore; ++i)
          if (i < step.before_count && step.before[i].transforms(unit.channel)) {
            float numbers[2 * kOwn][kPixelsOfUnit];
            h[i].get(step.before[i].dtype, numbers);
            apply_unit<inverse>(step.before[i], numbers, values);
          }
      }
      put_unit(values, inner + unit.channel * stride + unit.pixel, stride);
    }

    if (has_after) {
      float sum[G::kRows][kPixelsOfUnit];
      start_with_shift(geometry, step.shift, 0, sum);
      add_product<false>(geometry, step.matrix, weights, inner, 0, sum);
#pragma unroll
      for (int r = 0; r < G::kRows; ++r) geometry.put(sum[r], product + (first + r) * stride);
      __syncthreads();
    }
#pragma unroll 1
    for (int number = thread_again(); number < kUnits; number += W::kThreads) {
      const U unit(number);
      const Pixels at{tile.sample, tile.first + unit.pixel};
      float* const own = product + unit.channel * stride + unit.pixel;
      float grad[kOwn][kPixelsOfUnit] = {};
      if (at.first < step.pixels) {
        const bool transformed = has_after && step.after.transforms(unit.channel);
        FetchedUnit<kStateBytes, kOwn> grad_y;
        FetchedUnit<kBytesOfH, 2 * kOwn> h;
        grad_y.fetch_pixels(at_channel<kStateBytes>(step.grad_y, at.sample, at.first, unit.channel), step.grad_y.row);
        if (transformed)
          h.fetch_pixels(at_shift<kBytesOfH>(step.after, step.after.h.shifts, at, unit.channel),
                         step.after.h.shifts.row);
        grad_y.get(step.dtype, grad);
        if (transformed) {
          float numbers[2 * kOwn][kPixelsOfUnit], operand[kOwn][kPixelsOfUnit];
          h.get(step.after.dtype, numbers);
          get_unit(own, stride, operand);
          differentiate_unit<kBytesOfH, inverse>(step.after, at, unit.channel, grad_log_det, operand, numbers, grad);
        }
      }
      put_unit(grad, own, stride);
    }

    __syncthreads();
    Outer::add_to(sums, item == blockIdx.x, product, inner, stride, geometry.pixels());
    {
      float sum[G::kRows][kPixelsOfUnit] = {};
      add_product<true>(geometry, step.matrix, weights, product, 0, sum);
      // into the place of `inner`, which nobody reads any more
#pragma unroll
      for (int r = 0; r < G::kRows; ++r) geometry.put(sum[r], inner + (first + r) * stride);
    }
    __syncthreads();
#pragma unroll 1
    for (int number = thread_again(); number < kUnits; number += W::kThreads) {
      const U unit(number);
      const Pixels at{tile.sample, tile.first + unit.pixel};
      if (at.first >= step.pixels) continue;
      float grad[kOwn][kPixelsOfUnit];
      get_unit(inner + unit.channel * stride + unit.pixel, stride, grad);
#pragma unroll
      for (int i = kBefore - 1; i >= 0; --i)
        if (i < step.before_count && step.before[i].transforms(unit.channel)) {
          // read again: they stay in the caches
          FetchedUnit<kStateBytes, kOwn> x;
          float operand[kOwn][kPixelsOfUnit], numbers[2 * kOwn][kPixelsOfUnit];
          x.fetch_pixels(at_channel<kStateBytes>(step.x, at.sample, at.first, unit.channel), step.x.row);
          x.get(step.dtype, operand);
#pragma unroll
          for (int k = 0; k <= i; ++k)
            if (step.before[k].transforms(unit.channel)) {
              FetchedUnit<kBytesOfH, 2 * kOwn> h;
              h.fetch_pixels(at_shift<kBytesOfH>(step.before[k], step.before[k].h.shifts, at, unit.channel),
                             step.before[k].h.shifts.row);
              h.get(step.before[k].dtype, numbers);
              if (k < i) apply_unit<inverse>(step.before[k], numbers, operand);
            }
          differentiate_unit<kBytesOfH, inverse>(step.before[i], at, unit.channel, grad_log_det, operand, numbers,
                                                 grad);
        }
      place_pixels<kStateBytes>(
          grad, step.dtype, at_channel<kStateBytes>(step.grad_x, at.sample, at.first, unit.channel), step.grad_x.row);
    }
    __syncthreads();
  }
  let_next_begin();
  Outer outer;
  outer.take(sums);
  outer.store(inner, grad_matrix + static_cast<int64_t>(blockIdx.x) * kChannels * kChannels, kChannels,
              grad_shift + static_cast<int64_t>(blockIdx.x) * kChannels, kChannels, kChannels);
}

}  // namespace invflow::cuda
