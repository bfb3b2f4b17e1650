// Fused operations without weights: gram_matrix, concat_features. Pointers are integers.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "bindings_strided.h"

namespace py = pybind11;

namespace {

using fastgen::Strided;

int64_t entry(const py::tuple& t, int i) {
  const long long value = PyLong_AsLongLong(PyTuple_GET_ITEM(t.ptr(), i));
  if (value == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    throw std::invalid_argument("a size or stride is no 64-bit integer");
  }
  return value;
}

// Strides in elements; True stands for those of a dense tensor in the order (n, h, w, c), False for
// (n, c, h, w).
Strided strided(uintptr_t data, const py::tuple& shape, const py::object& order, int dtype) {
  const bool dense = PyBool_Check(order.ptr());
  if (!dense && !PyTuple_Check(order.ptr()))
    throw std::invalid_argument("strides are a tuple or a bool");
  const py::tuple strides = dense ? shape : py::reinterpret_borrow<py::tuple>(order);
  if (shape.size() != 4 || strides.size() != 4)
    throw std::invalid_argument("a tensor has 4 sizes and 4 strides: (N,C,H,W)");
  Strided s{reinterpret_cast<const void*>(data),
            entry(shape, 0),
            entry(shape, 1),
            entry(shape, 2),
            entry(shape, 3),
            entry(strides, 0),
            entry(strides, 1),
            entry(strides, 2),
            entry(strides, 3),
            dtype};
  if (dense) fastgen::set_dense(&s, order.ptr() == Py_True);
  return s;
}

void check_out(uintptr_t out) {
  if (!out) throw std::invalid_argument("the result has no memory");
}

void gram_matrix(uintptr_t data, const py::tuple& shape, const py::object& strides, int dtype,
                 uintptr_t out, const std::string& isa) {
  const Strided x = strided(data, shape, strides, dtype);
  check_out(out);
  py::gil_scoped_release release;
  fastgen::gram_matrix(x, reinterpret_cast<float*>(out), isa);
}

void concat_features(uintptr_t a_data, const py::tuple& a_shape, const py::object& a_strides,
                     int a_dtype, uintptr_t b_data, const py::tuple& b_shape,
                     const py::object& b_strides, int b_dtype, uintptr_t out, bool last,
                     const std::string& isa) {
  const Strided a = strided(a_data, a_shape, a_strides, a_dtype);
  const Strided b = strided(b_data, b_shape, b_strides, b_dtype);
  check_out(out);
  py::gil_scoped_release release;
  fastgen::concat_features(a, b, reinterpret_cast<void*>(out), last, isa);
}

}  // namespace

void bind_feature_ops(py::module_& m) {
  m.def("array_address",
        [](const py::array& array) { return reinterpret_cast<uintptr_t>(array.data()); });
  m.def("gram_matrix", &gram_matrix,
        "(address, shape, strides, dtype, address of the result, isa or '').");
  m.def("concat_features", &concat_features,
        "(address, shape, strides, dtype) of content and style, address of the result, whether it "
        "is channels_last, isa or ''.");
  m.def(
      "element_offset",
      [](const py::tuple& shape, const py::object& strides, const py::tuple& index) {
        const Strided t = strided(1, shape, strides, 0);
        if (index.size() != 4) throw std::invalid_argument("an index has 4 entries");
        fastgen::check_strided(t, "the tensor");
        return fastgen::element_offset(t, entry(index, 0), entry(index, 1), entry(index, 2),
                                       entry(index, 3));
      },
      "Elements from the first to the one at (n, c, y, x).");
}
