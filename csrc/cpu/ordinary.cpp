// Calls of ordinary tensors: one function checks them, allocates the results and runs the kernel, in the time in which
// Python describes one tensor. What is out of the ordinary or wrong is declined, by returning None: the caller goes a
// way that can do more, or says what is wrong. invflow/ops/_ordinary.py is the only caller.
#include "ordinary.h"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "calls.h"
#include "invflow/dispatch.h"
#include "tensors.h"

namespace py = pybind11;

namespace invflow {

// Elements from which other threads of Python may run meanwhile.
constexpr int64_t kReleasingElements = 16384;
// States of few pixels that are larger may go to a product of matrices: vectors here, unless they are too wide, and
// others as invflow/backends/rows.py decides. An actnorm's map is derived number by number, which takes long for many.
constexpr int64_t kFewPixels = 8, kLeastWorkOfRows = 1024, kWidestVector = 512, kWidestDerived = 128;

// Positions of the arguments that both functions have.
enum Argument { kX, kMatrix, kShift, kLogScale, kFactor, kCoupling, kInjector, kForms, kStart, kInverse, kArguments };

// A call, and the arrays that it is made of.
struct Call {
  Array x, matrix, shift, log_scale, factor, coupling, injector;
  bool has_matrix, is_derived, has_factor, has_coupling, has_injector;
  bool of_vectors;
  FlowStep step;
  std::vector<double> scales, biases;             // e^s and b of the actnorm of a derived map
  std::vector<double> exact;                      // the derived matrix
  std::vector<char> matrix_memory, shift_memory;  // both as the kernel takes them

