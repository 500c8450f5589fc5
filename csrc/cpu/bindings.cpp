// Python module invflow._C: addresses and sizes in, nothing checked. invflow/backends/cpu.py is its only caller.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "invflow/dispatch.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

namespace {

using invflow::AffineForm;
using invflow::CouplingShape;
using Address = std::uintptr_t;

const float* in(Address address) { return reinterpret_cast<const float*>(address); }
float* out(Address address) { return reinterpret_cast<float*>(address); }

AffineForm form_of(int scale, float parameter, int order, int packing, bool inverse) {
  return {static_cast<invflow::Scale>(scale), parameter, static_cast<invflow::Order>(order),
          static_cast<invflow::Packing>(packing), inverse};
}

void channel_affine(Address x, Address matrix, Address shift, Address y, int64_t batch, int64_t channels,
                    int64_t pixels) {
  invflow::kernels().channel_affine(in(x), in(matrix), in(shift), out(y), batch, channels, pixels);
}

void affine_coupling(Address x, Address h, Address y, Address log_det, int64_t batch, int64_t channels, int64_t start,
                     int64_t count, int64_t pixels, int scale, float parameter, int order, int packing, bool inverse) {
  const CouplingShape shape{batch, channels, start, count, pixels};
  invflow::kernels().affine_coupling(in(x), in(h), out(y), out(log_det), shape,
                                     form_of(scale, parameter, order, packing, inverse));
}

void affine_coupling_backward(Address grad_y, Address grad_log_det, Address x, Address h, Address grad_x,
                              Address grad_h, int64_t batch, int64_t channels, int64_t start, int64_t count,
                              int64_t pixels, int scale, float parameter, int order, int packing, bool inverse) {
  const CouplingShape shape{batch, channels, start, count, pixels};
  invflow::kernels().affine_coupling_backward(in(grad_y), in(grad_log_det), in(x), in(h), out(grad_x), out(grad_h),
                                              shape, form_of(scale, parameter, order, packing, inverse));
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
  m.doc() = "Native CPU kernels of invflow. Called with addresses of contiguous float32 data.";
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("channel_affine", &channel_affine, unlocked);
  m.def("affine_coupling", &affine_coupling, unlocked);
  m.def("affine_coupling_backward", &affine_coupling_backward, unlocked);
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
