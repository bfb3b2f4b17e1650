// Colours of video frames. Pointers are integers.
#include <pybind11/pybind11.h>

#include <string>

#include "fastgen.h"

namespace py = pybind11;

namespace {

// ((address, bytes of a row) of y, of u and v) and the rest of the frame.
fastgen::YuvFrame frame(const py::tuple& planes, int64_t y_row, int64_t uv_row, int width,
                        int height, double kr, double kb, bool full_range) {
  if (planes.size() != 3) throw std::invalid_argument("a frame has 3 planes");
  fastgen::YuvFrame f{};
  uint8_t** to[] = {&f.y, &f.u, &f.v};
  for (int i = 0; i < 3; ++i) *to[i] = reinterpret_cast<uint8_t*>(planes[i].cast<uintptr_t>());
  f.y_row = y_row, f.uv_row = uv_row;
  f.width = width, f.height = height;
  f.kr = kr, f.kb = kb;
  f.full_range = full_range;
  return f;
}

}  // namespace

void bind_color(py::module_& m) {
  m.def(
      "yuv420_to_rgb",
      [](const py::tuple& planes, int64_t y_row, int64_t uv_row, int width, int height, double kr,
         double kb, bool full_range, uintptr_t rgb, const std::string& isa) {
        const auto f = frame(planes, y_row, uv_row, width, height, kr, kb, full_range);
        py::gil_scoped_release release;
        fastgen::yuv420_to_rgb(f, reinterpret_cast<uint8_t*>(rgb), isa);
      },
      "Addresses of Y, U and V, bytes of their rows, width, height, matrix, address of (H,W,3) "
      "RGB, "
      "isa or ''.");
  m.def(
      "rgb_to_yuv420",
      [](const py::tuple& planes, int64_t y_row, int64_t uv_row, int width, int height, double kr,
         double kb, bool full_range, uintptr_t rgb, const std::string& isa) {
        const auto f = frame(planes, y_row, uv_row, width, height, kr, kb, full_range);
        py::gil_scoped_release release;
        fastgen::rgb_to_yuv420(reinterpret_cast<const uint8_t*>(rgb), f, isa);
      },
      "As yuv420_to_rgb, the other way.");
}
