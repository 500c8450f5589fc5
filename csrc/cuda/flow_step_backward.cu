// The backward pass of flow_step with a matrix, in one pass: reads the gradient of y, x and every h, and writes the
// gradients of x and every h. The gradients of matrix and shift are summed by every block over its tiles, and over the
// blocks in order; for more than 96 channels, and for a number without kernels of its own, see matrix_gradient.h.
#include <numeric>

#include "elementwise.h"
#include "kernels.h"
#include "matrix_gradient.h"
#include "outer_product.h"

namespace invflow::cuda {

constexpr int kOwned = 24;
// A block has so many tiles at most, so that its sums are short, and fewer where there would be few blocks.
constexpr int64_t kTilesOfBlock = 16, kFewBlocks = 264;
// Shared memory of a block in which it keeps what it would have to read again: two blocks are to run at once.
constexpr int64_t kMostShared = 64 * 1024;

template <int kChannels>
constexpr int kThreads = kChannels == 96 ? 256 : 128;

template <int kChannels>
constexpr bool kSumsInBlock = kChannels > 0 && kChannels <= 96;

template <class Access, int kChannels>
using Shape = Geometry<kChannels, Access::kPixels, kOwned, kThreads<kChannels>>;

// How the work is divided. A block takes the tiles of `group` successive samples one after the other, because they share
// an h whose gradient is the sum of theirs.
struct Division {
  Tiles tiles;
  int group;
  unsigned items;  // groups of tiles
  bool keeps;      // what the only map before the matrix needs in shared memory, instead of reading it again
};

// What `differentiate` needs of the channels that the only map before the matrix transforms, in shared memory.
template <class T>
struct Kept {
  T* memory;
  int pixels;
  int64_t count;

