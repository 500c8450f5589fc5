// Python module invflow._C: addresses, sizes and strides in, nothing checked, or ordinary tensors (ordinary.cpp,
// vectors.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "invflow/dispatch.h"
#include "invflow/tuples.h"
#include "ordinary.h"
#include "tensors.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

namespace {

using invflow::Address;
using invflow::FlowStep;
using invflow::FlowStepGradients;
using invflow::forward_of;
using invflow::gradients_of;
using invflow::step_of;
using invflow::StepTuple;
using invflow::ViewTuple;

void flow_step(const StepTuple& tuple, const ViewTuple& y, Address log_det) {
  const FlowStep step = forward_of(tuple, y, log_det);
  const py::gil_scoped_release unlocked;
  invflow::kernels().flow_step(step);
}

void flow_step_backward(const StepTuple& tuple, const ViewTuple& grad_y, Address grad_log_det, const ViewTuple& grad_x,
                        Address grad_matrix, Address grad_shift) {
  const FlowStep step = step_of(tuple);
  const FlowStepGradients gradients = gradients_of(grad_y, grad_log_det, grad_x, grad_matrix, grad_shift);
  const py::gil_scoped_release unlocked;
  invflow::kernels().flow_step_backward(step, gradients);
}

// address and strides of samples, channels, rows and pixels
using ImagesTuple = std::tuple<Address, int64_t, int64_t, int64_t, int64_t>;
// address, strides of outputs and inputs, transposed
using WeightsTuple = std::tuple<Address, int64_t, int64_t, bool>;
// batch, inputs, outputs, height, width, repeat
using SizesTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

// addend, images that share one of its, share, slope
using FinishTuple = std::tuple<ImagesTuple, int64_t, float, float>;
// outputs, addresses of weight and bias, slope
using PointwiseTuple = std::tuple<int64_t, Address, Address, float>;

invflow::Images images_of(const ImagesTuple& tuple) {
  const auto& [address, batch, channel, row, pixel] = tuple;
  return {static_cast<float*>(invflow::pointer(address)), batch, channel, row, pixel};
}

invflow::Conv3x3 conv_of(const SizesTuple& sizes, const ImagesTuple& x, const ImagesTuple& y,
                         const WeightsTuple& weight, Address bias) {
  const auto& [batch, inputs, outputs, height, width, repeat] = sizes;
  const auto& [address, output_stride, input_stride, transposed] = weight;
  return {batch,
          inputs,
          outputs,
          height,
          width,
          repeat,
          images_of(x),
          images_of(y),
          {static_cast<float*>(invflow::pointer(address)), output_stride, input_stride, transposed},
          static_cast<const float*>(invflow::pointer(bias)),
          {{}, 1, 1.0f, 1.0f},
          {}};
}

void conv3x3(const SizesTuple& sizes, const ImagesTuple& x, const ImagesTuple& y, const WeightsTuple& weight,
             Address bias, const FinishTuple& finish, const PointwiseTuple& pointwise) {
  invflow::Conv3x3 conv = conv_of(sizes, x, y, weight, bias);
  const auto& [addend, addend_share, share, slope] = finish;
  conv.finish = {images_of(addend), addend_share, share, slope};
  const auto& [outputs, of_pointwise, pointwise_bias, pointwise_slope] = pointwise;
  conv.pointwise = {outputs, static_cast<const float*>(invflow::pointer(of_pointwise)),
                    static_cast<const float*>(invflow::pointer(pointwise_bias)), pointwise_slope};
  const py::gil_scoped_release unlocked;
  invflow::kernels().conv3x3(conv);
}

void conv3x3_weight_gradient(const SizesTuple& sizes, const ImagesTuple& x, const ImagesTuple& grad_y,
                             const WeightsTuple& grad_weight) {
  const invflow::Conv3x3 conv = conv_of(sizes, x, grad_y, grad_weight, 0);
  const py::gil_scoped_release unlocked;
  invflow::kernels().conv3x3_weight_gradient(conv);
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

// Called without pybind11's conversions, which take as long as a kernel.
template <_PyCFunctionFast function>
PyMethodDef method(const char* name) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, nullptr};
}

PyMethodDef methods[] = {method<&invflow::forward_of_tensors>("forward_of_tensors"),
                         method<&invflow::backward_of_tensors>("backward_of_tensors"),
                         method<&invflow::numbers_of>("numbers_of"),
                         method<&invflow::have_numbers>("have_numbers"),
                         method<&invflow::vector_block_of_tensors>("vector_block"),
                         method<&invflow::vector_block_gradients>("vector_block_gradients"),
                         {}};

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native CPU kernels of invflow.";
  m.def("flow_step", &flow_step);
  m.def("flow_step_backward", &flow_step_backward);
  m.def("conv3x3", &conv3x3);
  m.def("conv3x3_weight_gradient", &conv3x3_weight_gradient);
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
  m.def("know", &invflow::know);
  m.def("instruction_set", [] { return invflow::kernels().isa; });
  m.def("supported_instruction_sets", [] {
    std::vector<std::string> names;
    for (const invflow::Kernels* kernels : invflow::supported_kernels()) names.emplace_back(kernels->isa);
    return names;
  });
  m.def("has_openmp", &has_openmp);
  m.attr("compiler") = INVFLOW_COMPILER;
  m.attr("version") = INVFLOW_VERSION;
}
