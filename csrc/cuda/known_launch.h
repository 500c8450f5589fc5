// Launches of the kernels for maps that the compiler knows.
#pragma once

#include "flow_step_known.h"
#include "known.h"
#include "outer_product.h"
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
             sums       ? partial
             : has_maps ? call.step.log_det
                        : nullptr);
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
  const int64_t blocks = blocks_of(items, call.device.multiprocessors * W::kBlocks, 32);
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

// Calls run(Normal{}), or run(Small{}) if tiles of `pixels` would not give every multiprocessor as many blocks as it
// can run at once. Whether that is faster has to be measured: only builds with INVFLOW_SMALL_GRIDS do it.
template <int kChannels, class Normal, class Small, class Run>
int64_t with_work(const KnownCall& call, int pixels, const Run& run) {
#ifdef INVFLOW_SMALL_GRIDS
  if constexpr (kChannels <= 96)
    if (call.whole.batch * tiles_of(call.whole, pixels).of_sample < call.device.multiprocessors * Normal::kBlocks)
      return run(Small{});
#endif
  return run(Normal{});
}

// Calls visit(bytes of a number of the state, of an h, whether inverse) with constants.
template <class Visitor>
int64_t with_kind(const KnownKind& kind, const Visitor& visit) {
  const auto with_direction = [&](auto state_bytes, auto h_bytes) {
    return kind.inverse ? visit(state_bytes, h_bytes, std::true_type{})
                        : visit(state_bytes, h_bytes, std::false_type{});
  };
  using Two = std::integral_constant<int, 2>;
  using Four = std::integral_constant<int, 4>;
  if (kind.state_bytes == 2) return with_direction(Two{}, Two{});
  return kind.h_bytes == 2 ? with_direction(Four{}, Two{}) : with_direction(Four{}, Four{});
}

// The same with the number of channels; -1 for others.
template <class Visitor>
int64_t with_known_channels(int64_t channels, const Visitor& visit) {
  switch (channels) {
    case 12: return visit(std::integral_constant<int, 12>{});
    case 24: return visit(std::integral_constant<int, 24>{});
    case 48: return visit(std::integral_constant<int, 48>{});
    case 96: return visit(std::integral_constant<int, 96>{});
    case 192: return visit(std::integral_constant<int, 192>{});
  }
  return -1;
}

}  // namespace invflow::cuda
