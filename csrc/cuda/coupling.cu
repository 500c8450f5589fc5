// A step of one elementwise map alone: the affine coupling, the injector and the Gaussian split. Reads x and h once and
// writes y once; backward, reads the gradient of y, x and h once and writes the gradients of x and h once.
#include "elementwise.h"
#include "kernels.h"
#include "known.h"
#include "sums.h"
#include "workspace.h"

namespace invflow::cuda {

constexpr int kThreads = 256, kUnits = 4;

// A unit is the pixels of one channel that a thread accesses at once; a block takes kThreads * kUnits of one sample.
// Successive threads take successive pixels or, where those of one channel are far apart, successive channels.
struct Units {
  unsigned channels, of_channel;
  int blocks, pixels;
  bool channels_first;
};

template <class Access>
Units units_of(const FlowStep& step) {
  const int64_t of_channel = (step.pixels + Access::kPixels - 1) / Access::kPixels, all = step.channels * of_channel;
  return {static_cast<unsigned>(step.channels), static_cast<unsigned>(of_channel),
          static_cast<int>((all + kThreads * kUnits - 1) / (kThreads * kUnits)), Access::kPixels,
          step.x.channel_stride == 1 && step.x.pixel_stride != 1};
}

// Units of a sample are numbered in 32 bits.
void check_size(const Units& units, const Site& site) {
  if (static_cast<int64_t>(units.channels) * units.of_channel > INT32_MAX)
    check("a sample has more than 2^31 - 1 numbers, or 16 bytes of them", site);
}

// Calls visit(channel, pixel) for every unit of a thread.
template <class Visitor>
INVFLOW_DEVICE void for_each_unit(const Units& units, unsigned block, const Visitor& visit) {
#pragma unroll 1
  for (int turn = 0; turn < kUnits; ++turn) {
    const unsigned unit = (block * kUnits + turn) * kThreads + threadIdx.x;
    if (unit >= units.channels * units.of_channel) return;
    const unsigned by = units.channels_first ? units.channels : units.of_channel;
    const unsigned quotient = unit / by, rest = unit - quotient * by;
    const unsigned channel = units.channels_first ? rest : quotient, pixel = units.channels_first ? quotient : rest;
    visit(static_cast<int>(channel), static_cast<int64_t>(pixel) * units.pixels);
  }
}

template <class Access>
__global__ void __launch_bounds__(kThreads, 2)
    coupling_kernel(const __grid_constant__ FlowStep step, const Units units, typename Access::T* log_dets) {
  using T = typename Access::T;
  T log_det = 0;
  for_each_unit(units, blockIdx.x % units.blocks, [&](int channel, int64_t pixel) {
    const Pixels at{static_cast<int>(blockIdx.x / units.blocks), pixel};
    T x[Access::kPixels];
    Access::load_state(step.x, offset_of(step.x, at, channel), x);
    log_det += apply_to_channel<Access>(step.before[0], at, channel, x);
    Access::store_state(step.y, offset_of(step.y, at, channel), x);
  });
  const T total = sum_of_block<kThreads>(log_det);
  if (threadIdx.x == 0) log_dets[blockIdx.x] = total;
}

// A block takes the units of `repeat` successive samples, which share their h.
template <class Access>
__global__ void __launch_bounds__(kThreads, 2)
    coupling_backward_kernel(const __grid_constant__ FlowStep step, const __grid_constant__ FlowStepGradients gradients,
                             const __grid_constant__ View sums, const Units units) {
  using T = typename Access::T;
  const AffineMap& map = step.before[0];
  for_each_unit(units, blockIdx.x % units.blocks, [&](int channel, int64_t pixel) {
    const int64_t c = channel - map.start;
    const bool transformed = c >= 0 && c < map.count;
    for (int turn = 0; turn < map.repeat; ++turn) {
      const Pixels at{static_cast<int>(blockIdx.x / units.blocks * map.repeat) + turn, pixel};
      T grad[Access::kPixels];
      Access::load_state(gradients.grad_y, offset_of(gradients.grad_y, at, channel), grad);
      if (transformed) {
        T x[Access::kPixels], raw[Access::kPixels];
        Access::load_state(step.x, offset_of(step.x, at, channel), x);
        scaled_part<Access>(map, at, c, x);
        load_raw<Access>(map, at, c, raw);
        differentiate(map, static_cast<const T*>(gradients.grad_log_det)[at.sample], x, raw, grad);
        store_grad_h<Access>(map, sums, at, c, x, raw);
      }
      Access::store_state(gradients.grad_x, offset_of(gradients.grad_x, at, channel), grad);
    }
  });
}

void coupling(const FlowStep& step, const Place& place) {
  with_access(step, nullptr, [&](auto access) {
    using Access = decltype(access);
    if (flow_step_known(step, nullptr, {}, &place) >= 0) return;
    using T = typename Access::T;
    const Site site{"coupling_kernel", step, place};
    const Units units = units_of<Access>(step);
    check_size(units, site);
    const int64_t blocks = step.batch * units.blocks;
    T* const log_dets = static_cast<T*>(units.blocks == 1 ? step.log_det : place.workspace);
    if (blocks > 0) launch(site, coupling_kernel<Access>, blocks, kThreads, 0, step, units, log_dets);
    if (units.blocks != 1)
      add_partial_sums<T>(site, {log_dets, step.log_det, step.batch, units.blocks, units.blocks, 1});
  });
}

int64_t coupling_workspace(const FlowStep& step) {
  int64_t bytes = 0;
  with_access(step, nullptr, [&](auto access) {
    if ((bytes = flow_step_known(step, nullptr, {}, nullptr)) >= 0) return;
    using T = typename decltype(access)::T;
    const int blocks = units_of<decltype(access)>(step).blocks;
    bytes = blocks == 1 ? 0 : step.batch * blocks * static_cast<int64_t>(sizeof(T));
  });
  return bytes;
}

void coupling_backward(const FlowStep& step, const FlowStepGradients& gradients, const Place& place) {
  with_access(step, &gradients, [&](auto access) {
    using Access = decltype(access);
    if (flow_step_known(step, &gradients, {}, &place) >= 0) return;
    using T = typename Access::T;
    const Site site{"coupling_backward_kernel", step, place};
    const Units units = units_of<Access>(step);
    check_size(units, site);
    const int64_t blocks = step.batch / step.before[0].repeat * units.blocks;
    Workspace workspace(place.workspace);
    const View sums = workspace.sums_of<T>(step, step.before[0]);
    if (blocks > 0) launch(site, coupling_backward_kernel<Access>, blocks, kThreads, 0, step, gradients, sums, units);
  });
}

int64_t coupling_workspace(const FlowStep& step, const FlowStepGradients& gradients) {
  Workspace workspace(nullptr);
  with_access(step, &gradients,
              [&](auto access) { workspace.sums_of<typename decltype(access)::T>(step, step.before[0]); });
  return workspace.size();
}

}  // namespace invflow::cuda
