// The gradient of the matrix: sums over pixels of the outer product of two tiles, kept in registers from tile to tile.
#pragma once

#include "tile.h"

namespace invflow::cuda {

// kChannels x kChannels sums of products of rows, and kChannels sums of the left rows. A thread has kGroups x kGroups
// groups of 6 x 6 of them, of every kSide-th row, for one of kSlices parts of the pixels. If it has one group, sums of
// a tile are added to sums of tiles, which rounds less.
template <int kChannels, int kThreads, class T>
struct OuterProduct {
  static constexpr int kOwned = 6, kSide = kChannels < 96 ? kChannels / kOwned : 16;
  static constexpr int kGroups = kChannels / (kSide * kOwned), kSlices = kThreads / (kSide * kSide);
  // Threads that sum a left row: as many as there are, but a power of two.
  static constexpr int kLanes = kThreads >= 8 * kChannels   ? 8
                                : kThreads >= 4 * kChannels ? 4
                                : kThreads >= 2 * kChannels ? 2
                                                            : 1;
  // The scratch memory of `store`: neighbouring threads write to different banks.
  static constexpr int kScratchRow = kSide < 8 ? kChannels : kChannels + 8;
  static constexpr int kScratchSlice = kChannels * kScratchRow + (kSide < 8 ? 32 / kSlices : 0);
  static_assert(kGroups * kSide * kOwned == kChannels && kSlices * kSide * kSide == kThreads);
  static_assert(kLanes * kChannels <= kThreads);

  // Neighbouring threads read neighbouring rows or, where those are few, neighbouring pixels: see Geometry.
  static INVFLOW_DEVICE int slice(int thread) { return kSide < 8 ? thread % kSlices : thread / (kSide * kSide); }
  static INVFLOW_DEVICE int column(int thread) { return (kSide < 8 ? thread / kSlices : thread) % kSide; }
  static INVFLOW_DEVICE int row(int thread) { return (kSide < 8 ? thread / kSlices : thread) / kSide % kSide; }

  // Adds left right^T; rows are `stride` numbers apart, and `pixels` a multiple of 32.
  INVFLOW_DEVICE void add(const T* left, const T* right, int stride, int pixels) {
    const int thread = thread_again();
#pragma unroll
    for (int n = 0; n < kGroups; ++n)
#pragma unroll
      for (int m = 0; m < kGroups; ++m)
        add_group(thread, left + kSide * kOwned * n * stride, right + kSide * kOwned * m * stride, stride, pixels,
                  products[n][m]);
    own_row += sum_of_row(thread, left, stride, pixels);
  }

  // The sum of the numbers of a thread in its left row.
  static INVFLOW_DEVICE T sum_of_row(int thread, const T* left, int stride, int pixels) {
    const int own = thread / kLanes;
    if (own >= kChannels) return 0;
    T sum = 0;
#pragma unroll 1
    for (int p = 4 * (thread % kLanes); p < pixels; p += 4 * kLanes) {
      T in[4];
      load_run<T>(left, own * stride + p, in);
      sum += (in[0] + in[1]) + (in[2] + in[3]);
    }
    return sum;
  }

