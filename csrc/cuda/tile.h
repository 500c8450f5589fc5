// A tile is some pixels of one sample with all their channels. A block of threads keeps it in shared memory, a row for
// every channel, and multiplies it by the matrix; every thread has the results of a few rows and pixels in registers.
#pragma once

#include <algorithm>

#include "storage.h"

namespace invflow::cuda {

// For a number of channels that is known at run time only: the most numbers of a tile, and the least of a part of the
// matrix. Two tiles and the part fit into 64 KiB, except for a state of too many channels for the smallest tile.
constexpr int kGeneralBytes = 20 * 1024, kGeneralBlock = 64 * 1024 - 64;
constexpr int kResidentChannels = 48;  // up to so many channels the whole matrix is held at once

// The columns of a row of a tile: pixel j of thread column t stands at 4 t + j % 4 of part j / 4, so that neighbouring
// threads access neighbouring groups of 16 bytes. The row is a little longer than the tile: rows of a multiple of 32
// numbers would all begin in the same bank.
//
// Threads stand in `columns` columns, of kPixels successive pixels each, and `bands` bands, of kRows successive rows
// each. Rows that are more than all bands have, or than fit, take several passes. kChannels = 0 stands for a number of
// channels that is known at run time only; else the bands are as many as needed for one pass.
//
// kChunk is how many columns of the matrix are held at once, where the whole does not fit.
template <int kChannels, int kPixels_, int kOwned, int kThreads_, int kChunk, int kMostResident = kResidentChannels>
struct Geometry {
  static constexpr bool kFixed = kChannels > 0;
  static constexpr bool kResident = kFixed && kChannels <= kMostResident;
  static constexpr int kThreads = kThreads_, kPixels = kPixels_;
  static constexpr int kRows = kPixels == 1 ? 8 : kOwned / kPixels;
  static constexpr int kGroup = kPixels < 4 ? kPixels : 4;  // pixels that stand together
  // A sum of sums of chunks rounds less, unless those are short.
  static constexpr bool kSumsOfChunks = (!kResident || kChannels > kResidentChannels) && kChunk >= 16;
  static_assert(kChannels % kRows == 0 || kPixels == 1, "bands must be whole");

  explicit Geometry(int64_t channels, int64_t bytes_of_number) : channels_(static_cast<int>(channels)) {
    const int64_t needed = (channels + kRows - 1) / kRows * kRows;
    for (columns_ = kThreads;; columns_ /= 2) {
      const int64_t tiles = (channels + needed) * stride() * bytes_of_number;
      const int64_t part = std::max<int64_t>(kGeneralBytes, kGeneralBlock - tiles - 4 * bytes_of_number);
      const int64_t held = part / (weights_stride() * bytes_of_number) / kRows * kRows;
      rows_ = static_cast<int>(std::min({static_cast<int64_t>(bands()) * kRows, needed, held}));
      const bool fits = channels * pixels() * bytes_of_number <= kGeneralBytes &&
                        tiles + weights_size() * bytes_of_number <= kGeneralBlock;
      if (fits || columns_ == 4 / kGroup) break;
    }
  }

  INVFLOW_BOTH int channels() const { return kFixed ? kChannels : channels_; }
  INVFLOW_BOTH int columns() const { return kFixed ? kThreads * kRows / (kFixed ? kChannels : 1) : columns_; }
  INVFLOW_BOTH int pixels() const { return columns() * kPixels; }
  INVFLOW_BOTH int bands() const { return kThreads / columns(); }
  INVFLOW_BOTH int rows_of_pass() const { return kFixed ? kChannels : rows_; }
  INVFLOW_BOTH int passes() const { return kFixed ? 1 : (channels() + rows_of_pass() - 1) / rows_of_pass(); }
  INVFLOW_BOTH int stride() const { return pixels() + (kFixed && columns() < 8 ? 8 : 4); }
  INVFLOW_BOTH int tile_size() const { return channels() * stride(); }
  INVFLOW_BOTH int chunk() const { return kResident && kChannels <= kResidentChannels ? kChannels : kChunk; }
  // Numbers between a row of the matrix and the next in shared memory: bands read different banks.
  INVFLOW_BOTH int weights_stride() const {
    if (kResident) return kChannels <= kResidentChannels ? kChannels : kChannels + 4;
    return chunk() + (kFixed ? 4 : 1);
  }
  INVFLOW_BOTH int weights_size() const { return (rows_of_pass() * weights_stride() + 3) / 4 * 4; }

