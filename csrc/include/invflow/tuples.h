// Python's description of a call, and its conversion to a FlowStep. invflow/backends/native.py writes these tuples.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "invflow/flow_step.h"

namespace invflow {

using Address = std::uintptr_t;

// address, dtype, strides of samples, channels and pixels
using ViewTuple = std::tuple<Address, int, int64_t, int64_t, int64_t>;
// h, its gradient, start, count, repeat, scale, parameter, order, packing, inverse
using MapTuple = std::tuple<ViewTuple, ViewTuple, int64_t, int64_t, int64_t, int, double, int, int, bool>;
// batch, channels, pixels, x, matrix, shift, maps before, maps after
using StepTuple =
    std::tuple<int64_t, int64_t, int64_t, ViewTuple, Address, Address, std::vector<MapTuple>, std::vector<MapTuple>>;

inline void* pointer(Address address) { return reinterpret_cast<void*>(address); }

inline View view_of(const ViewTuple& tuple) {
  const auto& [address, dtype, sample_stride, channel_stride, pixel_stride] = tuple;
  return {pointer(address), static_cast<Dtype>(dtype), sample_stride, channel_stride, pixel_stride};
}

inline AffineMap map_of(const MapTuple& tuple) {
  const auto& [h, grad_h, start, count, repeat, scale, parameter, order, packing, inverse] = tuple;
  return {view_of(h),
          view_of(grad_h),
          start,
          count,
          repeat,
          static_cast<Scale>(scale),
          parameter,
          static_cast<Order>(order),
          static_cast<Packing>(packing),
          inverse};
}

inline FlowStep step_of(const StepTuple& tuple) {
  const auto& [batch, channels, pixels, x, matrix, shift, before, after] = tuple;
  if (before.size() > kMaxMaps || after.size() > 1) throw pybind11::value_error("too many elementwise maps");
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

inline FlowStep forward_of(const StepTuple& tuple, const ViewTuple& y, Address log_det) {
  FlowStep step = step_of(tuple);
  step.y = view_of(y);
  step.log_det = pointer(log_det);
  return step;
}

inline FlowStepGradients gradients_of(const ViewTuple& grad_y, Address grad_log_det, const ViewTuple& grad_x,
                                      Address grad_matrix, Address grad_shift) {
  return {view_of(grad_y), view_of(grad_x), pointer(grad_log_det), pointer(grad_matrix), pointer(grad_shift)};
}

}  // namespace invflow
