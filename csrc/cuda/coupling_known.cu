#include "coupling_known.h"

#include "coupling_last.h"
#include "known_launch.h"

namespace invflow::cuda {

constexpr int kUnits = 2;  // of a thread

// The launches of both layouts. `blocks` of a sample each take kUnits * kUnitThreads units.
template <class Units, class Forward, class Backward>
int64_t launch_coupling(const KnownCall& call, const char* name, const Units& units, Forward* forward,
                        Backward* backward) {
  const FlowStep& step = call.whole;
  const int64_t blocks = step.batch * units.blocks;
  const bool sums = call.gradients == nullptr && units.blocks != 1;
  Workspace workspace(call.place == nullptr ? nullptr : call.place->workspace);
  float* const partial = sums ? workspace.take<float>(blocks) : nullptr;
  if (call.place == nullptr) return workspace.size();
  const Site site{name, step, *call.place};
  if (blocks > 0 && call.gradients != nullptr)
    launch(site, backward, blocks, kUnitThreads, 0, call.step, units);
  else if (blocks > 0)
    launch(site, forward, blocks, kUnitThreads, 0, call.step, units, sums ? partial : call.step.log_det);
  if (sums) add_partial_sums<float>(site, {partial, step.log_det, step.batch, units.blocks, units.blocks, 1});
  return workspace.size();
}

// -1 for more units of a sample than 32 bits can number.
int64_t blocks_of_sample(int64_t units) {
  constexpr int64_t kOfBlock = kUnits * kUnitThreads;
  return units > INT32_MAX - kOfBlock ? -1 : (units + kOfBlock - 1) / kOfBlock;
}

int64_t coupling_known(const KnownCall& call) {
  const FlowStep& step = call.whole;
  const int64_t of_channel = step.pixels * call.kind.state_bytes / 16, all = step.channels * of_channel;
  if (blocks_of_sample(all) < 0) return -1;
  const KnownUnits units{static_cast<unsigned>(step.channels), static_cast<unsigned>(of_channel),
                         static_cast<int>(blocks_of_sample(all))};
  const char* const name = call.gradients == nullptr ? "coupling_known_kernel" : "coupling_backward_known_kernel";
  return with_kind(call.kind, [&](auto state_bytes, auto h_bytes, auto inverse) {
    return launch_coupling(call, name, units, coupling_known_kernel<state_bytes(), h_bytes(), inverse(), kUnits>,
                           coupling_backward_known_kernel<state_bytes(), h_bytes(), inverse(), kUnits>);
  });
}

int64_t coupling_last(const KnownCall& call) {
  const FlowStep& step = call.whole;
  const int own = run_of_channels(step.channels);
  const int64_t of_pixel = step.channels / own, all = step.pixels * of_pixel;
  if (blocks_of_sample(all) < 0) return -1;
  const LastUnits units{static_cast<unsigned>(of_pixel), static_cast<unsigned>(all),
                        static_cast<int>(blocks_of_sample(all))};
  const char* const name = call.gradients == nullptr ? "coupling_last_kernel" : "coupling_backward_last_kernel";
  return with_kind(call.kind, [&](auto state_bytes, auto h_bytes, auto inverse) {
    const auto with_own = [&](auto constant) {
      return launch_coupling(call, name, units,
                             coupling_last_kernel<state_bytes(), h_bytes(), constant(), inverse(), kUnits>,
                             coupling_backward_last_kernel<state_bytes(), h_bytes(), constant(), inverse(), kUnits>);
    };
    return own == 4 ? with_own(std::integral_constant<int, 4>{}) : with_own(std::integral_constant<int, 2>{});
  });
}

}  // namespace invflow::cuda
