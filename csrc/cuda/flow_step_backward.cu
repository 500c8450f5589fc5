// The backward pass of flow_step with a matrix, in one pass: reads the gradient of y, x and every h, and writes the
// gradients of x and every h. The gradients of matrix and shift are summed by every block over its tiles, and over the
// blocks in order; for a number of channels without kernels of its own, see matrix_gradient.h.
#include <numeric>

#include "elementwise.h"
#include "kernels.h"
#include "known.h"
#include "matrix_gradient.h"
#include "outer_product.h"

namespace invflow::cuda {

constexpr int kOwned = 24;

template <int kChannels>
constexpr int kThreads = kChannels < 96 ? 128 : 256;

// Blocks that a multiprocessor is to run at once; of the largest, the registers of one are all that it has.
template <int kChannels>
constexpr int kResident = kChannels < 96 ? 2 : 1;

// A block has so many tiles at most, so that its sums are short, and fewer where multiprocessors would stand idle.
template <int kChannels>
constexpr int64_t kTilesOfBlock = kChannels == 192 ? 32 : 16;

// True if blocks sum up the gradients of matrix and shift. Otherwise the two factors of the gradients go to memory.
template <int kChannels>
constexpr bool kSumsInBlock = kChannels > 0;

// Two tiles and a part of the matrix must fit into 64 KiB with 192 channels.
template <int kChannels>
constexpr int kChunk = kChannels == 192 ? 8 : (kChannels == 96 ? 24 : 16);

template <class Access, int kChannels>
using Shape = Geometry<kChannels, Access::kPixels, kOwned, kThreads<kChannels>, kChunk<kChannels>>;

// The division of the work. A block takes the tiles of `group` successive samples one after the other, because they
// share an h whose gradient is the sum of theirs.
struct Division {
  Tiles tiles;
  int group;
  unsigned items;  // groups of tiles
  bool keeps;      // what the maps before the matrix need in shared memory, instead of reading it again
};

// Values in shared memory that `differentiate` needs of the channels that the maps before the matrix transform.
template <class T>
struct Kept {
  INVFLOW_DEVICE T* scaled(int map, int64_t c) const { return memory + 2 * (map * of_first + c) * pixels; }
  INVFLOW_DEVICE T* raw(int map, int64_t c) const { return scaled(map, c) + pixels; }

  T* memory;
  int pixels;
  int64_t of_first;  // channels of the first map
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
    load_shift<Access>(map, at, c, shift);
    load_raw<Access>(map, at, c, raw);
    if (keeps) {
      T scaled[G::kPixels];
#pragma unroll
      for (int j = 0; j < G::kPixels; ++j) scaled[j] = x[j];
      add_shift(map, shift, scaled);
      geometry.put(scaled, kept.scaled(i, c));
      geometry.put(raw, kept.raw(i, c));
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
      geometry.get(kept.scaled(i, c), scaled);
      geometry.get(kept.raw(i, c), raw);
    } else {
      Access::load_state(step.x, offset_of(step.x, at, row), scaled);
      if (i > 0) apply_to_channel<Access>(step.before[0], at, row, scaled);
      scaled_part<Access>(map, at, c, scaled);
      load_raw<Access>(map, at, c, raw);
    }
    differentiate(map, grad_log_det, scaled, raw, grad);
    store_grad_h<Access>(map, sums.before[i], at, c, scaled, raw);
  }
}

