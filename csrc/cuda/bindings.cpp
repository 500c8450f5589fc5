// Python module invflow._CUDA: addresses, sizes, strides, a device and a stream in, nothing checked.
// invflow/backends/_cuda.py is its only caller.
#include "invflow/cuda_kernels.h"
#include "invflow/tuples.h"

namespace py = pybind11;

namespace {

using invflow::Address;
using invflow::forward_of;
using invflow::gradients_of;
using invflow::pointer;
using invflow::step_of;
using invflow::StepTuple;
using invflow::ViewTuple;
using invflow::cuda::Place;
using invflow::cuda::workspace;
// device, stream, workspace
using PlaceTuple = std::tuple<int, Address, Address>;

Place place_of(const PlaceTuple& tuple) {
  const auto& [device, stream, workspace] = tuple;
  return {device, pointer(stream), pointer(workspace)};
}

void flow_step(const PlaceTuple& place, const StepTuple& step, const ViewTuple& y, Address log_det) {
  invflow::cuda::flow_step(forward_of(step, y, log_det), place_of(place));
}

void flow_step_backward(const PlaceTuple& place, const StepTuple& step, const ViewTuple& grad_y, Address grad_log_det,
                        const ViewTuple& grad_x, Address grad_matrix, Address grad_shift) {
  invflow::cuda::flow_step_backward(step_of(step), gradients_of(grad_y, grad_log_det, grad_x, grad_matrix, grad_shift),
                                    place_of(place));
}

}  // namespace

PYBIND11_MODULE(_CUDA, m) {
  m.doc() = "CUDA kernels of invflow.";
  m.def("flow_step", &flow_step);
  m.def("flow_step_backward", &flow_step_backward);
  m.def("flow_step_workspace", [](int device, const StepTuple& step, const ViewTuple& y, Address log_det) {
    return workspace(forward_of(step, y, log_det), device);
  });
  m.def("flow_step_backward_workspace",
        [](int device, const StepTuple& step, const ViewTuple& grad_y, Address grad_log_det, const ViewTuple& grad_x,
           Address grad_matrix, Address grad_shift) {
          return workspace(step_of(step), gradients_of(grad_y, grad_log_det, grad_x, grad_matrix, grad_shift), device);
        });
  m.def("why_not", &invflow::cuda::why_not);
  m.def("most_channels",
        [](int device, int dtype) { return invflow::cuda::most_channels(device, static_cast<invflow::Dtype>(dtype)); });
  m.attr("compiler") = INVFLOW_COMPILER;
  m.attr("architectures") = INVFLOW_CUDA_ARCHITECTURES;
  m.attr("version") = INVFLOW_VERSION;
}