  INVFLOW_DEVICE T* scaled(int64_t c) const { return memory + c * pixels; }
  INVFLOW_DEVICE T* raw(int64_t c) const { return memory + (count + c) * pixels; }
};

// x, channel `row` of the state, through the maps before the matrix.
template <class Access, class G, class T>
INVFLOW_DEVICE void apply_before(const FlowStep& step, const G& geometry, const Kept<T>& kept, bool keeps, Pixels at,
                                 int row, T (&x)[G::kPixels]) {
#pragma unroll 1
  for (int i = 0; i < step.before_count; ++i) {
    const AffineMap& map = step.before[i];
    const int64_t c = row - map.start;
    if (c < 0 || c >= map.count) continue;
    T shift[G::kPixels], raw[G::kPixels];
    load_h<Access>(map, at, c, shift, raw);
    if (keeps) {
      T scaled[G::kPixels];
#pragma unroll
      for (int j = 0; j < G::kPixels; ++j) scaled[j] = x[j];
      scaled_part(map, shift, scaled);
      geometry.put(scaled, kept.scaled(c));
      geometry.put(raw, kept.raw(c));
    }
    apply(map, shift, raw, x);
  }
}

// The gradient of what the matrix is multiplied by becomes that of x, through the maps before the matrix.
template <class Access, class G, class T>
INVFLOW_DEVICE void differentiate_before(const FlowStep& step, const SharedSums& sums, const G& geometry,
                                         const Kept<T>& kept, bool keeps, Pixels at, int row, T grad_log_det,
                                         T (&grad)[G::kPixels]) {
#pragma unroll 1
  for (int i = step.before_count - 1; i >= 0; --i) {
    const AffineMap& map = step.before[i];
    const int64_t c = row - map.start;
    if (c < 0 || c >= map.count) continue;
    T raw[G::kPixels], scaled[G::kPixels];
    if (keeps) {
      geometry.get(kept.scaled(c), scaled);
      geometry.get(kept.raw(c), raw);
    } else {
      Access::load_state(step.x, offset_of(step.x, at, row), scaled);
      if (i > 0) apply_to_channel<Access>(step.before[0], at, row, scaled);
      T shift[G::kPixels];
      load_h<Access>(map, at, c, shift, raw);
      scaled_part(map, shift, scaled);
    }
    differentiate(map, grad_log_det, scaled, raw, grad);
    store_grad_h<Access>(map, sums.before[i], at, c, scaled, raw);
  }
}

template <class Access, int kChannels>
__global__ void __launch_bounds__(kThreads<kChannels>, kChannels == 96 ? 1 : 2)
    flow_step_backward_kernel(const __grid_constant__ FlowStep step, const __grid_constant__ FlowStepGradients gradients,
                              const __grid_constant__ SharedSums sums, const Shape<Access, kChannels> geometry,
                              const Division division, const MatrixGradient<typename Access::T> out) {
  using T = typename Access::T;
  using G = Shape<Access, kChannels>;
  constexpr int kOuter = kSumsInBlock<kChannels> ? kChannels : 48;
  INVFLOW_SHARED(T, inner);
  T* const product = inner + geometry.tile_size();  // then its gradient
  T* const weights = product + geometry.tile_size();
  const Kept<T> kept{weights + geometry.weights_size(), geometry.pixels(), step.before[0].count};
  const T* const matrix = static_cast<const T*>(step.matrix);
  const int stride = geometry.stride();
  OuterProduct<kOuter, kThreads<kOuter>, T> outer;
  load_resident(geometry, matrix, weights);

  for (unsigned item = blockIdx.x; item < division.items; item += gridDim.x)
    for (int turn = 0; turn < division.group; ++turn) {
      Pixels at = division.tiles.at(item);
      at.sample = at.sample * division.group + turn;
      at.first += geometry.column() * G::kPixels;
      const bool inside = at.first < step.pixels;
      const T grad_log_det = static_cast<const T*>(gradients.grad_log_det)[at.sample];

      for (int pass = 0; pass < geometry.passes(); ++pass)
#pragma unroll 1
        for (int row = geometry.first_row(pass); row < geometry.end_row(pass); ++row) {
          T x[G::kPixels] = {};
          if (inside) {
            Access::load_state(step.x, offset_of(step.x, at, row), x);
            apply_before<Access>(step, geometry, kept, division.keeps, at, row, x);
            if (!kSumsInBlock<kChannels>) store_run<T>(out.inner.data, offset_of(out.inner, at, row), x);
          }
          geometry.put(x, inner + row * stride);
        }

      if (step.has_after)
        for (int pass = 0; pass < geometry.passes(); ++pass) {
          const int first = geometry.first_row(pass), end = geometry.end_row(pass);
          T sum[G::kRows][G::kPixels];
          start_with_shift(geometry, static_cast<const T*>(step.shift), pass, sum);
          add_product<false>(geometry, matrix, weights, inner, pass, sum);
#pragma unroll
          for (int r = 0; r < G::kRows; ++r)
            if (G::kFixed || first + r < end) geometry.put(sum[r], product + (first + r) * stride);
        }

      for (int pass = 0; pass < geometry.passes(); ++pass)
#pragma unroll 1
        for (int row = geometry.first_row(pass); row < geometry.end_row(pass); ++row) {
          T grad[G::kPixels] = {};
          if (inside) {
            Access::load_state(gradients.grad_y, offset_of(gradients.grad_y, at, row), grad);
            if (step.has_after) {
              T shift[G::kPixels], raw[G::kPixels], scaled[G::kPixels];
              geometry.get(product + row * stride, scaled);
              load_h<Access>(step.after, at, row, shift, raw);
              scaled_part(step.after, shift, scaled);
              differentiate(step.after, grad_log_det, scaled, raw, grad);
              store_grad_h<Access>(step.after, sums.after, at, row, scaled, raw);
            }
            if (!kSumsInBlock<kChannels>) store_run<T>(out.grad.data, offset_of(out.grad, at, row), grad);
          }
          geometry.put(grad, product + row * stride);
        }

      if constexpr (kSumsInBlock<kChannels>) {
        __syncthreads();
        outer.add(product, inner, stride, geometry.pixels());
      }
      // into the place of `inner`, which nobody reads any more
      for (int pass = 0; pass < geometry.passes(); ++pass) {
        const int first = geometry.first_row(pass), end = geometry.end_row(pass);
        T sum[G::kRows][G::kPixels] = {};
        add_product<true>(geometry, matrix, weights, product, pass, sum);
#pragma unroll
        for (int r = 0; r < G::kRows; ++r)
          if (G::kFixed || first + r < end) geometry.put(sum[r], inner + (first + r) * stride);
      }
      if (inside)
        for (int pass = 0; pass < geometry.passes(); ++pass)
#pragma unroll 1
          for (int row = geometry.first_row(pass); row < geometry.end_row(pass); ++row) {
            T grad[G::kPixels];
            geometry.get(inner + row * stride, grad);
            differentiate_before<Access>(step, sums, geometry, kept, division.keeps, at, row, grad_log_det, grad);
            Access::store_state(gradients.grad_x, offset_of(gradients.grad_x, at, row), grad);
          }
      __syncthreads();
    }

  if constexpr (kSumsInBlock<kChannels>)
    outer.store(inner, out.matrix + static_cast<int64_t>(blockIdx.x) * kChannels * kChannels, kChannels,
                out.shift + static_cast<int64_t>(blockIdx.x) * kChannels, kChannels, kChannels);
}

// The least number of successive samples that share no h with others.
int64_t group_of(const FlowStep& step) {
  int64_t group = 1;
  for (int i = 0; i < step.before_count; ++i) group = std::lcm(group, step.before[i].repeat);
  return step.has_after ? std::lcm(group, step.after.repeat) : group;
}

// What a call needs beside its arguments. With a workspace of null it only counts the bytes.
template <class Access, int kChannels>
struct Plan {
  using T = typename Access::T;