  Dtype arithmetic() const { return x.dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32; }
  int64_t elements() const { return step.batch * step.channels * step.pixels; }
};

// Describes the elementwise map that h makes. A form is (scale, parameter, order, packing).
static bool read_map(PyObject* h, PyObject* form, int64_t start, bool inverse, const Array& x, Array& array,
                     AffineMap& map) {
  if (!PyTuple_Check(form) || PyTuple_GET_SIZE(form) != 4 || !read_state(h, array, map.h) || array.rank != x.rank)
    return false;
  for (int i = 2; i < x.rank; ++i)
    if (array.shape[i] != x.shape[i]) return false;
  map.scale = static_cast<Scale>(PyLong_AsLong(PyTuple_GET_ITEM(form, 0)));
  map.parameter = PyFloat_AsDouble(PyTuple_GET_ITEM(form, 1));
  map.order = static_cast<Order>(PyLong_AsLong(PyTuple_GET_ITEM(form, 2)));
  map.packing = static_cast<Packing>(PyLong_AsLong(PyTuple_GET_ITEM(form, 3)));
  map.inverse = inverse;
  const int64_t outputs = map.scale == Scale::kNone ? 1 : 2, samples = array.shape[0], channels = x.shape[1];
  if (samples == 0 || x.shape[0] % samples != 0 || array.shape[1] % outputs != 0) return false;
  map.count = array.shape[1] / outputs;
  map.repeat = x.shape[0] / samples;
  map.start = start < 0 ? channels - map.count : start;
  return map.start >= 0 && map.start <= channels - map.count;  // a sum might be too large for its type
}

// The channel map of an actnorm and a 1x1 convolution, W diag(e^s) and W diag(e^s) b, in double precision.
static void derive(Call& call) {
  const int64_t channels = call.step.channels;
  const Dtype dtype = call.arithmetic();
  const int64_t size = dtype == Dtype::kFloat64 ? sizeof(double) : sizeof(float);
  call.scales.resize(channels);
  call.biases.resize(channels);
  for (int64_t i = 0; i < channels; ++i) {
    call.scales[i] = std::exp(number_at(call.log_scale, i));
    call.biases[i] = number_at(call.shift, i);
  }
  call.exact.resize(channels * channels);
  call.matrix_memory.resize(channels * channels * size);
  call.shift_memory.resize(channels * size);
  for (int64_t o = 0; o < channels; ++o) {
    double shift = 0.0;
    for (int64_t i = 0; i < channels; ++i) {
      const double value = number_at(call.matrix, o * channels + i) * call.scales[i];
      call.exact[o * channels + i] = value;
      put(call.matrix_memory.data(), dtype, o * channels + i, value);
      shift += value * call.biases[i];
    }
    put(call.shift_memory.data(), dtype, o, shift);
  }
  call.step.matrix = call.matrix_memory.data();
  call.step.shift = call.shift_memory.data();
}

// Reads what forward and backward pass have in common.
static bool read_call(PyObject* const* args, Call& call) {
  FlowStep& step = call.step;
  step = {};
  Array& x = call.x;
  if (!read_state(args[kX], x, step.x)) return false;
  // results of such a sequence have its layout, which is none of an image's
  if (x.rank == 3 && x.stride[1] == 1 && !x.is_contiguous()) return false;
  step.batch = x.shape[0];
  step.channels = x.shape[1];
  step.pixels = 1;
  for (int i = 2; i < x.rank; ++i) step.pixels *= x.shape[i];
  call.has_matrix = args[kMatrix] != Py_None;
  call.is_derived = args[kLogScale] != Py_None;
  call.has_factor = args[kFactor] != Py_None;
  call.has_coupling = args[kCoupling] != Py_None;
  call.has_injector = args[kInjector] != Py_None;
  if (!call.has_matrix && (!call.has_coupling || call.has_injector || call.is_derived)) return false;
  const int64_t work = step.batch * step.channels * (call.has_matrix ? step.channels : 1);
  const bool of_rows = step.pixels < kFewPixels && work > kLeastWorkOfRows;
  const int64_t widest = call.is_derived ? kWidestDerived : kWidestVector;
  call.of_vectors = of_rows && x.rank == 2 && is_full(x.dtype) && step.channels <= widest;
  if (call.elements() == 0 || (of_rows && !call.of_vectors)) return false;
  if (call.has_factor && (!read(args[kFactor], call.factor) || call.factor.dtype != Dtype::kFloat64)) return false;
  if (call.has_matrix) {
    if (!read(args[kMatrix], call.matrix) || !read(args[kShift], call.shift)) return false;
    const Dtype dtype = call.is_derived ? call.matrix.dtype : call.arithmetic();
    if (!is_full(dtype) || !call.matrix.is_square(step.channels, dtype) || !call.shift.is_vector(step.channels, dtype))
      return false;
    step.matrix = call.matrix.data;
    step.shift = call.shift.data;
    if (call.is_derived) {
      if (!read(args[kLogScale], call.log_scale) || !call.log_scale.is_vector(step.channels, dtype)) return false;
      derive(call);
    }
  }
  const bool inverse = args[kInverse] == Py_True;
  if (!inverse && args[kInverse] != Py_False) return false;  // 1, or a bool of NumPy
  if (!PyTuple_Check(args[kForms]) || PyTuple_GET_SIZE(args[kForms]) != 2) return false;
  PyObject *const of_coupling = PyTuple_GET_ITEM(args[kForms], 0), *const of_injector =
                                                                       PyTuple_GET_ITEM(args[kForms], 1);
  if (call.has_coupling) {
    const int64_t start = args[kStart] == Py_None ? -1 : PyLong_AsLongLong(args[kStart]);
    if (start < 0 && args[kStart] != Py_None) return false;
    if (!read_map(args[kCoupling], of_coupling, start, inverse, x, call.coupling, step.before[step.before_count++]))
      return false;
  }
  if (call.has_injector) {
    AffineMap& map = inverse ? step.before[step.before_count++] : step.after;
    if (!read_map(args[kInjector], of_injector, 0, inverse, x, call.injector, map) || map.count != step.channels)
      return false;
    step.has_after = !inverse;
  }
  return PyErr_Occurred() == nullptr;
}

template <class Function>
static void run(const Call& call, const Function& function) {
  if (call.elements() < kReleasingElements) return function();
  const py::gil_scoped_release unlocked;
  function();
}

static PyObject* pair(const Owned& first, const Owned& second) { return PyTuple_Pack(2, first.ptr(), second.ptr()); }

PyObject* forward_of_tensors(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return raising([&]() -> PyObject* {
    Call call;
    if (count != kArguments || !nobody_looks_on()) return declined();
    if (builds_graph(args, kForms)) Py_RETURN_FALSE;
    if (!read_call(args, call)) return declined();
    FlowStep& step = call.step;
    const Owned y = empty_state(call.x, step.y);
    const Owned log_det = new_vector(step.batch, call.arithmetic(), step.log_det);
    run(call, [&] { call.of_vectors ? kernels().vector_step(step) : kernels().flow_step(step); });
    if (call.has_factor) {
      double sum = number_at(call.factor, 0);
      if (call.is_derived)
        for (int64_t i = 0; i < step.channels; ++i) sum += number_at(call.log_scale, i);
      const double of_map = static_cast<double>(step.pixels) * sum;
      if (call.arithmetic() == Dtype::kFloat64) {
        for (int64_t b = 0; b < step.batch; ++b) static_cast<double*>(step.log_det)[b] += of_map;
      } else {
        for (int64_t b = 0; b < step.batch; ++b) static_cast<float*>(step.log_det)[b] += static_cast<float>(of_map);
      }
    }
    return pair(y, log_det);
  });
}

// The gradients of weight, bias and log_scale, from those of matrix, shift and log-determinant of the derived map.
struct DerivedGradients {
  Owned weight, bias, log_scale;

