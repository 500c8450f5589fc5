#include "channels_last.h"

#include "flow_step_known_launch.h"

namespace invflow::cuda {

template <int kChannels>
using Forward = Work<192, 2, 16, 4, false, 96>;
template <int kChannels>
using Backward = std::conditional_t<kChannels == 96, Work<256, 1, 24, 4, false, 48>, Work<192, 2, 16, 4, false, 48>>;

template <int kChannels, int kStateBytes, int kBytesOfH, bool inverse>
int64_t last_of_kind(const KnownCall& call) {
  if (call.gradients == nullptr)
    return known_forward<Forward<kChannels>>(
        call, "flow_step_last_kernel",
        flow_step_last_kernel<kStateBytes, kBytesOfH, kChannels, inverse, Forward<kChannels>>,
        LastShape<kChannels, Forward<kChannels>>(kChannels, sizeof(float)));
  if constexpr (kChannels < 192)
    return known_backward<Backward<kChannels>, kChannels>(
        call, "flow_step_backward_last_kernel",
        flow_step_backward_last_kernel<kStateBytes, kBytesOfH, kChannels, inverse, Backward<kChannels>>,
        LastShape<kChannels, Backward<kChannels>>(kChannels, sizeof(float)), 0);
  return -1;
}

template <int kChannels>
int64_t last_of_channels(const KnownCall& call) {
  const auto [state_bytes, h_bytes, inverse, channels_last] = call.kind;
  if (state_bytes == 4 && h_bytes == 4)
    return inverse ? last_of_kind<kChannels, 4, 4, true>(call) : last_of_kind<kChannels, 4, 4, false>(call);
  if (state_bytes == 4)
    return inverse ? last_of_kind<kChannels, 4, 2, true>(call) : last_of_kind<kChannels, 4, 2, false>(call);
  return inverse ? last_of_kind<kChannels, 2, 2, true>(call) : last_of_kind<kChannels, 2, 2, false>(call);
}

int64_t channels_last(const KnownCall& call) {
  switch (call.whole.channels) {
    case 12: return last_of_channels<12>(call);
    case 24: return last_of_channels<24>(call);
    case 48: return last_of_channels<48>(call);
    case 96: return last_of_channels<96>(call);
    case 192: return last_of_channels<192>(call);
  }
  return -1;
}

}  // namespace invflow::cuda
