#include "flow_step_backward_known.h"

#include "known_launch.h"

namespace invflow::cuda {

template <int kChannels>
using BackwardWork = std::conditional_t<
    kChannels == 192, Work<256, 1, 24, 3, true, 48>,
    std::conditional_t<kChannels == 96, Work<256, 1, 24, 3, true, 96>, Work<128, 2, 24, 6, true, 48>>>;

// For grids that would leave multiprocessors idle, see with_work; not measured yet.
template <int kStateBytes, int kChannels>
using SmallBackwardWork = std::conditional_t<kChannels == 96, Work<256, 2, kStateBytes == 4 ? 12 : 24, 1, false, 96>,
                                             Work<128, 4, kStateBytes == 4 ? 12 : 24, 1, false, 48>>;

// With 192 channels, blocks need more shared memory than all devices have; see known_backward.
int64_t flow_step_known_backward(const KnownCall& call) {
  return with_known_channels(call.whole.channels, [&](auto channels) {
    return with_kind(call.kind, [&](auto state_bytes, auto h_bytes, auto inverse) {
      constexpr int kPixels = 16 / state_bytes(), kChannels = channels();
      using Normal = BackwardWork<kChannels>;
      using Small = SmallBackwardWork<state_bytes(), kChannels>;
      const auto run = [&](auto work) {
        using W = decltype(work);
        const BackwardShape<kPixels, kChannels, W> geometry(kChannels, sizeof(float));
        int64_t kept = 0;
        for (int i = 0; i < call.whole.before_count; ++i) kept += 2 * call.whole.before[i].count * geometry.pixels();
        return known_backward<W, kChannels>(
            call, "flow_step_backward_known_kernel",
            flow_step_backward_known_kernel<state_bytes(), kPixels, h_bytes(), kChannels, inverse(), W>, geometry,
            kept);
      };
      const int pixels = BackwardShape<kPixels, kChannels, Normal>(kChannels, sizeof(float)).pixels();
      return with_work<kChannels, Normal, Small>(call, pixels, run);
    });
  });
}

}  // namespace invflow::cuda
