// Calls of blocks of ordinary vectors, as ordinary.cpp has them of flow steps. invflow/interop/_vector_block.py is the
// only caller.
#include <cmath>
#include <vector>

#include "calls.h"
#include "invflow/dispatch.h"
#include "ordinary.h"
#include "tensors.h"

namespace py = pybind11;

namespace invflow {

enum class GlobalScale : long { kSigmoid = 0, kSoftplus = 1, kExp = 2 };

// Positions of the arguments that both functions have, and of the other ones of the first.
enum BlockArgument {
  kX,
  kCondition,
  kRawScale,
  kOffset,
  kMatrix,
  kLayers,
  kKind,
  kBound,
  kShared,
  kInverse = kShared,
  kKeep,
  kArguments
};

struct BlockCall {
  VectorBlock block;
  Array x, condition, raw_scale, offset, matrix, weights[kMaxLinear], biases[kMaxLinear];
  GlobalScale kind;
  bool has_condition;
  std::vector<double> scales;
  std::vector<char> scale_memory;  // as the kernel takes them

  int64_t size() const { return block.dtype == Dtype::kFloat64 ? sizeof(double) : sizeof(float); }
};

static double scale_of(double raw, GlobalScale kind) {
  if (kind == GlobalScale::kSigmoid) return 10.0 / (1.0 + std::exp(2.0 - raw));
  if (kind == GlobalScale::kExp) return std::exp(raw);
  return 0.1 * (raw > 40.0 ? raw : 2.0 * std::log1p(std::exp(0.5 * raw)));  // the threshold is that of PyTorch
}

static double slope_of(double raw, double scale, GlobalScale kind) {
  if (kind == GlobalScale::kSigmoid) return scale * (1.0 - 0.1 * scale);
  if (kind == GlobalScale::kExp) return scale;
  return raw > 40.0 ? 0.1 : 0.1 / (1.0 + std::exp(-0.5 * raw));
}

static Matrix matrix_of(const Array& array) {
  return {array.data, array.stride[0], array.rank == 2 ? array.stride[1] : 0};
}

static bool read_rows(PyObject* tensor, int64_t rows, int64_t width, Dtype dtype, Array& array) {
  return read(tensor, array) && array.rank == 2 && array.shape[0] == rows && array.shape[1] == width &&
         array.dtype == dtype;
}

static bool read_layers(PyObject* layers, BlockCall& call) {
  VectorBlock& block = call.block;
  if (!PyList_Check(layers)) return false;
  const Py_ssize_t count = PyList_GET_SIZE(layers) / 2;
  if (count < 1 || count > kMaxLinear || PyList_GET_SIZE(layers) != 2 * count) return false;
  int64_t inputs = block.width - block.width / 2 + block.condition_width;
  for (Py_ssize_t i = 0; i < count; ++i) {
    Array &weight = call.weights[i], &bias = call.biases[i];
    if (!read(PyList_GET_ITEM(layers, 2 * i), weight) || weight.rank != 2 || weight.shape[1] != inputs ||
        weight.dtype != block.dtype || !weight.is_contiguous())
      return false;
    const int64_t outputs = weight.shape[0];
    if (!read(PyList_GET_ITEM(layers, 2 * i + 1), bias) || !bias.is_vector(outputs, block.dtype)) return false;
    block.layers[i] = {weight.data, bias.data, inputs, outputs, nullptr, nullptr};
    inputs = outputs;
  }
  block.layer_count = static_cast<int>(count);
  return inputs == block.width / 2 * 2;
}

static bool read_block(PyObject* const* args, BlockCall& call) {
  VectorBlock& block = call.block;
  block = {};
  if (!read(args[kX], call.x) || call.x.rank != 2 || !is_full(call.x.dtype)) return false;
  block.dtype = call.x.dtype;
  block.batch = call.x.shape[0];
  block.width = call.x.shape[1];
  if (block.batch == 0 || block.width < 2) return false;
  block.x = matrix_of(call.x);
  call.has_condition = args[kCondition] != Py_None;
  if (call.has_condition) {
    if (!read(args[kCondition], call.condition) || call.condition.rank != 2 || call.condition.shape[0] != block.batch ||
        call.condition.dtype != block.dtype)
      return false;
    block.condition = matrix_of(call.condition);
    block.condition_width = call.condition.shape[1];
  }
  if (!read_rows(args[kRawScale], 1, block.width, block.dtype, call.raw_scale) || !call.raw_scale.is_contiguous() ||
      !read_rows(args[kOffset], 1, block.width, block.dtype, call.offset) || !call.offset.is_contiguous() ||
      !read(args[kMatrix], call.matrix) || !call.matrix.is_square(block.width, block.dtype) ||
      !read_layers(args[kLayers], call))
    return false;
  call.kind = static_cast<GlobalScale>(PyLong_AsLong(args[kKind]));
  block.bound = PyFloat_AsDouble(args[kBound]);
  block.offset = call.offset.data;
  block.matrix = call.matrix.data;
  call.scales.resize(block.width);
  call.scale_memory.resize(block.width * call.size());
  for (int64_t i = 0; i < block.width; ++i) {
    put(call.scale_memory.data(), block.dtype, i, scale_of(number_at(call.raw_scale, i), call.kind));
    Array scale = call.raw_scale;
    scale.data = call.scale_memory.data();
    call.scales[i] = number_at(scale, i);
    block.log_det += std::log(call.scales[i]);
  }
  block.scale = call.scale_memory.data();
  return PyErr_Occurred() == nullptr;
}

static bool builds_graph_of_block(PyObject* const* args) {
  if (builds_graph(args, kMatrix)) return true;
  if (!PyList_Check(args[kLayers])) return false;
  const py::object layers = owned(PyList_AsTuple(args[kLayers]));
  std::vector<PyObject*> items;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(layers.ptr()); ++i) items.push_back(PyTuple_GET_ITEM(layers.ptr(), i));
  return builds_graph(items.data(), static_cast<Py_ssize_t>(items.size()));
}

