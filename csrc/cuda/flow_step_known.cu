#include <cstdlib>

#include "known.h"

namespace invflow::cuda {

int64_t channels_last(const KnownCall& call);
int64_t coupling_known(const KnownCall& call, int units);
int64_t known_a(const KnownCall& call);
int64_t known_b(const KnownCall& call);
int64_t known_c(const KnownCall& call);
int64_t known_d(const KnownCall& call);
int64_t known_e(const KnownCall& call);
int64_t known_f(const KnownCall& call);
int64_t known_g(const KnownCall& call);

int64_t flow_step_known(const FlowStep& step, const FlowStepGradients* gradients, const Device& device,
                        const Place* place) {
  KnownCall call{{}, {}, step, gradients, device, place};
  const bool last = step.x.channel_stride == 1 && step.x.pixel_stride != 1;
  bool vectors = false;
  with_access(step, gradients, [&](auto access) { vectors = decltype(access)::kPixels > 1; });
  if (!last && !vectors) return -1;
  call.kind = known_kind(step, gradients, last, call.step);
  if (call.kind.state_bytes == 0) return -1;
  // INVFLOW_CUDA_VARIANT: a letter for forward passes and one for backward passes
  const char* const variant = std::getenv("INVFLOW_CUDA_VARIANT");
  if (variant == nullptr || variant[0] == 0) return -1;
  if (last) return step.matrix == nullptr ? -1 : channels_last(call);
  if (step.matrix == nullptr) return coupling_known(call, variant[0] == 'a' ? 4 : variant[0] == 'b' ? 2 : 1);
  switch (gradients == nullptr || variant[1] == 0 ? variant[0] : variant[1]) {
    case 'a': return known_a(call);
    case 'b': return known_b(call);
    case 'c': return known_c(call);
    case 'd': return known_d(call);
    case 'e': return known_e(call);
    case 'f': return known_f(call);
    case 'g': return known_g(call);
  }
  return -1;
}

}  // namespace invflow::cuda
