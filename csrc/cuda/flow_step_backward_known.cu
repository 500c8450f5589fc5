#include "flow_step_backward_known.h"

#include "known_launch.h"

namespace invflow::cuda {

template <int kChannels>
using BackwardWork = std::conditional_t<kChannels == 96, Work<256, 1, 24, 3, true, 96>, Work<128, 2, 24, 6, true, 48>>;

int64_t flow_step_known_backward(const KnownCall& call) {
  return with_known_channels(call.whole.channels, [&](auto channels) -> int64_t {
    if constexpr (channels() == 192) {
      return -1;  // the registers have no room for its sums
    } else {
      return with_kind(call.kind, [&](auto state_bytes, auto h_bytes, auto inverse) {
        using W = BackwardWork<channels()>;
        constexpr int kPixels = 16 / state_bytes();
        const BackwardShape<kPixels, channels(), W> geometry(channels(), sizeof(float));
        int64_t kept = 0;
        for (int i = 0; i < call.whole.before_count; ++i) kept += 2 * call.whole.before[i].count * geometry.pixels();
        return known_backward<W, channels()>(
            call, "flow_step_backward_known_kernel",
            flow_step_backward_known_kernel<state_bytes(), kPixels, h_bytes(), channels(), inverse(), W>, geometry,
            kept);
      });
    }
  });
}

}  // namespace invflow::cuda