PyObject* vector_block_of_tensors(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return raising([&]() -> PyObject* {
    if (count != kArguments || !nobody_looks_on()) return declined();
    if (builds_graph_of_block(args)) Py_RETURN_FALSE;
    BlockCall call;
    if (!read_block(args, call)) return declined();
    VectorBlock& block = call.block;
    const bool keeps = args[kKeep] == Py_True, inverse = args[kInverse] == Py_True;
    const Owned kept =
        keeps ? new_vector(kernels().vector_block_elements(block), block.dtype, block.kept) : Owned(py::none());
    const Owned y = empty_like(call.x, block.y);
    const Owned log_det = new_vector(block.batch, block.dtype, block.log_dets);
    {
      const py::gil_scoped_release unlocked;
      inverse ? kernels().vector_block_inverse(block) : kernels().vector_block(block);
    }
    return keeps ? PyTuple_Pack(3, y.ptr(), log_det.ptr(), kept.ptr()) : PyTuple_Pack(2, y.ptr(), log_det.ptr());
  });
}

// The gradient of raw scales, from that of scales without the global map's log-determinant.
static Owned gradient_of_raw_scale(const BlockCall& call, const std::vector<char>& grad_scale, double of_log_det) {
  void* data;
  Owned grad = empty_like(call.raw_scale, data);
  Array of_scale = call.raw_scale;
  of_scale.data = const_cast<char*>(grad_scale.data());
  for (int64_t i = 0; i < call.block.width; ++i) {
    const double scale = call.scales[i], slope = slope_of(number_at(call.raw_scale, i), scale, call.kind);
    put(data, call.block.dtype, i, (number_at(of_scale, i) + of_log_det / scale) * slope);
  }
  return grad;
}

PyObject* vector_block_gradients(PyObject*, PyObject* const* args, Py_ssize_t count) {
  enum { kKept, kGradY, kGradLogDet, kNeeds, kOthers };
  return raising([&]() -> PyObject* {
    BlockCall call;
    if (count != kOthers + kShared || !nobody_looks_on() || !read_block(args + kOthers, call)) return declined();
    VectorBlock& block = call.block;
    VectorBlockGradients gradients{};
    Array kept, grad_y, grad_log_det;
    if (!read(args[kKept], kept) || !kept.is_vector(kernels().vector_block_elements(block), block.dtype) ||
        !read_rows(args[kGradY], block.batch, block.width, block.dtype, grad_y) ||
        !read(args[kGradLogDet], grad_log_det) || grad_log_det.rank != 1 || grad_log_det.shape[0] != block.batch ||
        grad_log_det.dtype != block.dtype)
      return declined();
    const Py_ssize_t first = 4, results = first + 2 * block.layer_count;
    PyObject* const needs = args[kNeeds];
    if (!PyTuple_Check(needs) || PyTuple_GET_SIZE(needs) != results) return declined();
    block.kept = kept.data;
    gradients.grad_y = matrix_of(grad_y);
    gradients.grad_log_det = matrix_of(grad_log_det);
    std::vector<Owned> made(results, py::none());
    const auto wanted = [&](Py_ssize_t i) { return PyTuple_GET_ITEM(needs, i) == Py_True; };
    const auto make = [&](Py_ssize_t i, const Array& like, void*& data) {
      if (wanted(i)) made[i] = empty_like(like, data);
    };
    make(kX, call.x, gradients.grad_x);
    if (call.has_condition) make(kCondition, call.condition, gradients.grad_condition);
    make(kOffset, call.offset, gradients.grad_offset);
    std::vector<char> of_scale(wanted(kRawScale) ? block.width * call.size() : 0);
    gradients.grad_scale = of_scale.empty() ? nullptr : of_scale.data();
    for (int i = 0; i < block.layer_count; ++i) {
      make(first + 2 * i, call.weights[i], block.layers[i].grad_weight);
      make(first + 2 * i + 1, call.biases[i], block.layers[i].grad_bias);
    }
    {
      const py::gil_scoped_release unlocked;
      kernels().vector_block_backward(block, gradients);
    }
    if (wanted(kRawScale)) {
      double of_log_det = 0.0;
      for (int64_t b = 0; b < block.batch; ++b) of_log_det += number_at(grad_log_det, b * grad_log_det.stride[0]);
      made[kRawScale] = gradient_of_raw_scale(call, of_scale, of_log_det);
    }
    const Owned tuple = owned(PyTuple_New(results));
    for (Py_ssize_t i = 0; i < results; ++i) PyTuple_SET_ITEM(tuple.ptr(), i, made[i].release().ptr());
    return Owned(tuple).release().ptr();
  });
}

}  // namespace invflow
