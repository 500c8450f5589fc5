#include "flow_step_known_launch.h"

namespace invflow::cuda {

struct Choice_a {
  template <int kChannels, bool backward>
  using Of = std::conditional_t<
      backward, std::conditional_t<kChannels == 192, void, std::conditional_t<kChannels == 96, Work<256, 1, 24, 3, false, 48>, Work<128, 3, 24, 3, false, 48>>>,
      std::conditional_t<kChannels == 192, Work<128, 3, 48, 4, false, 48>, std::conditional_t<kChannels == 96, Work<128, 3, 48, 4, false, 48>, Work<128, 4, 48, 4, false, 48>>>>;
};

int64_t known_a(const KnownCall& call) { return known_with<Choice_a>(call); }

}  // namespace invflow::cuda
