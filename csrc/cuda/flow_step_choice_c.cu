#include "flow_step_known_launch.h"

namespace invflow::cuda {

struct Choice_c {
  template <int kChannels, bool backward>
  using Of = std::conditional_t<
      backward, std::conditional_t<kChannels == 192, void, std::conditional_t<kChannels == 96, Work<256, 1, 24, 6, true, 48>, Work<128, 2, 24, 3, true, 48>>>,
      std::conditional_t<kChannels == 192, void, std::conditional_t<kChannels == 96, Work<128, 3, 24, 6, false, 96>, Work<128, 3, 24, 6, false, 96>>>>;
};

int64_t known_c(const KnownCall& call) { return known_with<Choice_c>(call); }

}  // namespace invflow::cuda
