// The parts of flow_step, each in a file of its own.
#pragma once

#include "invflow/cuda_kernels.h"

namespace invflow::cuda {

// flow_step.cu and flow_step_backward.cu: steps with a matrix.
void flow_step_with_matrix(const FlowStep& step, const Place& place);
int64_t workspace_with_matrix(const FlowStep& step, int device);
void flow_step_with_matrix_backward(const FlowStep& step, const FlowStepGradients& gradients, const Place& place);
int64_t workspace_with_matrix(const FlowStep& step, const FlowStepGradients& gradients, int device);
// The most shared memory, in bytes, that a block of them has to have, for any strides.
int64_t shared_with_matrix(int64_t channels, Dtype dtype);
int64_t shared_with_matrix_backward(int64_t channels, Dtype dtype);

// coupling.cu: steps of one elementwise map.
void coupling(const FlowStep& step, const Place& place);
int64_t coupling_workspace(const FlowStep& step);
void coupling_backward(const FlowStep& step, const FlowStepGradients& gradients, const Place& place);
int64_t coupling_workspace(const FlowStep& step, const FlowStepGradients& gradients);

}  // namespace invflow::cuda
