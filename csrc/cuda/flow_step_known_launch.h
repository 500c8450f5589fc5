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

template <class W, int kStateBytes, int kBytesOfH, int kChannels, bool inverse>
int64_t known_forward(const KnownCall& call) {
  const FlowStep& step = call.whole;
  const KnownShape<kStateBytes, 16 / kStateBytes, kChannels, W> geometry(kChannels, sizeof(float));
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
    const Site site{"flow_step_known_kernel", step, *call.place};
    if (blocks > 0)
      launch(site, flow_step_known_kernel<kStateBytes, kBytesOfH, kChannels, inverse, W>, blocks, W::kThreads, shared,
             call.step, geometry, tiles, sums ? partial : has_maps ? call.step.log_det : nullptr);
    if (sums || blocks == 0)
      add_partial_sums<float>(site, {partial, step.log_det, step.batch, tiles.of_sample, tiles.of_sample, 1});
  }
  return workspace.size();
}

template <class W, int kStateBytes, int kBytesOfH, int kChannels, bool inverse>
int64_t known_backward(const KnownCall& call) {
  const FlowStep& step = call.whole;
  constexpr int kPixels = 16 / kStateBytes;
  const BackwardShape<kPixels, kChannels, W> geometry(kChannels, sizeof(float));
  const Tiles tiles = tiles_of(step, geometry.pixels());
  const int64_t items = step.batch * tiles.of_sample;
  const int64_t blocks = blocks_of(items, call.device.multiprocessors * W::kBlocks, 16);
  Workspace workspace(call.place == nullptr ? nullptr : call.place->workspace);
  constexpr int64_t kMatrix = kChannels * kChannels;
  float* const matrix = workspace.take<float>(blocks * kMatrix);
  float* const shift = workspace.take<float>(blocks * kChannels);
  int64_t bytes = (2 * geometry.tile_size() + geometry.weights_size() +
                   OuterProduct<kChannels, W::kThreads, float>::kKept) *
                  static_cast<int64_t>(sizeof(float));
  if (bytes > call.device.shared_of_block) return -1;
  int64_t kept = 0;
  for (int i = 0; i < step.before_count; ++i)
    kept += 2 * step.before[i].count * geometry.pixels() * static_cast<int64_t>(sizeof(float));
  constexpr int64_t kReserved = 1024;  // that CUDA takes for itself in every block
  const int64_t share = call.device.shared_of_multiprocessor / W::kBlocks - kReserved;
  const int64_t room = W::kBlocks > 1 && bytes <= share ? share : call.device.shared_of_block;
  const bool keeps = kept > 0 && bytes + kept <= room;
  if (call.place != nullptr) {
    const Site site{"flow_step_backward_known_kernel", step, *call.place};
    const Items all{tiles, static_cast<unsigned>(items), keeps};
    if (blocks > 0)
      launch(site, flow_step_backward_known_kernel<kStateBytes, kPixels, kBytesOfH, kChannels, inverse, W>, blocks,
             W::kThreads, keeps ? bytes + kept : bytes, call.step, geometry, all, matrix, shift);
    add_partial_sums<float>(site, {matrix, call.gradients->grad_matrix, kMatrix, blocks, 1, kMatrix},
                            {shift, call.gradients->grad_shift, kChannels, blocks, 1, kChannels});
  }
  return workspace.size();
}

template <class Choice, int kChannels, int kStateBytes, int kBytesOfH, bool inverse>
int64_t known_of_kind(const KnownCall& call) {
  using Forward = typename Choice::template Of<kChannels, false>;
  using Backward = typename Choice::template Of<kChannels, true>;
  if (call.gradients == nullptr) {
    if constexpr (!std::is_void_v<Forward>)
      return known_forward<Forward, kStateBytes, kBytesOfH, kChannels, inverse>(call);
  } else {
    if constexpr (!std::is_void_v<Backward>)
      return known_backward<Backward, kStateBytes, kBytesOfH, kChannels, inverse>(call);
  }
  return -1;
}

template <class Choice, int kChannels>
int64_t known_of_channels(const KnownCall& call) {
  const auto [state_bytes, h_bytes, inverse] = call.kind;
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
