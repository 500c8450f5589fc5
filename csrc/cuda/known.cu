#include "known.h"

namespace invflow::cuda {

int64_t flow_step_known(const FlowStep& step, const FlowStepGradients* gradients, const Device& device,
                        const Place* place) {
  const bool last = step.x.channel_stride == 1 && step.x.pixel_stride != 1;
  bool vectors = false;
  with_access(step, gradients, [&](auto access) { vectors = decltype(access)::kPixels > 1; });
  if (!last && !vectors) return -1;
  KnownCall call{{}, {}, step, gradients, device, place};
  call.kind = known_kind(step, gradients, last, call.step);
  if (call.kind.state_bytes == 0) return -1;
  if (step.matrix == nullptr) return last ? coupling_last(call) : coupling_known(call);
  if (last) return gradients == nullptr ? channels_last_forward(call) : channels_last_backward(call);
  return gradients == nullptr ? flow_step_known_forward(call) : flow_step_known_backward(call);
}

}  // namespace invflow::cuda
