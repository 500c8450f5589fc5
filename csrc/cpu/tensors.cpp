// See tensors.h.
#include "tensors.h"

#include <initializer_list>
#include <utility>

namespace py = pybind11;

namespace invflow {

static Torch torch;
static bool known = false;

// Names of attributes and methods, made once.
struct Names {
  PyObject *is_neg, *is_cpu, *dtype, *shape, *stride, *data_ptr, *requires_grad, *current_level;
  PyObject *memory_format, *dtype_and_device;  // names of keyword arguments
};
static Names names;

static PyObject* interned(const char* name) { return PyUnicode_InternFromString(name); }

static PyObject* keywords(std::initializer_list<const char*> list) {
  PyObject* const tuple = PyTuple_New(static_cast<Py_ssize_t>(list.size()));
  Py_ssize_t position = 0;
  for (const char* name : list) PyTuple_SET_ITEM(tuple, position++, interned(name));
  return tuple;
}

// These live as long as the process.
void know(const py::module_& module) {
  const auto found = [&](const char* name) { return py::object(module.attr(name)).release().ptr(); };
  names = {
      interned("is_neg"),          interned("is_cpu"),           interned("dtype"),         interned("shape"),
      interned("stride"),          interned("data_ptr"),         interned("requires_grad"), interned("_current_level"),
      keywords({"memory_format"}), keywords({"dtype", "device"})};
  const py::object core = module.attr("_C"), autograd = module.attr("autograd");
  torch = {found("Tensor"),
           py::object(module.attr("nn").attr("Parameter")).release().ptr(),
           {found("float32"), found("float64"), found("bfloat16"), found("float16")},
           found("empty"),
           found("empty_like"),
           found("contiguous_format"),
           found("channels_last"),
           py::object(module.attr("device")("cpu")).release().ptr(),
           found("is_grad_enabled"),
           {},
           py::object(autograd.attr("forward_ad")).release().ptr()};
  for (const char* name : {"_are_functorch_transforms_active", "_len_torch_dispatch_stack", "_get_tracing_state"})
    torch.intercepting.push_back(py::object(core.attr(name)).release().ptr());
  known = true;
}

// The truth of an object that is given away.
static bool truth(PyObject* object) {
  if (object == nullptr) throw py::error_already_set();
  const bool is_true = PyObject_IsTrue(object) == 1;
  Py_DECREF(object);
  return is_true;
}

bool nobody_looks_on() {
  if (!known) return false;
  for (PyObject* question : torch.intercepting)
    if (truth(PyObject_CallNoArgs(question))) return false;
  const Owned level = owned(PyObject_GetAttr(torch.forward_ad, names.current_level));
  return level && PyLong_AsLong(level.ptr()) < 0;
}

bool builds_graph(PyObject* const* tensors, Py_ssize_t count) {
  if (!truth(PyObject_CallNoArgs(torch.grad_enabled))) return false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (tensors[i] == Py_None) continue;
    const Owned answer = owned(PyObject_GetAttr(tensors[i], names.requires_grad));
    if (answer.ptr() == Py_True) return true;
    if (!answer) PyErr_Clear();  // no tensor
  }
  return false;
}

// Reads the numbers of a tuple; false if that is none.
static bool numbers(const Owned& tuple, int64_t* to, int& count) {
  if (!tuple || !PyTuple_Check(tuple.ptr())) return false;
  const Py_ssize_t size = PyTuple_GET_SIZE(tuple.ptr());
  if (size > 4) return false;
  for (Py_ssize_t i = 0; i < size; ++i) {
    PyObject* const number = PyTuple_GET_ITEM(tuple.ptr(), i);
    if (!PyLong_Check(number)) return false;
    to[i] = PyLong_AsLongLong(number);
  }
  count = static_cast<int>(size);
  return true;
}

