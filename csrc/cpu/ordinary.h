// Functions of the Python module that take tensors; see ordinary.cpp and vectors.cpp.
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

// x, condition, raw_scale, offset, matrix, layers, kind of the global scale, bound, inverse, keep -> (y, log_det), and
// what the backward pass needs if that is to be kept; or None. Layers are a list of weight and bias of every layer in
// turn. Returns False if a gradient of the results is to be computed.
PyObject* vector_block_of_tensors(PyObject* self, PyObject* const* args, Py_ssize_t count);

// What was kept, grad_y, grad_log_det, a tuple of which gradients are wanted, and x to bound as above -> gradients of
// x, condition, raw_scale, offset, and of weights and biases in turn, or None.
PyObject* vector_block_gradients(PyObject* self, PyObject* const* args, Py_ssize_t count);

}  // namespace invflow
