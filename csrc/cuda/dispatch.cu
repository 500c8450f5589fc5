#include "kernels.h"
#include "launch.h"

namespace invflow::cuda {

void flow_step(const FlowStep& step, const Place& place) {
  const DeviceGuard guard({"flow_step", step, place});
  if (step.matrix == nullptr)
    coupling(step, place);
  else
    flow_step_with_matrix(step, place);
}

void flow_step_backward(const FlowStep& step, const FlowStepGradients& gradients, const Place& place) {
  if (step.channels == 0) return;  // every gradient is empty
  const DeviceGuard guard({"flow_step_backward", step, place});
  if (step.matrix == nullptr)
    coupling_backward(step, gradients, place);
  else
    flow_step_with_matrix_backward(step, gradients, place);
}

int64_t workspace(const FlowStep& step, int device) {
  return step.matrix == nullptr ? coupling_workspace(step) : workspace_with_matrix(step, device);
}

int64_t workspace(const FlowStep& step, const FlowStepGradients& gradients, int device) {
  return step.matrix == nullptr ? coupling_workspace(step, gradients) : workspace_with_matrix(step, gradients, device);
}

int64_t most_channels(int device, Dtype dtype) {
  const FlowStep none{};
  const Place place{device, nullptr, nullptr};
  const int64_t room = device_of({"most_channels", none, place}).shared_of_block;
  const auto fits = [&](int64_t channels) {
    return shared_with_matrix(channels, dtype) <= room && shared_with_matrix_backward(channels, dtype) <= room;
  };
  int64_t channels = 0;
  while (fits(channels + 1)) ++channels;
  return channels;
}

}  // namespace invflow::cuda
