// flow_step with a matrix: the elementwise maps before it, the affine map of the channels and the elementwise map after
// it, in one pass over the state. Reads x and every h once and writes y once; for every tile it also reads the matrix,
// which stays in the caches: up to 48 channels once, with more of them in chunks.
#include "elementwise.h"
#include "kernels.h"
#include "known.h"
#include "sums.h"
#include "tile.h"

namespace invflow::cuda {

constexpr int kThreads = 128, kOwned = 48;

template <class Access, int kChannels>
using Shape = Geometry<kChannels, Access::kPixels, kOwned, kThreads, kChannels == 96 ? 24 : 16>;

template <class Access, int kChannels>
__global__ void __launch_bounds__(kThreads, 2)
    flow_step_kernel(const __grid_constant__ FlowStep step, const Shape<Access, kChannels> geometry, const Tiles tiles,
                     typename Access::T* log_dets) {
  using T = typename Access::T;
  using G = Shape<Access, kChannels>;
  INVFLOW_SHARED(T, state);
  T* const weights = state + geometry.tile_size();
  // where the number of channels is known, all products are made before the first is stored
  T* const products = G::kFixed ? state : weights + geometry.weights_size();
  const int stride = geometry.stride();
  Pixels at = tiles.at(blockIdx.x);
  at.first += geometry.column() * G::kPixels;
  const bool inside = at.first < step.pixels;
  load_resident(geometry, static_cast<const T*>(step.matrix), weights);

  T log_det = 0;
  for (int pass = 0; pass < geometry.passes(); ++pass)
#pragma unroll 1
    for (int row = geometry.first_row(pass); row < geometry.end_row(pass); ++row) {
      T x[G::kPixels] = {};
      if (inside) {
        Access::load_state(step.x, offset_of(step.x, at, row), x);
#pragma unroll 1
        for (int i = 0; i < step.before_count; ++i) log_det += apply_to_channel<Access>(step.before[i], at, row, x);
      }
      geometry.put(x, state + row * stride);
    }

  for (int pass = 0; pass < geometry.passes(); ++pass) {
    const int first = geometry.first_row(pass), end = geometry.end_row(pass);
    T sum[G::kRows][G::kPixels];
    start_with_shift(geometry, static_cast<const T*>(step.shift), pass, sum);
    add_product<false>(geometry, static_cast<const T*>(step.matrix), weights, state, pass, sum);
    if (step.has_after) {
      T* const own = products + (first - pass * geometry.rows_of_pass()) * stride;
      if (G::kFixed) __syncthreads();
      if (G::kFixed || first < end) {
#pragma unroll
        for (int r = 0; r < G::kRows; ++r) geometry.put(sum[r], own + r * stride);
      }
      if (inside)
#pragma unroll 1
        for (int row = first; row < end; ++row) {
          T y[G::kPixels];
          geometry.get(own + (row - first) * stride, y);
          log_det += apply_to_channel<Access>(step.after, at, row, y);
          Access::store_state(step.y, offset_of(step.y, at, row), y);
        }
    } else if (inside) {
#pragma unroll
      for (int r = 0; r < G::kRows; ++r)
        if (G::kFixed || first + r < end) Access::store_state(step.y, offset_of(step.y, at, first + r), sum[r]);
    }
  }

  finish_log_det<kThreads>(log_det, log_dets, static_cast<T*>(step.log_det), step.batch);
}

bool makes_log_dets(const FlowStep& step) { return step.before_count > 0 || step.has_after; }

// Whether a second kernel has to add them. That of a sample's only tile is the sample's.
bool adds_log_dets(const FlowStep& step, const Tiles& tiles) { return makes_log_dets(step) && tiles.of_sample != 1; }

// Bytes of shared memory of a block.
template <class G>
int64_t shared_of(const G& geometry, bool has_after, int64_t bytes_of_number) {
  int64_t numbers = geometry.tile_size() + geometry.weights_size();
  if (!G::kFixed && has_after) numbers += geometry.rows_of_pass() * geometry.stride();
  return numbers * bytes_of_number;
}

template <class Access, int kChannels>
void launch_flow_step(const FlowStep& step, const Place& place) {
  using T = typename Access::T;
  const Site site{"flow_step_kernel", step, place};
  const Shape<Access, kChannels> geometry(step.channels, sizeof(T));
  const Tiles tiles = tiles_of(step, geometry.pixels());
  const int64_t blocks = step.batch * tiles.of_sample;
  const bool sums = adds_log_dets(step, tiles);
  T* const partial = static_cast<T*>(place.workspace);
  if (blocks > 0)
    launch(site, flow_step_kernel<Access, kChannels>, blocks, kThreads, shared_of(geometry, step.has_after, sizeof(T)),
           step, geometry, tiles,
           sums                   ? partial
           : makes_log_dets(step) ? static_cast<T*>(step.log_det)
                                  : nullptr);
  if (sums || blocks == 0)
    add_partial_sums<T>(site, {partial, step.log_det, step.batch, tiles.of_sample, tiles.of_sample, 1});
}

template <class Visitor>
void with_shape(const FlowStep& step, const Visitor& visit) {
  with_access(step, nullptr, [&](auto access) {
    with_channels<decltype(access)>(step.channels, [&](auto channels) { visit(access, channels); });
  });
}

void flow_step_with_matrix(const FlowStep& step, const Place& place) {
  if (flow_step_known(step, nullptr, device_of({"flow_step", step, place}), &place) >= 0) return;
  with_shape(step, [&](auto access, auto channels) { launch_flow_step<decltype(access), channels()>(step, place); });
}

int64_t shared_with_matrix(int64_t channels, Dtype dtype) {
  int64_t most = 0;
  with_each_access(dtype, [&](auto access) {
    using T = typename decltype(access)::T;
    const int64_t of_sums = kThreads / 32 * static_cast<int64_t>(sizeof(T));  // see sum_of_block
    with_channels<decltype(access)>(channels, [&](auto constant) {
      const Shape<decltype(access), constant()> geometry(channels, sizeof(T));
      most = std::max(most, shared_of(geometry, true, sizeof(T)) + of_sums);
    });
  });
  return most;
}

int64_t workspace_with_matrix(const FlowStep& step, int device) {
  const Place place{device, nullptr, nullptr};
  int64_t bytes = flow_step_known(step, nullptr, device_of({"flow_step", step, place}), nullptr);
  if (bytes >= 0) return bytes;
  bytes = 0;
  with_shape(step, [&](auto access, auto channels) {
    using T = typename decltype(access)::T;
    const Shape<decltype(access), channels()> geometry(step.channels, sizeof(T));
    const Tiles tiles = tiles_of(step, geometry.pixels());
    if (adds_log_dets(step, tiles)) bytes = step.batch * tiles.of_sample * static_cast<int64_t>(sizeof(T));
  });
  return bytes;
}

}  // namespace invflow::cuda
