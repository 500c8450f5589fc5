// The gradient of the matrix: sums over pixels of the outer product of two tiles, kept in registers from tile to tile.
#pragma once

#include "tile.h"

namespace invflow::cuda {

// kChannels x kChannels sums of products of rows, and kChannels sums of the left rows. A thread has 6 x 6 of them, of every
// kSide-th row, for one of kSlices parts of the pixels. Sums of a tile are added to sums of tiles, which rounds less.
template <int kChannels, int kThreads, class T>
struct OuterProduct {
  static constexpr int kOwned = 6, kSide = kChannels / kOwned, kSlices = kThreads / (kSide * kSide);
  static constexpr int kWarps = kThreads / 32, kRowsOfWarp = kChannels / kWarps;
  // The scratch memory of `store`: neighbouring threads write to different banks.
  static constexpr int kScratchRow = kSide < 8 ? kChannels : kChannels + 8;
  static constexpr int kScratchSlice = kChannels * kScratchRow + (kSide < 8 ? 32 / kSlices : 0);
  static_assert(kSide * kOwned == kChannels && kSlices * kSide * kSide == kThreads && kRowsOfWarp * kWarps == kChannels);

  // Neighbouring threads read neighbouring rows or, where those are few, neighbouring pixels: see Geometry.
  INVFLOW_DEVICE int slice() const { return kSide < 8 ? threadIdx.x % kSlices : threadIdx.x / (kSide * kSide); }
  INVFLOW_DEVICE int column() const { return (kSide < 8 ? threadIdx.x / kSlices : threadIdx.x) % kSide; }
  INVFLOW_DEVICE int row() const { return (kSide < 8 ? threadIdx.x / kSlices : threadIdx.x) / kSide % kSide; }

  // Adds left right^T; rows are `stride` numbers apart, and `pixels` a multiple of 32.
  INVFLOW_DEVICE void add(const T* left, const T* right, int stride, int pixels) {
    T sum[kOwned][kOwned] = {};
#pragma unroll 1
    for (int p = 4 * slice(); p < pixels; p += 4 * kSlices) {
      T in[kOwned][4];
#pragma unroll
      for (int i = 0; i < kOwned; ++i) load_run<T>(right, (column() + kSide * i) * stride + p, in[i]);
#pragma unroll
      for (int o = 0; o < kOwned; ++o) {
        T factor[4];
        load_run<T>(left, (row() + kSide * o) * stride + p, factor);
#pragma unroll
        for (int i = 0; i < kOwned; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[o][i] += factor[j] * in[i][j];
      }
    }
#pragma unroll
    for (int o = 0; o < kOwned; ++o)
#pragma unroll
      for (int i = 0; i < kOwned; ++i) products[o][i] += sum[o][i];
#pragma unroll
    for (int n = 0; n < kRowsOfWarp; ++n) {
      T row_sum = 0;
      for (int p = threadIdx.x % 32; p < pixels; p += 32) row_sum += left[(threadIdx.x / 32 + kWarps * n) * stride + p];
      rows[n] += row_sum;
    }
  }

  // Writes the sums: product (o, i) to matrix[o * matrix_stride + i], for o and i less than the limits, and row o to
  // shift[o] if that is not null. `scratch` has room for kSlices * kScratchSlice numbers.
  INVFLOW_DEVICE void store(T* scratch, T* matrix, int64_t matrix_stride, T* shift, int rows_limit, int columns_limit) {
    if constexpr (kSlices > 1) __syncthreads();
#pragma unroll
    for (int o = 0; o < kOwned; ++o)
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        const int at_row = row() + kSide * o, at_column = column() + kSide * i;
        if constexpr (kSlices > 1)
          scratch[slice() * kScratchSlice + at_row * kScratchRow + at_column] = products[o][i];
        else if (at_row < rows_limit && at_column < columns_limit)
          matrix[at_row * matrix_stride + at_column] = products[o][i];
      }
    if constexpr (kSlices > 1) {
      __syncthreads();
      for (int i = threadIdx.x; i < kChannels * kChannels; i += kThreads) {
        const int at_row = i / kChannels, at_column = i % kChannels;
        T sum = 0;
        for (int part = 0; part < kSlices; ++part)
          sum += scratch[part * kScratchSlice + at_row * kScratchRow + at_column];
        if (at_row < rows_limit && at_column < columns_limit) matrix[at_row * matrix_stride + at_column] = sum;
      }
    }
#pragma unroll
    for (int n = 0; n < kRowsOfWarp; ++n) {
      T sum = rows[n];
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffffu, sum, distance);
      const int at_row = threadIdx.x / 32 + kWarps * n;
      if (shift != nullptr && threadIdx.x % 32 == 0 && at_row < rows_limit) shift[at_row] = sum;
    }
  }

  T products[kOwned][kOwned] = {}, rows[kRowsOfWarp] = {};
};

}  // namespace invflow::cuda