static bool read_ordinary(PyObject* tensor, Array& array) {
  const auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(tensor));
  if (type != torch.tensor && type != torch.parameter) return false;
  const Owned on_cpu = owned(PyObject_GetAttr(tensor, names.is_cpu));
  const Owned negated = owned(PyObject_CallMethodNoArgs(tensor, names.is_neg));
  if (on_cpu.ptr() != Py_True || negated.ptr() != Py_False) return false;
  const Owned dtype = owned(PyObject_GetAttr(tensor, names.dtype));
  int number = 0;
  while (number < 4 && torch.dtypes[number] != dtype.ptr()) ++number;
  if (number == 4) return false;
  int strides = 0;
  if (!numbers(owned(PyObject_GetAttr(tensor, names.shape)), array.shape, array.rank)) return false;
  if (!numbers(owned(PyObject_CallMethodNoArgs(tensor, names.stride)), array.stride, strides)) return false;
  const Owned address = owned(PyObject_CallMethodNoArgs(tensor, names.data_ptr));
  if (!address || strides != array.rank) return false;
  array.tensor = tensor;
  array.dtype = static_cast<Dtype>(number);
  array.data = PyLong_AsVoidPtr(address.ptr());
  return array.data != nullptr;
}

bool read(PyObject* tensor, Array& array) {
  if (read_ordinary(tensor, array)) return true;
  PyErr_Clear();
  return false;
}

bool Array::is_contiguous() const {
  int64_t expected = 1;
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[i] != 1 && stride[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

bool Array::is_vector(int64_t size, Dtype of) const {
  return rank == 1 && shape[0] == size && dtype == of && is_contiguous();
}

bool Array::is_square(int64_t size, Dtype of) const {
  return rank == 2 && shape[0] == size && shape[1] == size && dtype == of && is_contiguous();
}

bool read_state(PyObject* tensor, Array& array, View& view) {
  if (!read(tensor, array) || array.rank < 2) return false;
  view = {array.data, array.dtype, array.stride[0], array.stride[1], 1};
  if (array.rank == 3) view.pixel_stride = array.stride[2];
  if (array.rank != 4) return true;
  const auto [height, width] = std::pair(array.shape[2], array.shape[3]);
  view.pixel_stride = width == 1 ? array.stride[2] : array.stride[3];
  return width == 1 || height == 1 || array.stride[2] == width * array.stride[3];
}

static Owned checked(PyObject* object) {
  if (object == nullptr) throw py::error_already_set();
  return owned(object);
}

static void* address_of(const Owned& tensor) {
  return PyLong_AsVoidPtr(checked(PyObject_CallMethodNoArgs(tensor.ptr(), names.data_ptr)).ptr());
}

static Owned empty_like(PyObject* like, PyObject* format, void*& data) {
  PyObject* const arguments[] = {like, format};
  const Owned made = checked(PyObject_Vectorcall(torch.empty_like, arguments, 1, names.memory_format));
  data = address_of(made);
  return made;
}

Owned empty_like(const Array& like, void*& data) { return empty_like(like.tensor, torch.contiguous, data); }

Owned empty_state(const Array& like, View& view) {
  const bool last = like.rank == 4 && like.stride[1] == 1 && !like.is_contiguous();
  const int64_t channels = like.shape[1];
  int64_t pixels = 1;
  for (int i = 2; i < like.rank; ++i) pixels *= like.shape[i];
  view.dtype = like.dtype;
  view.sample_stride = channels * pixels;
  view.channel_stride = last ? 1 : pixels;
  view.pixel_stride = last ? channels : 1;
  return empty_like(like.tensor, last ? torch.channels_last : torch.contiguous, view.data);
}

Owned new_vector(int64_t size, Dtype dtype, void*& data) {
  const Owned length = checked(PyLong_FromLongLong(size));
  PyObject* const arguments[] = {length.ptr(), torch.dtypes[static_cast<int>(dtype)], torch.cpu};
  const Owned made = checked(PyObject_Vectorcall(torch.empty, arguments, 1, names.dtype_and_device));
  data = address_of(made);
  return made;
}

}  // namespace invflow
