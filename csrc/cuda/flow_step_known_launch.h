// Launches of the kernels of flow_step_known.h and flow_step_backward_known.h, for a choice of how they divide their work:
// Choice::Of<channels, backward> is a Work, or void where there is to be no kernel.
#pragma once

#include "flow_step_backward_known.h"
#include "known.h"
#include "workspace.h"

namespace invflow::cuda {

// Blocks that the multiprocessors run at once are to have as much to do, and none so much that its sums get long.
inline int64_t blocks_of(int64_t items, int64_t at_once, int64_t most_of_block) {
  const int64_t rounds = (items + at_once * most_of_block - 1) / (at_once * most_of_block);
  return std::min(items, rounds * at_once);
}

// Runs a forward kernel, if the call has a place; see flow_step_known.
template <class W, class G, class Kernel>
int64_t known_forward(const KnownCall& call, const char* name, Kernel* kernel, const G& geometry) {
  const FlowStep& step = call.whole;
  const Tiles tiles = tiles_of(step, geometry.pixels());
  const int64_t blocks = step.batch * tiles.of_sample;
  const int64_t shared = (geometry.tile_size() + geometry.weights_size()) * static_cast<int64_t>(sizeof(float));
  if (shared + 64 > call.device.shared_of_block) return -1;
  const bool has_maps = step.before_count > 0 || step.has_after;
  // the sum of a sample's only tile is that of the sample
  const bool sums = has_maps && tiles.of_sample != 1;
  Workspace workspace(call.place == nullptr ? nullptr : call.place->workspace);
  float* const partial = sums ? workspace.take<float>(blocks) : nullptr;
  if (call.place != nullptr) {
    const Site site{name, step, *call.place};
    if (blocks > 0)
      launch(site, kernel, blocks, W::kThreads, shared, call.step, geometry, tiles,
             sums ? partial : has_maps ? call.step.log_det : nullptr);
    if (sums || blocks == 0)
      add_partial_sums<float>(site, {partial, step.log_det, step.batch, tiles.of_sample, tiles.of_sample, 1});
  }
  return workspace.size();
}

// The same of a backward kernel, which keeps what it can of `kept` numbers.
template <class W, int kChannels, class G, class Kernel>
int64_t known_backward(const KnownCall& call, const char* name, Kernel* kernel, const G& geometry, int64_t kept) {
  constexpr int64_t kMatrix = kChannels * kChannels, kBytes = sizeof(float);
  const FlowStep& step = call.whole;
  const Tiles tiles = tiles_of(step, geometry.pixels());
  const int64_t items = step.batch * tiles.of_sample;
  const int64_t blocks = blocks_of(items, call.device.multiprocessors * W::kBlocks, 16);
  Workspace workspace(call.place == nullptr ? nullptr : call.place->workspace);
  float* const matrix = workspace.take<float>(blocks * kMatrix);
  float* const shift = workspace.take<float>(blocks * kChannels);
  const int64_t bytes = kBytes * (2 * geometry.tile_size() + geometry.weights_size() +
                                  OuterProduct<kChannels, W::kThreads, float>::kKept);
  if (bytes > call.device.shared_of_block) return -1;
  constexpr int64_t kReserved = 1024;  // that CUDA takes for itself in every block
  const int64_t share = call.device.shared_of_multiprocessor / W::kBlocks - kReserved;
  const int64_t room = W::kBlocks > 1 && bytes <= share ? share : call.device.shared_of_block;
  const bool keeps = kept > 0 && bytes + kept * kBytes <= room;
  if (call.place != nullptr) {
    const Site site{name, step, *call.place};
    const Items all{tiles, static_cast<unsigned>(items), keeps};
    if (blocks > 0)
      launch(site, kernel, blocks, W::kThreads, keeps ? bytes + kept * kBytes : bytes, call.step, geometry, all, matrix,
             shift);
    add_partial_sums<float>(site, {matrix, call.gradients->grad_matrix, kMatrix, blocks, 1, kMatrix},
                            {shift, call.gradients->grad_shift, kChannels, blocks, 1, kChannels});
  }
  return workspace.size();
}

template <class Choice, int kChannels, int kStateBytes, int kBytesOfH, bool inverse>
int64_t known_of_kind(const KnownCall& call) {
  using Forward = typename Choice::template Of<kChannels, false>;
  using Backward = typename Choice::template Of<kChannels, true>;
  constexpr int kPixels = 16 / kStateBytes;
  if (call.gradients == nullptr) {
    if constexpr (!std::is_void_v<Forward>)
      return known_forward<Forward>(call, "flow_step_known_kernel",
                                    flow_step_known_kernel<kStateBytes, kBytesOfH, kChannels, inverse, Forward>,
                                    KnownShape<kStateBytes, kPixels, kChannels, Forward>(kChannels, sizeof(float)));
  } else {
    if constexpr (!std::is_void_v<Backward>) {
      const BackwardShape<kPixels, kChannels, Backward> geometry(kChannels, sizeof(float));
      int64_t kept = 0;
      for (int i = 0; i < call.whole.before_count; ++i) kept += 2 * call.whole.before[i].count * geometry.pixels();
      return known_backward<Backward, kChannels>(
          call, "flow_step_backward_known_kernel",
          flow_step_backward_known_kernel<kStateBytes, kPixels, kBytesOfH, kChannels, inverse, Backward>, geometry, kept);
    }
  }
  return -1;
}

template <class Choice, int kChannels>
int64_t known_of_channels(const KnownCall& call) {
  const auto [state_bytes, h_bytes, inverse, channels_last] = call.kind;
  if (channels_last) return -1;
  if (state_bytes == 4 && h_bytes == 4)
    return inverse ? known_of_kind<Choice, kChannels, 4, 4, true>(call)
                   : known_of_kind<Choice, kChannels, 4, 4, false>(call);
  if (state_bytes == 4)
    return inverse ? known_of_kind<Choice, kChannels, 4, 2, true>(call)
                   : known_of_kind<Choice, kChannels, 4, 2, false>(call);
  return inverse ? known_of_kind<Choice, kChannels, 2, 2, true>(call)
                 : known_of_kind<Choice, kChannels, 2, 2, false>(call);
}

template <class Choice>
int64_t known_with(const KnownCall& call) {
  switch (call.whole.channels) {
    case 12: return known_of_channels<Choice, 12>(call);
    case 24: return known_of_channels<Choice, 24>(call);
    case 48: return known_of_channels<Choice, 48>(call);
    case 96: return known_of_channels<Choice, 96>(call);
    case 192: return known_of_channels<Choice, 192>(call);
  }
  return -1;
}

}  // namespace invflow::cuda