  DerivedGradients(const Call& call, const std::vector<char>& grad_matrix, const std::vector<char>& grad_shift,
                   double grad_log_det) {
    const int64_t channels = call.step.channels;
    const Dtype dtype = call.arithmetic(), of_results = call.matrix.dtype;
    void *to_weight, *to_bias, *to_log_scale;
    weight = empty_like(call.matrix, to_weight);
    bias = empty_like(call.shift, to_bias);
    log_scale = empty_like(call.log_scale, to_log_scale);
    const auto at = [&](const std::vector<char>& numbers, int64_t i) {
      return dtype == Dtype::kFloat64 ? reinterpret_cast<const double*>(numbers.data())[i]
                                      : reinterpret_cast<const float*>(numbers.data())[i];
    };
    std::vector<double> grad_bias(channels), grad_log_scale(channels, grad_log_det);
    const double* const inverse = static_cast<const double*>(call.factor.data);
    const int64_t row = call.factor.stride[0], column = call.factor.stride[1];
    for (int64_t o = 0; o < channels; ++o) {
      const double of_shift = at(grad_shift, o);
      for (int64_t i = 0; i < channels; ++i) {
        const double value = call.exact[o * channels + i];
        const double grad = at(grad_matrix, o * channels + i) + of_shift * call.biases[i];
        grad_bias[i] += value * of_shift;
        grad_log_scale[i] += grad * value;
        put(to_weight, of_results, o * channels + i,
            grad * call.scales[i] + grad_log_det * inverse[i * row + o * column]);
      }
    }
    for (int64_t i = 0; i < channels; ++i) {
      put(to_bias, of_results, i, grad_bias[i]);
      put(to_log_scale, of_results, i, grad_log_scale[i]);
    }
  }
};

PyObject* backward_of_tensors(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return raising([&]() -> PyObject* {
    Call call;
    if (count != kArguments + 2 || !nobody_looks_on()) return declined();
    if (!read_call(args + 2, call)) return declined();
    FlowStep& step = call.step;
    FlowStepGradients gradients{};
    const Dtype dtype = call.arithmetic();
    const int64_t size = dtype == Dtype::kFloat64 ? sizeof(double) : sizeof(float), channels = step.channels;
    Array grad_y, grad_log_det;
    if (!read_state(args[0], grad_y, gradients.grad_y) || !read(args[1], grad_log_det)) return declined();
    if (grad_y.rank != call.x.rank || grad_log_det.rank != 1 || grad_log_det.shape[0] != step.batch ||
        grad_log_det.dtype != dtype)
      return declined();
    for (int i = 0; i < grad_y.rank; ++i)
      if (grad_y.shape[i] != call.x.shape[i]) return declined();
    if (call.is_derived && !(call.has_factor && call.factor.rank == 2 && call.factor.shape[0] == channels))
      return declined();
    std::vector<char> of_log_det(step.batch * size);
    double of_determinant = 0.0;
    for (int64_t b = 0; b < step.batch; ++b) {
      const double value = number_at(grad_log_det, b * grad_log_det.stride[0]);
      put(of_log_det.data(), dtype, b, value);
      of_determinant += value;
    }
    gradients.grad_log_det = of_log_det.data();
    const Owned none = py::none();
    Owned grad_matrix = none, grad_shift = none, grad_log_scale = none, grad_coupling = none, grad_injector = none;
    std::vector<char> of_matrix, of_shift;
    if (call.is_derived) {
      of_matrix.resize(channels * channels * size);
      of_shift.resize(channels * size);
      gradients.grad_matrix = of_matrix.data();
      gradients.grad_shift = of_shift.data();
    } else if (call.has_matrix) {
      grad_matrix = empty_like(call.matrix, gradients.grad_matrix);
      grad_shift = empty_like(call.shift, gradients.grad_shift);
    }
    if (call.has_coupling) grad_coupling = empty_state(call.coupling, step.before[0].grad_h);
    if (call.has_injector)
      grad_injector =
          empty_state(call.injector, (step.has_after ? step.after : step.before[step.before_count - 1]).grad_h);
    const Owned grad_x = empty_state(call.x, gradients.grad_x);
    run(call, [&] {
      call.of_vectors ? kernels().vector_step_backward(step, gradients) : kernels().flow_step_backward(step, gradients);
    });
    if (call.is_derived) {
      const DerivedGradients derived(call, of_matrix, of_shift, static_cast<double>(step.pixels) * of_determinant);
      grad_matrix = derived.weight;
      grad_shift = derived.bias;
      grad_log_scale = derived.log_scale;
    }
    return PyTuple_Pack(6, grad_x.ptr(), grad_matrix.ptr(), grad_shift.ptr(), grad_log_scale.ptr(), grad_coupling.ptr(),
                        grad_injector.ptr());
  });
}

// Dtype, rank and shape of an array, in front of its elements.
struct Header {
  int64_t dtype, rank, shape[4];
};

static int64_t size_of(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

// Calls visit(header, data, bytes) of every tensor until it returns false; returns whether all are ordinary and
// contiguous, and none was false.
template <class Visit>
static bool visit_numbers(PyObject* tensors, const Visit& visit) {
  if (!PyList_Check(tensors)) return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors); ++i) {
    Array array;
    if (!read(PyList_GET_ITEM(tensors, i), array) || !array.is_contiguous()) return false;
    Header header{static_cast<int64_t>(array.dtype), array.rank, {}};
    int64_t bytes = size_of(array.dtype);
    for (int d = 0; d < array.rank; ++d) bytes *= header.shape[d] = array.shape[d];
    if (!visit(header, array.data, bytes)) return false;
  }
  return true;
}

