#include "known_launch.h"

namespace invflow::cuda {

// Measured on an H200, as the other choices of threads and rows.
template <int kChannels>
using ForwardWork = std::conditional_t<
    kChannels == 192, Work<128, 3, 48, 4, false, 48>,
    std::conditional_t<kChannels == 96, Work<256, 2, 24, 3, false, 96>, Work<128, 4, 24, 3, false, 48>>>;

int64_t flow_step_known_forward(const KnownCall& call) {
  return with_known_channels(call.whole.channels, [&](auto channels) {
    return with_kind(call.kind, [&](auto state_bytes, auto h_bytes, auto inverse) {
      using W = ForwardWork<channels()>;
      return known_forward<W>(call, "flow_step_known_kernel",
                              flow_step_known_kernel<state_bytes(), h_bytes(), channels(), inverse(), W>,
                              KnownShape<state_bytes(), 16 / state_bytes(), channels(), W>(channels(), sizeof(float)));
    });
  });
}

}  // namespace invflow::cuda
