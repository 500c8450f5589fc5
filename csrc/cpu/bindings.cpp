// Python module invflow._C: addresses, sizes and strides in, nothing checked. invflow/backends/cpu.py is its only caller.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "invflow/dispatch.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

namespace {

using invflow::AffineMap;
using invflow::FlowStep;
using invflow::FlowStepGradients;
using invflow::View;
using Address = std::uintptr_t;

// address, dtype, strides of samples, channels and pixels
using ViewTuple = std::tuple<Address, int, int64_t, int64_t, int64_t>;
// h, its gradient, start, count, repeat, scale, parameter, order, packing, inverse
using MapTuple = std::tuple<ViewTuple, ViewTuple, int64_t, int64_t, int64_t, int, double, int, int, bool>;
// batch, channels, pixels, x, matrix, shift, maps before, maps after
using StepTuple =
    std::tuple<int64_t, int64_t, int64_t, ViewTuple, Address, Address, std::vector<MapTuple>, std::vector<MapTuple>>;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

View view_of(const ViewTuple& tuple) {
  const auto& [address, dtype, sample_stride, channel_stride, pixel_stride] = tuple;
  return {pointer(address), static_cast<invflow::Dtype>(dtype), sample_stride, channel_stride, pixel_stride};
}

AffineMap map_of(const MapTuple& tuple) {
  const auto& [h, grad_h, start, count, repeat, scale, parameter, order, packing, inverse] = tuple;
  return {view_of(h),
          view_of(grad_h),
          start,
          count,
          repeat,
          static_cast<invflow::Scale>(scale),
          parameter,
          static_cast<invflow::Order>(order),
          static_cast<invflow::Packing>(packing),
          inverse};
}

FlowStep step_of(const StepTuple& tuple) {
  const auto& [batch, channels, pixels, x, matrix, shift, before, after] = tuple;
  if (before.size() > invflow::kMaxMaps || after.size() > 1) throw py::value_error("too many elementwise maps");
  FlowStep step{};
  step.batch = batch;
  step.channels = channels;
  step.pixels = pixels;
  step.x = view_of(x);
  step.matrix = pointer(matrix);
  step.shift = pointer(shift);
  for (const MapTuple& map : before) step.before[step.before_count++] = map_of(map);
  step.has_after = !after.empty();
  if (step.has_after) step.after = map_of(after.front());
  return step;
}

void flow_step(const StepTuple& tuple, const ViewTuple& y, Address log_det) {
  FlowStep step = step_of(tuple);
  step.y = view_of(y);
  step.log_det = pointer(log_det);
  const py::gil_scoped_release unlocked;
  invflow::kernels().flow_step(step);
}

void flow_step_backward(const StepTuple& tuple, const ViewTuple& grad_y, Address grad_log_det, const ViewTuple& grad_x,
                        Address grad_matrix, Address grad_shift) {
  const FlowStep step = step_of(tuple);
  const FlowStepGradients gradients{view_of(grad_y), view_of(grad_x), pointer(grad_log_det), pointer(grad_matrix),
                                    pointer(grad_shift)};
  const py::gil_scoped_release unlocked;
  invflow::kernels().flow_step_backward(step, gradients);
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native CPU kernels of invflow.";
  m.def("flow_step", &flow_step);
  m.def("flow_step_backward", &flow_step_backward);
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
