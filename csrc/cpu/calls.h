// Parts of the functions that take tensors of Python.
#pragma once

#include <exception>
#include <new>

#include "tensors.h"

namespace invflow {

inline double number_at(const Array& array, int64_t i) {
  return array.dtype == Dtype::kFloat64 ? static_cast<const double*>(array.data)[i]
                                        : static_cast<const float*>(array.data)[i];
}

inline void put(void* data, Dtype dtype, int64_t i, double value) {
  if (dtype == Dtype::kFloat64)
    static_cast<double*>(data)[i] = value;
  else
    static_cast<float*>(data)[i] = static_cast<float>(value);
}

inline bool is_full(Dtype dtype) { return dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64; }

inline PyObject* declined() {
  PyErr_Clear();
  Py_RETURN_NONE;
}

// What Python is to raise instead of what C++ has thrown.
template <class Function>
PyObject* raising(const Function& function) {
  try {
    return function();
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

}  // namespace invflow
