// Fused convolutions: packed weights as objects, tensors as integer pointers.
#include <pybind11/pybind11.h>

#include "fastgen.h"

namespace py = pybind11;

void bind_conv_ops(py::module_& m) { (void)m; }