  static INVFLOW_DEVICE void add_group(int thread, const T* left, const T* right, int stride, int pixels,
                                       T (&total)[kOwned][kOwned]) {
    T sum[kOwned][kOwned];
#pragma unroll
    for (int o = 0; o < kOwned; ++o)
#pragma unroll
      for (int i = 0; i < kOwned; ++i) sum[o][i] = kGroups == 1 ? T(0) : total[o][i];
#pragma unroll 1
    for (int p = 4 * slice(thread); p < pixels; p += 4 * kSlices) {
      T in[kOwned][4];
#pragma unroll
      for (int i = 0; i < kOwned; ++i) load_run<T>(right, (column(thread) + kSide * i) * stride + p, in[i]);
#pragma unroll
      for (int o = 0; o < kOwned; ++o) {
        T factor[4];
        load_run<T>(left, (row(thread) + kSide * o) * stride + p, factor);
#pragma unroll
        for (int i = 0; i < kOwned; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[o][i] += factor[j] * in[i][j];
      }
    }
#pragma unroll
    for (int o = 0; o < kOwned; ++o)
#pragma unroll
      for (int i = 0; i < kOwned; ++i) total[o][i] = kGroups == 1 ? total[o][i] + sum[o][i] : sum[o][i];
  }

  // Numbers in shared memory that hold the sums of all threads from tile to tile, where registers are scarce.
  static constexpr int kProducts = kGroups * kGroups * kOwned * kOwned, kKept = (kProducts + 1) * kThreads;

  // The place of a product among the sums of a thread.
  static INVFLOW_DEVICE int number_of(int n, int m, int o, int i) {
    return ((n * kGroups + m) * kOwned + o) * kOwned + i;
  }

  // `add` to the sums in `kept`, which begin anew if asked for. Registers hold one group at a time.
  static INVFLOW_DEVICE void add_to(T* kept, bool anew, const T* left, const T* right, int stride, int pixels) {
    const int thread = thread_again();
    const auto keep = [&](int number, T sum) {
      T& own = kept[number * kThreads + thread];
      own = anew ? sum : own + sum;
    };
#pragma unroll
    for (int n = 0; n < kGroups; ++n)
#pragma unroll
      for (int m = 0; m < kGroups; ++m) {
        T group[kOwned][kOwned] = {};
        add_group(thread, left + kSide * kOwned * n * stride, right + kSide * kOwned * m * stride, stride, pixels,
                  group);
#pragma unroll
        for (int o = 0; o < kOwned; ++o)
#pragma unroll
          for (int i = 0; i < kOwned; ++i) keep(number_of(n, m, o, i), group[o][i]);
      }
    keep(kProducts, sum_of_row(thread, left, stride, pixels));
  }

  INVFLOW_DEVICE void take(const T* kept) {
    const int thread = thread_again();
#pragma unroll
    for (int n = 0; n < kGroups; ++n)
#pragma unroll
      for (int m = 0; m < kGroups; ++m)
#pragma unroll
        for (int o = 0; o < kOwned; ++o)
#pragma unroll
          for (int i = 0; i < kOwned; ++i) products[n][m][o][i] = kept[number_of(n, m, o, i) * kThreads + thread];
    own_row = kept[kProducts * kThreads + thread];
  }

  // Writes the sums: product (o, i) to matrix[o * matrix_stride + i], for o and i less than the limits, and row o to
  // shift[o] if that is not null. `scratch` has room for kSlices * kScratchSlice numbers if kSlices > 1.
  INVFLOW_DEVICE void store(T* scratch, T* matrix, int64_t matrix_stride, T* shift, int rows_limit, int columns_limit) {
    const int thread = threadIdx.x;
    T* const first = matrix + row(thread) * matrix_stride + column(thread);
    if constexpr (kSlices > 1) __syncthreads();
#pragma unroll
    for (int o = 0; o < kGroups * kOwned; ++o)
#pragma unroll
      for (int i = 0; i < kGroups * kOwned; ++i) {
        const int at_row = row(thread) + kSide * o, at_column = column(thread) + kSide * i;
        const T product = products[o / kOwned][i / kOwned][o % kOwned][i % kOwned];
        if constexpr (kSlices > 1)
          scratch[slice(thread) * kScratchSlice + at_row * kScratchRow + at_column] = product;
        else if (at_row < rows_limit && at_column < columns_limit)
          first[kSide * o * matrix_stride + kSide * i] = product;
      }
    if constexpr (kSlices > 1) {
      __syncthreads();
      for (int i = thread; i < kChannels * kChannels; i += kThreads) {
        const int at_row = i / kChannels, at_column = i % kChannels;
        T sum = 0;
        for (int part = 0; part < kSlices; ++part)
          sum += scratch[part * kScratchSlice + at_row * kScratchRow + at_column];
        if (at_row < rows_limit && at_column < columns_limit) matrix[at_row * matrix_stride + at_column] = sum;
      }
    }
    T sum = own_row;
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffffu, sum, distance);
    const int own = thread / kLanes;
    if (shift != nullptr && thread % kLanes == 0 && own < kChannels && own < rows_limit) shift[own] = sum;
  }

  T products[kGroups][kGroups][kOwned][kOwned] = {}, own_row = 0;
};

}  // namespace invflow::cuda
