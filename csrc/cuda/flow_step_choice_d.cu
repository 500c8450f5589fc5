#include "flow_step_known_launch.h"

namespace invflow::cuda {

struct Choice_d {
  template <int kChannels, bool backward>
  using Of = std::conditional_t<
      backward, std::conditional_t<kChannels == 192, void, std::conditional_t<kChannels == 96, void, Work<64, 5, 24, 3, false, 48>>>,
      std::conditional_t<kChannels == 192, void, std::conditional_t<kChannels == 96, Work<128, 3, 24, 6, true, 96>, Work<128, 3, 24, 6, true, 96>>>>;
};

int64_t known_d(const KnownCall& call) { return known_with<Choice_d>(call); }

}  // namespace invflow::cuda
