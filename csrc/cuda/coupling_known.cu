#include "coupling_known.h"

#include "known_launch.h"

namespace invflow::cuda {

constexpr int kUnits = 2;  // of a thread

int64_t coupling_known(const KnownCall& call) {
  const FlowStep& step = call.whole;
  const int64_t of_channel = step.pixels * call.kind.state_bytes / 16, all = step.channels * of_channel;
  constexpr int64_t kOfBlock = kUnits * kUnitThreads;
  if (all > INT32_MAX - kOfBlock) return -1;
  const KnownUnits units{static_cast<unsigned>(step.channels), static_cast<unsigned>(of_channel),
                         static_cast<int>((all + kOfBlock - 1) / kOfBlock)};
  const int64_t blocks = step.batch * units.blocks;
  const bool backward = call.gradients != nullptr, sums = !backward && units.blocks != 1;
  Workspace workspace(call.place == nullptr ? nullptr : call.place->workspace);
  float* const partial = sums ? workspace.take<float>(blocks) : nullptr;
  if (call.place == nullptr) return workspace.size();
  const Site site{backward ? "coupling_backward_known_kernel" : "coupling_known_kernel", step, *call.place};
  if (blocks > 0)
    with_kind(call.kind, [&](auto state_bytes, auto h_bytes, auto inverse) -> int64_t {
      if (backward)
        launch(site, coupling_backward_known_kernel<state_bytes(), h_bytes(), inverse(), kUnits>, blocks, kUnitThreads,
               0, call.step, units);
      else
        launch(site, coupling_known_kernel<state_bytes(), h_bytes(), inverse(), kUnits>, blocks, kUnitThreads, 0,
               call.step, units, sums ? partial : call.step.log_det);
      return 0;
    });
  if (sums) add_partial_sums<float>(site, {partial, step.log_det, step.batch, units.blocks, units.blocks, 1});
  return workspace.size();
}

}  // namespace invflow::cuda