  INVFLOW_DEVICE int column() const { return threadIdx.x % columns(); }
  // The first row of the thread's band, within a pass; bands that have none get the last one's.
  INVFLOW_DEVICE int row_of_band() const {
    const int row = static_cast<int>(threadIdx.x) / columns() * kRows;
    return kFixed || row < rows_ ? row : rows_ - kRows;
  }
  // Rows [first_row, end_row) are the thread's own in a pass.
  INVFLOW_DEVICE int first_row(int pass) const {
    const int row = static_cast<int>(threadIdx.x) / columns() * kRows;
    return kFixed || row < rows_ ? pass * rows_of_pass() + row : channels();
  }
  INVFLOW_DEVICE int end_row(int pass) const {
    const int end = first_row(pass) + kRows;
    return kFixed || end < channels() ? end : channels();
  }

  template <class T>
  INVFLOW_DEVICE void get(const T* row, T (&values)[kPixels]) const {
#pragma unroll
    for (int j = 0; j < kPixels; j += kGroup) {
      T part[kGroup];
      load_run<T>(row, j / kGroup * (pixels() / (kPixels / kGroup)) + kGroup * column(), part);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) values[j + i] = part[i];
    }
  }

  template <class T>
  INVFLOW_DEVICE void put(const T (&values)[kPixels], T* row) const {
#pragma unroll
    for (int j = 0; j < kPixels; j += kGroup) {
      T part[kGroup];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) part[i] = values[j + i];
      store_run<T>(row, j / kGroup * (pixels() / (kPixels / kGroup)) + kGroup * column(), part);
    }
  }

  int channels_, columns_, rows_;
};

// n successive numbers, of which the first stands at a multiple of n, or at any place if n is odd.
template <int n, class T>
INVFLOW_DEVICE void get_numbers(const T* from, T (&values)[n]) {
  constexpr int step = n % 4 == 0 && sizeof(T) == 4 ? 4 : n % 2 == 0 ? 2 : 1;
#pragma unroll
  for (int i = 0; i < n; i += step) {
    T part[step];
    load_run<T>(from, i, part);
#pragma unroll
    for (int j = 0; j < step; ++j) values[i + j] = part[j];
  }
}

// The shift of the thread's rows of a pass, for all its pixels.
template <class G, class T>
INVFLOW_DEVICE void start_with_shift(const G& geometry, const T* shift, int pass, T (&sum)[G::kRows][G::kPixels]) {
  const int first = geometry.first_row(pass), end = geometry.end_row(pass);
  T values[G::kRows];
  if constexpr (G::kFixed) {
    get_numbers<G::kRows>(shift + first, values);
  } else {
#pragma unroll
    for (int r = 0; r < G::kRows; ++r) values[r] = first + r < end ? shift[first + r] : T(0);
  }
#pragma unroll
  for (int r = 0; r < G::kRows; ++r)
#pragma unroll
    for (int j = 0; j < G::kPixels; ++j) sum[r][j] = values[r];
}

// The whole matrix, where it fits.
template <class G, class T>
INVFLOW_DEVICE void load_resident(const G& geometry, const T* matrix, T* weights) {
  if constexpr (G::kResident)
    for (int i = 4 * threadIdx.x; i < geometry.channels() * geometry.channels(); i += 4 * G::kThreads) {
      T part[4];
      load_run<T>(matrix, i, part);
      store_run<T>(weights, i + i / geometry.channels() * (geometry.weights_stride() - geometry.channels()), part);
    }
}

// Columns [first, first + chunk) of the rows of a pass; of the transposed matrix, a row of weights is a column of it.
template <bool transposed, class G, class T>
INVFLOW_DEVICE void load_weights(const G& geometry, const T* matrix, int thread, int pass, int first, T* weights) {
  const int channels = geometry.channels(), chunk = geometry.chunk(), rows = geometry.rows_of_pass();
  const int length = transposed ? rows : chunk, stride = transposed ? rows : geometry.weights_stride();
  if constexpr (G::kFixed) {
    for (int i = 4 * thread; i < rows * chunk; i += 4 * G::kThreads) {
      const int row = i / length, column = i % length;
      T part[4];
      load_run<T>(matrix, transposed ? (first + row) * channels + column : row * channels + first + column, part);
      store_run<T>(weights, row * stride + column, part);
    }
  } else {
    for (int i = thread; i < rows * chunk; i += G::kThreads) {
      const int outer = i / length, inner = i % length;
      const int row = pass * rows + (transposed ? inner : outer), column = first + (transposed ? outer : inner);
      const bool valid = row < channels && column < channels;
      const int64_t at =
          transposed ? static_cast<int64_t>(column) * channels + row : static_cast<int64_t>(row) * channels + column;
      weights[outer * stride + inner] = valid ? matrix[at] : T(0);
    }
  }
}