  Plan(const FlowStep& step, Workspace& workspace)
      : geometry(step.channels, sizeof(T)), tiles(tiles_of(step, geometry.pixels())), group(group_of(step)) {
    items = step.batch / group * tiles.of_sample;
    for (int i = 0; i < step.before_count; ++i) sums.before[i] = workspace.sums_of<T>(step, step.before[i]);
    if (step.has_after) sums.after = workspace.sums_of<T>(step, step.after);
    blocks = items;
    if constexpr (kSumsInBlock<kChannels>) {
      const int64_t share = (items + kFewBlocks - 1) / kFewBlocks, most = share < kTilesOfBlock ? share : kTilesOfBlock;
      blocks = items == 0 ? 0 : (items + most - 1) / most;
      out.matrix = workspace.take<T>(blocks * kChannels * kChannels);
      out.shift = workspace.take<T>(blocks * kChannels);
      out.splits = blocks;
    } else {
      out = take_matrix_gradient<T>(workspace, step);
    }
  }

  Shape<Access, kChannels> geometry;
  Tiles tiles;
  int64_t group, items, blocks;
  SharedSums sums{};
  MatrixGradient<T> out{};
};

template <class Access, int kChannels>
void launch_flow_step_backward(const FlowStep& step, const FlowStepGradients& gradients, const Place& place) {
  using T = typename Access::T;
  const Site site{"flow_step_backward_kernel", step, place};
  Workspace workspace(place.workspace);
  const Plan<Access, kChannels> plan(step, workspace);
  const auto& geometry = plan.geometry;
  const int64_t bytes = (2 * geometry.tile_size() + geometry.weights_size()) * static_cast<int64_t>(sizeof(T));
  const int64_t kept = 2 * step.before[0].count * geometry.pixels() * static_cast<int64_t>(sizeof(T));
  const bool keeps = step.before_count == 1 && bytes + kept <= kMostShared;
  const Division division{plan.tiles, static_cast<int>(plan.group), static_cast<unsigned>(plan.items), keeps};
  if (plan.blocks > 0)
    launch(site, flow_step_backward_kernel<Access, kChannels>, plan.blocks, kThreads<kChannels>,
           keeps ? bytes + kept : bytes, step, gradients, plan.sums, geometry, division, plan.out);
  if constexpr (!kSumsInBlock<kChannels>) launch_matrix_gradient(site, plan.out);
  const int64_t c = step.channels, splits = plan.out.splits;
  add_partial_sums<T>(site, {plan.out.matrix, gradients.grad_matrix, c * c, splits, 1, c * c});
  add_partial_sums<T>(site, {plan.out.shift, gradients.grad_shift, c, splits, 1, c});
}

template <class Visitor>
void with_shape(const FlowStep& step, const FlowStepGradients& gradients, const Visitor& visit) {
  with_access(step, &gradients, [&](auto access) {
    with_channels<decltype(access)>(step.channels, [&](auto channels) { visit(access, channels); });
  });
}

void flow_step_with_matrix_backward(const FlowStep& step, const FlowStepGradients& gradients, const Place& place) {
  with_shape(step, gradients, [&](auto access, auto channels) {
    launch_flow_step_backward<decltype(access), channels()>(step, gradients, place);
  });
}

int64_t workspace_with_matrix(const FlowStep& step, const FlowStepGradients& gradients) {
  Workspace workspace(nullptr);
  with_shape(step, gradients, [&](auto access, auto channels) {
    const Plan<decltype(access), channels()> plan(step, workspace);
  });
  return workspace.size();
}

}  // namespace invflow::cuda
