#include "coupling_known.h"

#include "known.h"
#include "workspace.h"

namespace invflow::cuda {

template <int kStateBytes, int kBytesOfH, bool inverse, int kUnits>
int64_t coupling_known_of_kind(const KnownCall& call) {
  constexpr int kPixels = 16 / kStateBytes;
  const FlowStep& step = call.whole;
  const int64_t of_channel = step.pixels / kPixels, all = step.channels * of_channel;
  if (all > INT32_MAX - kUnits * kUnitThreads) return -1;
  const KnownUnits units{static_cast<unsigned>(step.channels), static_cast<unsigned>(of_channel),
                         static_cast<int>((all + kUnits * kUnitThreads - 1) / (kUnits * kUnitThreads))};
  const int64_t blocks = step.batch * units.blocks;
  if (call.gradients != nullptr) {
    if (call.place != nullptr && blocks > 0)
      launch({"coupling_backward_known_kernel", step, *call.place},
             coupling_backward_known_kernel<kStateBytes, kBytesOfH, inverse, (kUnits + 1) / 2>, step.batch *
             ((all + (kUnits + 1) / 2 * kUnitThreads - 1) / ((kUnits + 1) / 2 * kUnitThreads)), kUnitThreads, 0, call.step,
             KnownUnits{units.channels, units.of_channel, static_cast<int>((all + (kUnits + 1) / 2 * kUnitThreads - 1) / ((kUnits + 1) / 2 * kUnitThreads))});
    return 0;
  }
  const bool sums = units.blocks != 1;
  Workspace workspace(call.place == nullptr ? nullptr : call.place->workspace);
  float* const partial = sums ? workspace.take<float>(blocks) : nullptr;
  if (call.place != nullptr) {
    const Site site{"coupling_known_kernel", step, *call.place};
    if (blocks > 0)
      launch(site, coupling_known_kernel<kStateBytes, kBytesOfH, inverse, kUnits>, blocks, kUnitThreads, 0, call.step,
             units, sums ? partial : call.step.log_det);
    if (sums) add_partial_sums<float>(site, {partial, step.log_det, step.batch, units.blocks, units.blocks, 1});
  }
  return workspace.size();
}

template <int kUnits>
int64_t coupling_known_with(const KnownCall& call) {
  const auto [state_bytes, h_bytes, inverse, channels_last] = call.kind;
  if (channels_last) return -1;
  if (state_bytes == 4 && h_bytes == 4)
    return inverse ? coupling_known_of_kind<4, 4, true, kUnits>(call) : coupling_known_of_kind<4, 4, false, kUnits>(call);
  if (state_bytes == 4)
    return inverse ? coupling_known_of_kind<4, 2, true, kUnits>(call) : coupling_known_of_kind<4, 2, false, kUnits>(call);
  return inverse ? coupling_known_of_kind<2, 2, true, kUnits>(call) : coupling_known_of_kind<2, 2, false, kUnits>(call);
}

int64_t coupling_known(const KnownCall& call, int units) {
  return units == 4 ? coupling_known_with<4>(call) : units == 2 ? coupling_known_with<2>(call) : coupling_known_with<1>(call);
}

}  // namespace invflow::cuda
