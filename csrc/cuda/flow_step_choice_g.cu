#include "flow_step_known_launch.h"

namespace invflow::cuda {

struct Choice_g {
  template <int kChannels, bool backward>
  using Of = std::conditional_t<
      backward, std::conditional_t<kChannels == 192, void, std::conditional_t<kChannels == 96, void, void>>,
      std::conditional_t<kChannels == 192, void, std::conditional_t<kChannels == 96, Work<256, 2, 24, 3, false, 96>, Work<256, 2, 24, 3, false, 96>>>>;
};

int64_t known_g(const KnownCall& call) { return known_with<Choice_g>(call); }

}  // namespace invflow::cuda
