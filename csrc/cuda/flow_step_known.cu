#include "known_launch.h"

namespace invflow::cuda {

// Measured on an H200, as the other choices of threads and rows.
template <int kChannels>
using ForwardWork = std::conditional_t<
    kChannels == 192, Work<128, 3, 48, 4, false, 48>,
    std::conditional_t<kChannels == 96, Work<256, 2, 24, 3, false, 96>, Work<128, 4, 24, 3, false, 48>>>;

// For grids that would leave multiprocessors idle, see with_work; not measured yet.
template <int kStateBytes, int kChannels>
using SmallForwardWork = Work<128, 4, kStateBytes == 4 ? 12 : 24, 3, false, kChannels == 96 ? 96 : 48>;

int64_t flow_step_known_forward(const KnownCall& call) {
  return with_known_channels(call.whole.channels, [&](auto channels) {
    return with_kind(call.kind, [&](auto state_bytes, auto h_bytes, auto inverse) {
      constexpr int kBytes = state_bytes(), kPixels = 16 / kBytes, kChannels = channels();
      using Normal = ForwardWork<kChannels>;
      using Small = SmallForwardWork<kBytes, kChannels>;
      const auto run = [&](auto work) {
        using W = decltype(work);
        return known_forward<W>(call, "flow_step_known_kernel",
                                flow_step_known_kernel<kBytes, h_bytes(), kChannels, inverse(), W>,
                                KnownShape<kBytes, kPixels, kChannels, W>(kChannels, sizeof(float)));
      };
      const int pixels = KnownShape<kBytes, kPixels, kChannels, Normal>(kChannels, sizeof(float)).pixels();
      return with_work<kChannels, Normal, Small>(call, pixels, run);
    });
  });
}

}  // namespace invflow::cuda