PyObject* numbers_of(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return raising([&]() -> PyObject* {
    std::string numbers;
    const auto append = [&](const Header& header, const void* data, int64_t bytes) {
      numbers.append(reinterpret_cast<const char*>(&header), sizeof(header));
      numbers.append(static_cast<const char*>(data), bytes);
      return true;
    };
    if (count != 1 || !nobody_looks_on() || !visit_numbers(args[0], append)) return declined();
    return PyBytes_FromStringAndSize(numbers.data(), static_cast<Py_ssize_t>(numbers.size()));
  });
}

PyObject* have_numbers(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return raising([&]() -> PyObject* {
    if (count != 2 || !PyBytes_Check(args[1]) || !nobody_looks_on()) Py_RETURN_FALSE;
    const char* next = PyBytes_AS_STRING(args[1]);
    const char* const end = next + PyBytes_GET_SIZE(args[1]);
    const auto compare = [&](const Header& header, const void* data, int64_t bytes) {
      if (end - next < static_cast<int64_t>(sizeof(header)) + bytes) return false;
      const bool same =
          std::memcmp(next, &header, sizeof(header)) == 0 && std::memcmp(next + sizeof(header), data, bytes) == 0;
      next += sizeof(header) + bytes;
      return same;
    };
    return PyBool_FromLong(visit_numbers(args[0], compare) && next == end);
  });
}

}  // namespace invflow
