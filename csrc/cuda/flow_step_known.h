// The kernel of flow_step.cu for maps that the compiler knows (see published.h): every thread asks for all that it
// needs of several rows at once, before it computes with any of it.
#pragma once

#include "kernels.h"
#include "published.h"
#include "sums.h"
#include "tile.h"

namespace invflow::cuda {

// The largest divisor of a number that is at most `most`.
INVFLOW_BOTH constexpr int part_of(int number, int most) {
  int part = most < number ? most : number;
  while (number % part != 0) --part;
  return part;
}

// How a kernel divides its work: threads of a block; blocks that a multiprocessor is to run at once; numbers of the
// state that a thread owns; rows that it asks for at once; whether it asks for the h of the map after the matrix before
// the product; the most channels of which the whole matrix is held in shared memory.
template <int kThreads_, int kBlocks_, int kOwned_, int kRowsAtOnce_, bool kEarly_, int kMostResident_>
struct Work {
  static constexpr int kThreads = kThreads_, kBlocks = kBlocks_, kOwned = kOwned_, kRowsAtOnce = kRowsAtOnce_;
  static constexpr bool kEarly = kEarly_;
  static constexpr int kMostResident = kMostResident_;
};

template <int kStateBytes, int kPixels, int kChannels, class W>
using KnownShape = Geometry<kChannels, kPixels, W::kOwned, W::kThreads, kChannels == 96 ? 24 : 16, W::kMostResident>;

// h of one map for some rows of a thread.
template <int kBytes, int kPixels, int kRows>
struct Fetched {
  Packed<kBytes, kPixels> shift[kRows], raw[kRows];

  // `from`: see Rows::at.
  INVFLOW_DEVICE void fetch_rows(const KnownMapArguments& map, const char* from, int first) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (map.transforms(first + r)) {
        const char* const own = from + static_cast<int64_t>(first + r - map.start) * map.h.shifts.row;
        fetch(own, shift[r]);
        fetch(own + map.h.raws, raw[r]);
      }
  }

  INVFLOW_DEVICE void get(const KnownMapArguments& map, int r, float (&shifts)[kPixels], float (&raws)[kPixels]) const {
    unpack(shift[r], map.dtype, shifts);
    unpack(raw[r], map.dtype, raws);
  }
};

// `to`: see Rows::at.
template <int kBytes, int n>
INVFLOW_DEVICE void place_gradients(const KnownMapArguments& map, char* to, int channel, const float (&shift)[n],
                                    const float (&raw)[n]) {
  Packed<kBytes, n> packed;
  char* const own = to + static_cast<int64_t>(channel - map.start) * map.grad_h.shifts.row;
  pack(shift, map.dtype, packed);
  place(packed, own);
  pack(raw, map.dtype, packed);
  place(packed, own + map.grad_h.raws);
}

// The tiles of a block are every gridDim.x-th.
struct Items {
  Tiles tiles;
  unsigned count;
  bool keeps;  // what the maps before the matrix need in shared memory, instead of reading it again
};

template <int kStateBytes, int kBytesOfH, int kChannels, bool inverse, class W>
__global__ void __launch_bounds__(W::kThreads, W::kBlocks)
    flow_step_known_kernel(const __grid_constant__ KnownStep step,
                           const KnownShape<kStateBytes, 16 / kStateBytes, kChannels, W> geometry, const Tiles tiles,
                           float* log_dets) {
  constexpr int kPixels = 16 / kStateBytes;
  using G = KnownShape<kStateBytes, kPixels, kChannels, W>;
  constexpr int kRows = G::kRows, kAtOnce = part_of(kRows, W::kRowsAtOnce);
  constexpr int kBefore = inverse ? 2 : 1;
  INVFLOW_SHARED(float, state);
  float* const weights = state + geometry.tile_size();
  const int stride = geometry.stride(), first = geometry.first_row(0);
  Pixels at = tiles.at(blockIdx.x);
  at.first += geometry.column() * kPixels;
  const bool inside = at.first < step.pixels;
  const auto h_of = [&](const KnownMapArguments& map) {
    const int sample = map.repeat == 1 ? at.sample : at.sample / map.repeat;
    return map.h.shifts.template at<kBytesOfH>({sample, at.first});
  };

  float log_det = 0;
  {
    const char* const x_rows = step.x.template at<kStateBytes>(at);
    const char* h_rows[kBefore];
#pragma unroll
    for (int i = 0; i < kBefore; ++i)
      if (i < step.before_count) h_rows[i] = h_of(step.before[i]);
#pragma unroll 1
    for (int row = first; row < first + kRows; row += kAtOnce) {
      Packed<kStateBytes, kPixels> x[kAtOnce];
      Fetched<kBytesOfH, kPixels, kAtOnce> h[kBefore];
      if (inside) {
#pragma unroll
        for (int r = 0; r < kAtOnce; ++r) fetch(x_rows + static_cast<int64_t>(row + r) * step.x.row, x[r]);
#pragma unroll
        for (int i = 0; i < kBefore; ++i)
          if (i < step.before_count) h[i].fetch_rows(step.before[i], h_rows[i], row);
      }
      if (row == first) load_resident(geometry, step.matrix, weights);
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        float values[kPixels] = {};
        if (inside) {
          unpack(x[r], step.dtype, values);
#pragma unroll
          for (int i = 0; i < kBefore; ++i)
            if (i < step.before_count && step.before[i].transforms(row + r)) {
              float shift[kPixels], raw[kPixels];
              h[i].get(step.before[i], r, shift, raw);
              log_det += KnownMap<inverse>{step.before[i].eps}.apply(shift, raw, values);
            }
        }
        geometry.put(values, state + (row + r) * stride);
      }
    }
  }

  let_next_begin();
  const bool has_after = !inverse && step.has_after && inside;
  const char* const h_rows = has_after ? h_of(step.after) : nullptr;
  Fetched<kBytesOfH, kPixels, W::kEarly ? kRows : kAtOnce> h;
  if (W::kEarly && has_after) h.fetch_rows(step.after, h_rows, first);
  float sum[kRows][kPixels];
  start_with_shift(geometry, step.shift, 0, sum);
  add_product<false>(geometry, step.matrix, weights, state, 0, sum);
  char* const y_rows = step.y.template at<kStateBytes>(at);
#pragma unroll
  for (int row = 0; row < kRows; row += kAtOnce) {
    if (!W::kEarly && has_after) h.fetch_rows(step.after, h_rows, first + row);
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const int own = row + r;
      if (has_after && step.after.transforms(first + own)) {
        float shift[kPixels], raw[kPixels];
        h.get(step.after, W::kEarly ? own : r, shift, raw);
        log_det += KnownMap<inverse>{step.after.eps}.apply(shift, raw, sum[own]);
      }
      if (inside) {
        Packed<kStateBytes, kPixels> y;
        pack(sum[own], step.dtype, y);
        place(y, y_rows + static_cast<int64_t>(first + own) * step.y.row);
      }
    }
  }

  finish_log_det<W::kThreads>(log_det, log_dets, step.log_det, step.batch);
}

}  // namespace invflow::cuda