// sum[r][j] += sum_k matrix[row + r][k] tile[k][pixel j] for the thread's rows of a pass and its pixels; of the
// transposed matrix if asked for. Every thread of the block must call it, after which `weights` still holds what was
// read last; before it reads the tile, all threads have met.
template <bool transposed, class G, class T>
INVFLOW_DEVICE void add_product(const G& geometry, const T* matrix, T* weights, const T* tile, int pass,
                                T (&sum)[G::kRows][G::kPixels]) {
  constexpr int kStep = G::kFixed && !transposed ? 16 / G::kPixels : 1;
  const int channels = geometry.channels(), chunk = geometry.chunk();
  const int row = geometry.row_of_band();
  const int length = transposed && !G::kResident ? geometry.rows_of_pass() : geometry.weights_stride();
  const int thread = thread_again();
  for (int first = 0; first < channels; first += chunk) {
    if (!G::kResident || first == 0) __syncthreads();
    if constexpr (!G::kResident) {
      load_weights<transposed>(geometry, matrix, thread, pass, first, weights);
      __syncthreads();
    }
    // the columns of the matrix, or the rows of the transposed one
    const T* const held = weights + (G::kResident ? first * (transposed ? length : 1) : 0);
    const int count = G::kFixed || channels - first > chunk ? chunk : channels - first;
    T part[G::kRows][G::kPixels];
#pragma unroll
    for (int r = 0; r < G::kRows; ++r)
#pragma unroll
      for (int j = 0; j < G::kPixels; ++j) part[r][j] = G::kSumsOfChunks ? T(0) : sum[r][j];
#pragma unroll 1
    for (int k = 0; k < count; k += kStep) {
      T in[kStep][G::kPixels];
#pragma unroll
      for (int i = 0; i < kStep; ++i) geometry.get(tile + (first + k + i) * geometry.stride(), in[i]);
      if constexpr (transposed) {
        T factor[G::kRows];
        get_numbers<G::kRows>(held + k * length + row, factor);
#pragma unroll
        for (int r = 0; r < G::kRows; ++r)
#pragma unroll
          for (int j = 0; j < G::kPixels; ++j) part[r][j] += factor[r] * in[0][j];
      } else {
#pragma unroll
        for (int r = 0; r < G::kRows; ++r) {
          T factor[kStep];
          get_numbers<kStep>(held + (row + r) * length + k, factor);
#pragma unroll
          for (int i = 0; i < kStep; ++i)
#pragma unroll
            for (int j = 0; j < G::kPixels; ++j) part[r][j] += factor[i] * in[i][j];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < G::kRows; ++r)
#pragma unroll
      for (int j = 0; j < G::kPixels; ++j) sum[r][j] = G::kSumsOfChunks ? sum[r][j] + part[r][j] : part[r][j];
  }
}

// The division of a sample's pixels into tiles.
struct Tiles {
  int of_sample, pixels;

  INVFLOW_DEVICE Pixels at(unsigned tile) const {
    return {static_cast<int>(tile / of_sample), static_cast<int64_t>(tile % of_sample) * pixels};
  }
};

inline Tiles tiles_of(const FlowStep& step, int pixels) {
  return {static_cast<int>((step.pixels + pixels - 1) / pixels), pixels};
}

// Calls visit(the number of channels as a constant): 0 for a number without kernels of its own.
template <class Access, class Visitor>
void with_channels(int64_t channels, const Visitor& visit) {
  if constexpr (Access::kPixels > 1) switch (channels) {
      case 12: return visit(std::integral_constant<int, 12>{});
      case 24: return visit(std::integral_constant<int, 24>{});
      case 48: return visit(std::integral_constant<int, 48>{});
      case 96: return visit(std::integral_constant<int, 96>{});
      case 192: return visit(std::integral_constant<int, 192>{});
    }
  visit(std::integral_constant<int, 0>{});
}

}  // namespace invflow::cuda
