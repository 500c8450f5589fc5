// flow_step with maps that the compiler knows (see published.h).
#pragma once

#include "published.h"

namespace invflow::cuda {

// A call of such a step. A place of null only asks for the bytes of workspace.
struct KnownCall {
  KnownStep step;
  KnownKind kind;
  const FlowStep& whole;
  const FlowStepGradients* gradients;
  const Device& device;
  const Place* place;
};

// Bytes of workspace of a call, after it is run if it has a place; -1 if there is no kernel for it, so that the general
// one has to run.
int64_t flow_step_known(const FlowStep& step, const FlowStepGradients* gradients, const Device& device,
                        const Place* place);

}  // namespace invflow::cuda
