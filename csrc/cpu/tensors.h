// Tensors of PyTorch as arguments. They are asked for memory, shape and strides through Python, so no header of torch
// is needed, and the extension serves every version of it.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "invflow/flow_step.h"

namespace invflow {

// Owns a reference to an object, or to none.
using Owned = pybind11::object;

inline Owned owned(PyObject* object) { return pybind11::reinterpret_steal<Owned>(object); }

// What is needed of the module torch.
struct Torch {
  PyObject *tensor, *parameter, *dtypes[4], *empty, *empty_like, *contiguous, *channels_last, *cpu, *grad_enabled;
  std::vector<PyObject*> intercepting;  // functions that say whether somebody looks on
  PyObject* forward_ad;
};

// A tensor of up to four dimensions in memory of the CPU.
struct Array {
  PyObject* tensor;
  void* data;
  Dtype dtype;
  int rank;
  int64_t shape[4], stride[4];

  bool is_contiguous() const;
  bool is_vector(int64_t size, Dtype of) const;
  bool is_square(int64_t size, Dtype of) const;
};

// Looks up what is needed of torch. Throws if it is not there.
void know(const pybind11::module_& torch);

// False where torch is not known, or a transform, tracer or mode would see what is done with tensors.
bool nobody_looks_on();

// True if a gradient is to be computed of what is computed from these tensors, of which None is none.
bool builds_graph(PyObject* const* tensors, Py_ssize_t count);

// Reads an ordinary tensor: none of a subclass, negated, without memory or strides, or on another device. Returns false
// for any other, with no exception set.
bool read(PyObject* tensor, Array& array);

// Reads a state (B, C, ...) of up to four dimensions whose pixels lie in line.
bool read_state(PyObject* tensor, Array& array, View& view);

// A new tensor of the shape of a state, in the layout that results have, and where its elements are. Throws what Python
// raised.
Owned empty_state(const Array& like, View& view);

// A new tensor of the shape of a contiguous one.
Owned empty_like(const Array& like, void*& data);

// A new vector, on the CPU.
Owned new_vector(int64_t size, Dtype dtype, void*& data);

}  // namespace invflow
