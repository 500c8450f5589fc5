// The kernel of flow_step_backward.cu for maps that the compiler knows and no shared h (see published.h): every thread
// asks for all that it needs of several rows at once, and keeps what it has of the products in registers.
#pragma once

#include "flow_step_known.h"
#include "outer_product.h"

namespace invflow::cuda {

template <int kPixels, int kChannels, class W>
using BackwardShape = Geometry<kChannels, kPixels, W::kOwned, W::kThreads,
                               kChannels == 192 ? 8 : (kChannels == 96 ? 24 : 16), W::kMostResident>;

// The same pixels, computed anew as far as the compiler knows: addresses made of them are not kept in registers from
// one use to the next, where those are scarce.
INVFLOW_DEVICE Pixels again(Pixels at) {
  int first = static_cast<int>(at.first);
  asm volatile("" : "+r"(first), "+r"(at.sample));
  return {at.sample, first};
}

// The operand of the scale of a map before the matrix, and its raw scale, read again.
template <int kStateBytes, int kBytesOfH, bool inverse, int n>
INVFLOW_DEVICE void operand_and_raw(const KnownStep& step, int map, Pixels at, int row, float (&operand)[n],
                                    float (&raw)[n]) {
  Packed<kStateBytes, n> x;
  fetch(step.x.template at<kStateBytes>(at) + static_cast<int64_t>(row) * step.x.row, x);
  unpack(x, step.dtype, operand);
#pragma unroll
  for (int i = 0; i < (inverse ? 2 : 1); ++i)
    if (i <= map && step.before[i].transforms(row)) {
      const KnownMapArguments& own = step.before[i];
      Fetched<kBytesOfH, n, 1> h;
      float shift[n];
      h.fetch_rows(own, own.h.shifts.template at<kBytesOfH>(at), row);
      h.get(own, 0, shift, raw);
      if (i < map) {
        KnownMap<inverse>{own.eps}.apply(shift, raw, operand);
      } else if (!inverse) {
#pragma unroll
        for (int j = 0; j < n; ++j) operand[j] += shift[j];
      }
    }
}

template <int kStateBytes, int kPixels, int kBytesOfH, int kChannels, bool inverse, class W>
__global__ void __launch_bounds__(W::kThreads, W::kBlocks)
    flow_step_backward_known_kernel(const __grid_constant__ KnownStep step,
                                    const BackwardShape<kPixels, kChannels, W> geometry, const Items items,
                                    float* grad_matrix, float* grad_shift) {
  using G = BackwardShape<kPixels, kChannels, W>;
  constexpr int kRows = G::kRows, kAtOnce = part_of(kRows, W::kRowsAtOnce);
  constexpr int kBefore = inverse ? 2 : 1;
  using State = Packed<kStateBytes, kPixels>;
  INVFLOW_SHARED(float, inner);
  float* const product = inner + geometry.tile_size();  // its gradient
  float* const weights = product + geometry.tile_size();
  float* const sums = weights + geometry.weights_size();
  using Outer = OuterProduct<kChannels, W::kThreads, float>;
  float* const kept = sums + Outer::kKept;
  const int stride = geometry.stride(), first = geometry.first_row(0);
  const bool has_after = !inverse && step.has_after;
  // what is kept of a map for a channel of the state: the operand of the scale, and then the raw scale
  const auto kept_row = [&](const KnownMapArguments& map, int channel) {
    return kept + (map.kept + 2 * channel) * geometry.pixels();
  };

  bool loads = true;
  for (unsigned item = blockIdx.x; item < items.count; item += gridDim.x) {
    Pixels at = items.tiles.at(item);
    at.first += geometry.column() * kPixels;
    const bool inside = at.first < step.pixels;
    const float grad_log_det = step.grad_log_det[at.sample];

    {
      const Pixels here = again(at);
      const char* const x_rows = step.x.template at<kStateBytes>(here);
      const char* h_rows[kBefore];
#pragma unroll
      for (int i = 0; i < kBefore; ++i)
        if (i < step.before_count) h_rows[i] = step.before[i].h.shifts.template at<kBytesOfH>(here);
#pragma unroll 1
      for (int row = first; row < first + kRows; row += kAtOnce) {
        State x[kAtOnce];
        Fetched<kBytesOfH, kPixels, kAtOnce> h[kBefore];
        if (inside) {
#pragma unroll
          for (int r = 0; r < kAtOnce; ++r) fetch(x_rows + static_cast<int64_t>(row + r) * step.x.row, x[r]);
#pragma unroll
          for (int i = 0; i < kBefore; ++i)
            if (i < step.before_count) h[i].fetch_rows(step.before[i], h_rows[i], row);
        }
        if (loads) load_resident(geometry, step.matrix, weights);
        loads = false;
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
                if (items.keeps) {
                  float operand[kPixels];
#pragma unroll
                  for (int j = 0; j < kPixels; ++j) operand[j] = inverse ? values[j] : values[j] + shift[j];
                  geometry.put(operand, kept_row(step.before[i], row + r));
                  geometry.put(raw, kept_row(step.before[i], row + r) + geometry.pixels());
                }
                KnownMap<inverse>{step.before[i].eps}.apply(shift, raw, values);
              }
          }
          geometry.put(values, inner + (row + r) * stride);
        }
      }
    }

    {
      const Pixels here = again(at);
      const char* const grad_y_rows = step.grad_y.template at<kStateBytes>(here);
      const char* const h_rows = step.after.h.shifts.template at<kBytesOfH>(here);
      char* const grad_h_rows = step.after.grad_h.shifts.template at<kBytesOfH>(here);
      State grad_y[kAtOnce];
      Fetched<kBytesOfH, kPixels, kAtOnce> h;
      const auto fetch_rows = [&](int row) {
        if (!inside) return;
#pragma unroll
        for (int r = 0; r < kAtOnce; ++r)
          fetch(grad_y_rows + static_cast<int64_t>(row + r) * step.grad_y.row, grad_y[r]);
        if (has_after) h.fetch_rows(step.after, h_rows, row);
      };
      if constexpr (W::kEarly) fetch_rows(first);
      if (has_after) {
        float sum[kRows][kPixels];
        start_with_shift(geometry, step.shift, 0, sum);
        add_product<false>(geometry, step.matrix, weights, inner, 0, sum);
#pragma unroll
        for (int r = 0; r < kRows; ++r) geometry.put(sum[r], product + (first + r) * stride);
      }
#pragma unroll 1
      for (int row = first; row < first + kRows; row += kAtOnce) {
        if (!W::kEarly || row > first) fetch_rows(row);
#pragma unroll
        for (int r = 0; r < kAtOnce; ++r) {
          float* const own = product + (row + r) * stride;
          float grad[kPixels] = {};
          if (inside) {
            unpack(grad_y[r], step.dtype, grad);
            if (has_after && step.after.transforms(row + r)) {
              float operand[kPixels], shift[kPixels], raw[kPixels];
              geometry.get(own, operand);
              h.get(step.after, r, shift, raw);
#pragma unroll
              for (int j = 0; j < kPixels; ++j) operand[j] += shift[j];
              KnownMap<inverse>{step.after.eps}.differentiate(grad_log_det, operand, raw, grad);
              place_gradients<kBytesOfH>(step.after, grad_h_rows, row + r, operand, raw);
            }
          }
          geometry.put(grad, own);
        }
      }
    }

    __syncthreads();
    Outer::add_to(sums, item == blockIdx.x, product, inner, stride, geometry.pixels());
    {
      float sum[kRows][kPixels] = {};
      add_product<true>(geometry, step.matrix, weights, product, 0, sum);
      // into the place of `inner`, which nobody reads any more
#pragma unroll
      for (int r = 0; r < kRows; ++r) geometry.put(sum[r], inner + (first + r) * stride);
    }
    if (inside) {
      const Pixels here = again(at);
      char* const grad_x_rows = step.grad_x.template at<kStateBytes>(here);
      char* grad_h_rows[kBefore];
#pragma unroll
      for (int i = 0; i < kBefore; ++i) grad_h_rows[i] = step.before[i].grad_h.shifts.template at<kBytesOfH>(here);
#pragma unroll 1
      for (int row = first; row < first + kRows; ++row) {
        float grad[kPixels];
        geometry.get(inner + row * stride, grad);
#pragma unroll
        for (int i = kBefore - 1; i >= 0; --i)
          if (i < step.before_count && step.before[i].transforms(row)) {
            float operand[kPixels], raw[kPixels];
            if (items.keeps) {
              geometry.get(kept_row(step.before[i], row), operand);
              geometry.get(kept_row(step.before[i], row) + geometry.pixels(), raw);
            } else {
              operand_and_raw<kStateBytes, kBytesOfH, inverse>(step, i, here, row, operand, raw);
            }
            KnownMap<inverse>{step.before[i].eps}.differentiate(grad_log_det, operand, raw, grad);
            place_gradients<kBytesOfH>(step.before[i], grad_h_rows[i], row, operand, raw);
          }
        State grad_x;
        pack(grad, step.dtype, grad_x);
        place(grad_x, grad_x_rows + static_cast<int64_t>(row) * step.grad_x.row);
      }
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
