// The native CPU kernels.
#pragma once

#include "invflow/flow_step.h"

namespace invflow {

// One instruction set's versions of every kernel.
struct Kernels {
  const char* isa;
  void (*flow_step)(const FlowStep& step);
  void (*flow_step_backward)(const FlowStep& step, const FlowStepGradients& gradients);
};

}  // namespace invflow
