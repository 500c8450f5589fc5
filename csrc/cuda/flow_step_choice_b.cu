#include "flow_step_known_launch.h"

namespace invflow::cuda {

struct Choice_b {
  template <int kChannels, bool backward>
  using Of = std::conditional_t<
      backward, std::conditional_t<kChannels == 192, void, std::conditional_t<kChannels == 96, Work<256, 1, 24, 6, true, 96>, Work<128, 2, 24, 6, true, 48>>>,
      std::conditional_t<kChannels == 192, void, std::conditional_t<kChannels == 96, Work<128, 4, 24, 3, false, 96>, Work<128, 4, 24, 3, false, 96>>>>;
};

int64_t known_b(const KnownCall& call) { return known_with<Choice_b>(call); }

}  // namespace invflow::cuda
