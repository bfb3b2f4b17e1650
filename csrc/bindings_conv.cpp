// Fused convolutions: packed weights as objects, tensors as integer addresses, sizes and strides.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>

#include "bindings_strided.h"

namespace py = pybind11;

using fastgen::PackedConv;
using fastgen::PackedConvSpec;
using fastgen::Strided;

namespace {

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::vector<float> floats(const FloatArray& array) {
  return std::vector<float>(array.data(), array.data() + array.size());
}

int64_t integer(PyObject* item) {
  const long long value = PyLong_AsLongLong(item);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return int64_t{value};
}

void four(PyObject* tuple, int64_t* a, int64_t* b, int64_t* c, int64_t* d) {
  // torch.Size and torch's strides are tuples, too.
  if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != 4)
    throw std::invalid_argument("a tensor must be (N,C,H,W)");
  int64_t* to[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) *to[i] = integer(PyTuple_GET_ITEM(tuple, i));
}

// (address, (n, c, h, w), strides in elements, dtype) of fastgen/ops/_array.py, or None. True
// in place of strides: dense in the order (n, h, w, c), False: (n, c, h, w).
Strided strided(const py::handle& o) {
  Strided s;
  if (o.is_none()) return s;
  if (!PyTuple_Check(o.ptr()) || PyTuple_GET_SIZE(o.ptr()) != 4)
    throw std::invalid_argument("a tensor is (address, shape, strides, dtype)");
  PyObject* t = o.ptr();
  s.data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(t, 0));
  if (PyErr_Occurred()) throw py::error_already_set();
  four(PyTuple_GET_ITEM(t, 1), &s.n, &s.c, &s.h, &s.w);
  PyObject* strides = PyTuple_GET_ITEM(t, 2);
  if (PyBool_Check(strides)) {
    fastgen::set_dense(&s, strides == Py_True);
  } else {
    four(strides, &s.stride_n, &s.stride_c, &s.stride_h, &s.stride_w);
  }
  s.dtype = static_cast<int>(integer(PyTuple_GET_ITEM(t, 3)));
  return s;
}

// The result at an address, dense in the order of the input, which must be given as a bool.
Strided result(const PackedConvSpec& spec, const Strided& x, PyObject* order, void* data) {
  if (!PyBool_Check(order)) throw std::invalid_argument("the order of the result is not known");
  Strided y;
  y.data = data;
  y.dtype = x.dtype;
  y.n = x.n;
  y.c = spec.outputs;
  const auto side = [&](int64_t size, int kernel) {
    const int64_t padded = std::min<int64_t>(size, int64_t{1} << 40) * spec.upsample;
    return (padded + 2 * spec.padding - kernel) / spec.stride + 1;
  };
  y.h = side(x.h, spec.kh);
  y.w = side(x.w, spec.kw);
  fastgen::set_dense(&y, order == Py_True);
  return y;
}

std::unique_ptr<PackedConv> make(const FloatArray& weight, const FloatArray& bias, int stride,
                                 int padding, bool reflect, int upsample, float slope, int dtype,
                                 float load_slope, const py::object& gamma, const py::object& beta,
                                 float eps, const std::string& isa) {
  if (weight.ndim() != 4) throw std::invalid_argument("a weight is (O,I,kh,kw)");
  for (int axis = 0; axis < 4; ++axis)
    if (weight.shape(axis) < 1 || weight.shape(axis) > 65536)
      throw std::invalid_argument("an axis of the weight is outside 1..65536");
  PackedConvSpec s;
  s.outputs = static_cast<int>(weight.shape(0));
  s.inputs = static_cast<int>(weight.shape(1));
  s.kh = static_cast<int>(weight.shape(2));
  s.kw = static_cast<int>(weight.shape(3));
  s.weight = floats(weight);
  s.bias = floats(bias);
  s.stride = stride;
  s.padding = padding;
  s.reflect = reflect;
  s.upsample = upsample;
  s.slope = slope;
  s.dtype = dtype;
  s.load_slope = load_slope;
  s.statistics = !gamma.is_none();
  if (s.statistics) {
    s.gamma = floats(gamma.cast<FloatArray>());
    s.beta = floats(beta.cast<FloatArray>());
    s.eps = eps;
  }
  py::gil_scoped_release release;
  return std::make_unique<PackedConv>(std::move(s), isa);
}

void run(const PackedConv& conv, const py::handle& x, const py::handle& y,
         const py::handle& residual, uintptr_t scale, uintptr_t shift, uintptr_t out_scale,
         uintptr_t out_shift) {
  const Strided from = strided(x), other = strided(residual);
  if (!other.data && !residual.is_none()) throw std::invalid_argument("the residual has no memory");
  const Strided to = PyLong_Check(y.ptr()) ? result(conv.spec(), from, PyTuple_GET_ITEM(x.ptr(), 2),
                                                    PyLong_AsVoidPtr(y.ptr()))
                                           : strided(y);
  py::gil_scoped_release release;
  conv.run(from, to, other, reinterpret_cast<const float*>(scale),
           reinterpret_cast<const float*>(shift), reinterpret_cast<float*>(out_scale),
           reinterpret_cast<float*>(out_shift));
}

}  // namespace

void bind_conv_ops(py::module_& m) {
  py::class_<PackedConv>(m, "PackedConv", "Prepacked weights of a fused convolution.")
      .def(py::init(&make), py::arg("weight"), py::arg("bias"), py::arg("stride") = 1,
           py::arg("padding") = 0, py::arg("reflect") = false, py::arg("upsample") = 1,
           py::arg("slope") = 1.0f, py::arg("dtype") = 0, py::arg("load_slope") = 1.0f,
           py::arg("gamma") = py::none(), py::arg("beta") = py::none(), py::arg("eps") = 0.0f,
           py::arg("isa") = "")
      .def("run", &run, py::arg("x"), py::arg("y"), py::arg("residual"), py::arg("scale") = 0,
           py::arg("shift") = 0, py::arg("out_scale") = 0, py::arg("out_shift") = 0,
           "Tensors are (address, shape, strides, dtype), scale and shift are addresses; a y that "
           "is "
           "an address is dense in the order of x.")
      .def_property_readonly("isa", &PackedConv::isa);
}
