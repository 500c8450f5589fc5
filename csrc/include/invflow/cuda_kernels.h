// The CUDA kernels, free of torch and CUDA headers. They check nothing but that they could be launched, allocate
// nothing and do not wait: they may be captured in a CUDA graph.
#pragma once

#include "invflow/flow_step.h"

namespace invflow::cuda {

// Device and stream of a call. Every address of a FlowStep belongs to that device.
struct Place {
  int device;
  void* stream;     // cudaStream_t
  void* workspace;  // as many bytes as the function of that name says, aligned to 256
};

// As described in invflow/flow_step.h, except that a step without a matrix has exactly one map. Throw
// std::runtime_error with the kernel, the shape and the device if CUDA refuses a launch.
void flow_step(const FlowStep& step, const Place& place);
void flow_step_backward(const FlowStep& step, const FlowStepGradients& gradients, const Place& place);

// Bytes of `Place::workspace` of a call on a device.
int64_t workspace(const FlowStep& step, int device);
int64_t workspace(const FlowStep& step, const FlowStepGradients& gradients, int device);

// Most channels with which a device can run a step that has a matrix, forward and backward. It can run any fewer.
int64_t most_channels(int device, Dtype dtype);

// CUDA's reason why a device cannot run these kernels: its driver or the device is too old for this build, for one.
// Empty if it can.
const char* why_not(int device);

}  // namespace invflow::cuda
