// Fused operations without weights: gram_matrix, concat_features. Pointers are integers.
#include <pybind11/pybind11.h>

#include "fastgen.h"

namespace py = pybind11;

void bind_feature_ops(py::module_& m) { (void)m; }
