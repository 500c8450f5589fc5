#include "matrix_gradient.h"

#include "outer_product.h"

namespace invflow::cuda {

// A block has kSide x kSide numbers of the gradient, for its part of the pixels, kPixels at a time.
constexpr int kSide = 48, kPixels = 64, kStride = kPixels + 4, kThreads = 128;
// Enough blocks for every device, and at most so many tiles of pixels in one sum.
constexpr int64_t kBlocks = 512, kTilesOfSum = 64;

template <class T>
__global__ void __launch_bounds__(kThreads)
    matrix_gradient_kernel(const MatrixGradient<T> gradient, int batch, int channels, int64_t pixels) {
  INVFLOW_SHARED(T, left);
  T* const right = left + kSide * kStride;
  const int sides = (channels + kSide - 1) / kSide;
  const int split = blockIdx.x / (sides * sides), row = blockIdx.x / sides % sides * kSide,
            column = blockIdx.x % sides * kSide;
  const int tiles_of_sample = static_cast<int>((pixels + kPixels - 1) / kPixels);
  OuterProduct<kSide, kThreads, T> product;
  for (int64_t tile = split; tile < static_cast<int64_t>(batch) * tiles_of_sample; tile += gradient.splits) {
    const Pixels at{static_cast<int>(tile / tiles_of_sample), tile % tiles_of_sample * kPixels};
    const auto load = [&](const View& view, int first, T* to) {
      constexpr int kGroup = 16 / sizeof(T);  // 16 bytes: neighbouring threads store to neighbouring banks
      for (int i = threadIdx.x; i < kSide * kPixels / kGroup; i += kThreads) {
        const int r = i / (kPixels / kGroup), p = i % (kPixels / kGroup) * kGroup;
        T values[kGroup] = {};
        // a row is whole groups long, of which the last may have less
        if (first + r < channels && at.first + p < pixels)
          load_run<T>(view.data, offset_of(view, {at.sample, at.first + p}, first + r), values);
#pragma unroll
        for (int j = 0; j < kGroup; ++j)
          if (at.first + p + j >= pixels) values[j] = 0;
        store_run<T>(to, r * kStride + p, values);
      }
    };
    __syncthreads();
    load(gradient.grad, row, left);
    load(gradient.inner, column, right);
    __syncthreads();
    product.add(left, right, kStride, kPixels);
  }
  T* const matrix = gradient.matrix + (static_cast<int64_t>(split) * channels + row) * channels + column;
  T* const shift = column == 0 ? gradient.shift + static_cast<int64_t>(split) * channels + row : nullptr;
  product.store(left, matrix, channels, shift, channels - row, channels - column);
}

int64_t sides_of(const FlowStep& step) { return (step.channels + kSide - 1) / kSide; }

template <class T>
MatrixGradient<T> take_matrix_gradient(Workspace& workspace, const FlowStep& step) {
  const int64_t tiles = step.batch * ((step.pixels + kPixels - 1) / kPixels), sides = sides_of(step);
  const int64_t wanted = kBlocks / (sides * sides) > 1 ? kBlocks / (sides * sides) : 1;
  const int64_t least = (tiles + kTilesOfSum - 1) / kTilesOfSum, splits = wanted > least ? wanted : least;
  MatrixGradient<T> gradient;
  gradient.inner = workspace.tensor<T>(step.batch, step.channels, step.pixels);
  gradient.grad = workspace.tensor<T>(step.batch, step.channels, step.pixels);
  gradient.splits = splits < tiles ? splits : tiles;
  gradient.matrix = workspace.take<T>(gradient.splits * step.channels * step.channels);
  gradient.shift = workspace.take<T>(gradient.splits * step.channels);
  return gradient;
}

template <class T>
void launch_matrix_gradient(const Site& site, const MatrixGradient<T>& gradient) {
  const int64_t blocks = gradient.splits * sides_of(site.step) * sides_of(site.step);
  if (blocks > 0)
    launch({"matrix_gradient_kernel", site.step, site.place}, matrix_gradient_kernel<T>, blocks, kThreads,
           2 * kSide * kStride * static_cast<int64_t>(sizeof(T)), gradient, static_cast<int>(site.step.batch),
           static_cast<int>(site.step.channels), site.step.pixels);
}

template MatrixGradient<float> take_matrix_gradient(Workspace&, const FlowStep&);
template MatrixGradient<double> take_matrix_gradient(Workspace&, const FlowStep&);
template void launch_matrix_gradient(const Site&, const MatrixGradient<float>&);
template void launch_matrix_gradient(const Site&, const MatrixGradient<double>&);

}  // namespace invflow::cuda
