#include "channels_last.h"

#include "known_launch.h"

namespace invflow::cuda {

using ForwardWork = Work<192, 2, 16, 4, false, 96>;
template <int kChannels>
using BackwardWork =
    std::conditional_t<(kChannels >= 96), Work<256, 1, 24, 4, false, 48>, Work<128, 2, 24, 4, false, 48>>;

int64_t channels_last_forward(const KnownCall& call) {
  return with_known_channels(call.whole.channels, [&](auto channels) {
    return with_kind(call.kind, [&](auto state_bytes, auto h_bytes, auto inverse) {
      return known_forward<ForwardWork>(
          call, "flow_step_last_kernel",
          flow_step_last_kernel<state_bytes(), h_bytes(), channels(), inverse(), ForwardWork>,
          LastShape<channels(), ForwardWork>(channels(), sizeof(float)));
    });
  });
}

int64_t channels_last_backward(const KnownCall& call) {
  return with_known_channels(call.whole.channels, [&](auto channels) {
    return with_kind(call.kind, [&](auto state_bytes, auto h_bytes, auto inverse) {
      using W = BackwardWork<channels()>;
      return known_backward<W, channels()>(
          call, "flow_step_backward_last_kernel",
          flow_step_backward_last_kernel<state_bytes(), h_bytes(), channels(), inverse(), W>,
          LastShape<channels(), W>(channels(), sizeof(float)), 0);
    });
  });
}

}  // namespace invflow::cuda
