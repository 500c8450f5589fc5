// flow_step with maps that the compiler knows (see published.h).
#pragma once

#include "published.h"

namespace invflow::cuda {

// A call of such a step. A place of null only asks for the bytes of workspace.
struct KnownCall {
  KnownStep step;
  KnownKind kind;
  const FlowStep& whole;  // of which `step` was made
  const FlowStepGradients* gradients;
  const Device& device;
  const Place* place;
};

// Bytes of workspace of a call, after it is run if it has a place; -1 if there is no kernel for it, so that the general
// one has to run.
int64_t flow_step_known(const FlowStep& step, const FlowStepGradients* gradients, const Device& device,
                        const Place* place);

// The parts of it, each in a file of its own.
int64_t flow_step_known_forward(const KnownCall& call);
int64_t flow_step_known_backward(const KnownCall& call);
int64_t channels_last_forward(const KnownCall& call);
int64_t channels_last_backward(const KnownCall& call);
int64_t coupling_known(const KnownCall& call);
int64_t coupling_last(const KnownCall& call);

}  // namespace invflow::cuda