template <class Access, int kChannels>
__global__ void __launch_bounds__(kThreads<kChannels>, kResident<kChannels>)
    flow_step_backward_kernel(const __grid_constant__ FlowStep step,
                              const __grid_constant__ FlowStepGradients gradients,
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
            T raw[G::kPixels], scaled[G::kPixels];
            if (step.has_after) {
              geometry.get(product + row * stride, scaled);
              scaled_part<Access>(step.after, at, row, scaled);
              load_raw<Access>(step.after, at, row, raw);
            }
            Access::load_state(gradients.grad_y, offset_of(gradients.grad_y, at, row), grad);
            if (step.has_after) {
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

// Bytes of shared memory with which as many blocks as before run at once, `blocks` of them at most, if one needs
// `least` anyway.
int64_t shared_of_block(const Device& device, int64_t least, int blocks) {
  constexpr int64_t kReserved = 1024;  // that CUDA takes for itself in every block
  const int64_t share = device.shared_of_multiprocessor / blocks - kReserved;
  return blocks > 1 && least <= share ? share : device.shared_of_block;
}

// Bytes of shared memory that a block needs in any case.
template <class G>
int64_t least_shared_of(const G& geometry, int64_t bytes_of_number) {
  return (2 * geometry.tile_size() + geometry.weights_size()) * bytes_of_number;
}

// Memory that a call needs beside its arguments. A workspace of null only counts the bytes.
template <class Access, int kChannels>
struct Plan {
  using T = typename Access::T;

  Plan(const FlowStep& step, const Device& device, Workspace& workspace)
      : geometry(step.channels, sizeof(T)), tiles(tiles_of(step, geometry.pixels())), group(group_of(step)) {
    items = step.batch / group * tiles.of_sample;
    for (int i = 0; i < step.before_count; ++i) sums.before[i] = workspace.sums_of<T>(step, step.before[i]);
    if (step.has_after) sums.after = workspace.sums_of<T>(step, step.after);
    blocks = items;
    if constexpr (kSumsInBlock<kChannels>) {
      const int64_t at_once = device.multiprocessors * kResident<kChannels>, share = (items + at_once - 1) / at_once;
      const int64_t most = share < kTilesOfBlock<kChannels> ? share : kTilesOfBlock<kChannels>;
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
  const Device device = device_of(site);
  Workspace workspace(place.workspace);
  const Plan<Access, kChannels> plan(step, device, workspace);
  const auto& geometry = plan.geometry;
  const int64_t bytes = least_shared_of(geometry, sizeof(T));
  int64_t kept = 0;
  for (int i = 0; i < step.before_count; ++i)
    kept += 2 * step.before[i].count * geometry.pixels() * static_cast<int64_t>(sizeof(T));
  const bool keeps = kept > 0 && bytes + kept <= shared_of_block(device, bytes, kResident<kChannels>);
  const Division division{plan.tiles, static_cast<int>(plan.group), static_cast<unsigned>(plan.items), keeps};
  if (plan.blocks > 0)
    launch(site, flow_step_backward_kernel<Access, kChannels>, plan.blocks, kThreads<kChannels>,
           keeps ? bytes + kept : bytes, step, gradients, plan.sums, geometry, division, plan.out);
  if constexpr (!kSumsInBlock<kChannels>) launch_matrix_gradient(site, plan.out);
  const int64_t c = step.channels, splits = plan.out.splits;
  add_partial_sums<T>(site, {plan.out.matrix, gradients.grad_matrix, c * c, splits, 1, c * c},
                      {plan.out.shift, gradients.grad_shift, c, splits, 1, c});
}

// The registers beside those sums have room for only four pixels with 192 channels.
template <class Access, int kChannels>
using Narrowed = std::conditional_t<kChannels == 192 && Access::kPixels == 8, Vectors<2, 4>, Access>;

template <class Visitor>
void with_shape(const FlowStep& step, const FlowStepGradients& gradients, const Visitor& visit) {
  with_access(step, &gradients, [&](auto access) {
    with_channels<decltype(access)>(step.channels,
                                    [&](auto channels) { visit(Narrowed<decltype(access), channels()>{}, channels); });
  });
}

void flow_step_with_matrix_backward(const FlowStep& step, const FlowStepGradients& gradients, const Place& place) {
  if (flow_step_known(step, &gradients, device_of({"flow_step_backward", step, place}), &place) >= 0) return;
  with_shape(step, gradients, [&](auto access, auto channels) {
    launch_flow_step_backward<decltype(access), channels()>(step, gradients, place);
  });
}

int64_t shared_with_matrix_backward(int64_t channels, Dtype dtype) {
  int64_t most = 0;
  with_each_access(dtype, [&](auto access) {
    with_channels<decltype(access)>(channels, [&](auto constant) {
      using Access = Narrowed<decltype(access), constant()>;
      const int64_t bytes_of_number = sizeof(typename Access::T);
      most = std::max(most, least_shared_of(Shape<Access, constant()>(channels, bytes_of_number), bytes_of_number));
    });
  });
  return most;
}

int64_t workspace_with_matrix(const FlowStep& step, const FlowStepGradients& gradients, int device) {
  const Place place{device, nullptr, nullptr};
  const Device facts = device_of({"flow_step_backward", step, place});
  if (const int64_t bytes = flow_step_known(step, &gradients, facts, nullptr); bytes >= 0) return bytes;
  Workspace workspace(nullptr);
  with_shape(step, gradients, [&](auto access, auto channels) {
    const Plan<decltype(access), channels()> plan(step, facts, workspace);
  });
  return workspace.size();
}

}  // namespace invflow::cuda
