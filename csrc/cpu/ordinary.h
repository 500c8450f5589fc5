// Functions of the Python module that take tensors; see ordinary.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace invflow {

// x, matrix, shift, log_scale, determinant, coupling, injector, forms, start, inverse -> (y, log_det) or None. With a
// log_scale, matrix and shift are weight and bias of a convolution and an actnorm. A determinant is log |det W| of that
// weight, or of the matrix, and log_det then includes that of the channel map. Returns False if a gradient of the
// results is to be computed.
PyObject* forward_of_tensors(PyObject* self, PyObject* const* args, Py_ssize_t count);

// grad_y, grad_log_det, and the same with the weight's inverse for the determinant -> gradients of x, matrix, shift,
// log_scale, coupling and injector, or None.
PyObject* backward_of_tensors(PyObject* self, PyObject* const* args, Py_ssize_t count);

// Dtypes, shapes and elements of a list of tensors, as bytes; None if one is out of the ordinary.
PyObject* numbers_of(PyObject* self, PyObject* const* args, Py_ssize_t count);

// True if a list of tensors has the numbers that numbers_of returned, bit by bit.
PyObject* have_numbers(PyObject* self, PyObject* const* args, Py_ssize_t count);

}  // namespace invflow
