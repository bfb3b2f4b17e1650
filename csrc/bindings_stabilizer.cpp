// The stabilizer of video: frames and paintings are contiguous (H,W,3) arrays of uint8.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <vector>

#include "cpu/stabilizer.h"

namespace py = pybind11;

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style>;

void check(const py::array& a, const char* name) {
  if (!py::isinstance<Bytes>(a) || !(a.flags() & py::array::c_style) || a.ndim() != 3 ||
      a.shape(2) != 3)
    throw std::invalid_argument(std::string(name) + " must be contiguous (H,W,3) of uint8");
}

// A part of a larger picture will do.
void check_rows(const py::array& a) {
  if (!py::isinstance<py::array_t<uint8_t>>(a) || a.ndim() != 3 || a.shape(2) != 3 ||
      a.strides(2) != 1 || (a.shape(1) > 1 && a.strides(1) != 3) ||
      (a.shape(0) > 1 && a.strides(0) < 3 * a.shape(1)))
    throw std::invalid_argument("the painting must be (H,W,3) of uint8 with contiguous rows");
}

}  // namespace

void bind_stabilizer(py::module_& m) {
  using fastgen::Stabilizer;
  py::class_<Stabilizer>(m, "Stabilizer")
      .def(py::init<int, const std::string&>(), py::arg("threads") = 0, py::arg("isa") = "")
      .def("reset", &Stabilizer::reset, py::call_guard<py::gil_scoped_release>())
      .def(
          "motion",
          [](Stabilizer& s, const py::array& frame) {
            check(frame, "the frame");
            const auto* data = static_cast<const uint8_t*>(frame.data());
            const int64_t height = frame.shape(0), width = frame.shape(1);
            py::gil_scoped_release release;
            return s.motion(data, width, height);
          },
          "Finds where the frame's parts were in the one before; False for the first one of a "
          "scene.")
      .def(
          "shift",
          [](Stabilizer& s, int period) {
            if (period < 1 || period > 64)
              throw std::invalid_argument("the period must be in 1..64");
            int x = 0, y = 0;
            {
              py::gil_scoped_release release;
              s.shift(period, &x, &y);
            }
            return py::make_tuple(x, y);
          },
          py::arg("period"),
          "(x, y) in 0..period-1: by how many whole pixels most of the picture has moved, but for "
          "multiples of the period.")
      .def(
          "blend",
          [](Stabilizer& s, const py::array& painting, double moving, double still, bool sharpen) {
            check_rows(painting);
            const int64_t height = painting.shape(0), width = painting.shape(1);
            py::array_t<uint8_t> out(std::vector<py::ssize_t>{height, width, 3});
            const int64_t row = height > 1 ? painting.strides(0) : 3 * width;
            const auto* data = static_cast<const uint8_t*>(painting.data());
            uint8_t* to = out.mutable_data();
            {
              py::gil_scoped_release release;
              s.blend(data, row, to, width, height, moving, still, sharpen);
            }
            return out;
          },
          py::arg("painting"), py::arg("moving"), py::arg("still"), py::arg("sharpen") = true,
          "The painting of the last frame, steadied; shares of the frame before in 0..1.")
      .def_property_readonly(
          "vectors",
          [](const Stabilizer& s) {
            int64_t columns = 0, rows = 0;
            std::vector<float> values;
            s.vectors(&columns, &rows, &values);
            py::array_t<float> out(std::vector<py::ssize_t>{rows, columns, 3});
            std::copy(values.begin(), values.end(), out.mutable_data());
            return out;
          },
          "(rows, columns, 3) for tiles of 16x16 pixels: where they were less where they are "
          "(x, y), and the mean difference of 0..255.");
}
