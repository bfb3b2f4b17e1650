// fastgen._cuda: device query, image kernels, fused operations. Imports on machines without a GPU
// or driver.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "fastgen.h"

namespace py = pybind11;

namespace fastgen {
void bind_cuda_ops(py::module_& m);  // each in bindings_cuda_*.cpp
void bind_cuda_network(py::module_& m);
void bind_cuda_dlpack(py::module_& m);
}  // namespace fastgen

namespace {

void check(int error, const char* what) {
  if (error != 0)
    throw std::runtime_error(std::string(what) + " failed: " + fastgen::cuda_error_name(error));
}

void check_sizes(int64_t n, int64_t height, int64_t width, int64_t rows, int64_t columns) {
  constexpr int64_t kMaxSide = int64_t{1} << 24, kMaxPixels = int64_t{1} << 36;
  for (int64_t size : {n, height, width, rows, columns})
    if (size < 1 || size > kMaxSide) throw std::invalid_argument("a size is outside 1..2^24");
  if (rows < height || columns < width)
    throw std::invalid_argument("the padded size is smaller than the image");
  if (rows * columns > kMaxPixels / n) throw std::invalid_argument("the batch is too large");
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA device query and kernels; pointers and streams are integers.";
  m.def(
      "device_count",
      [] {
        std::string error;
        const int count = fastgen::cuda_device_count(&error);
        return py::make_tuple(count, error.empty() ? py::object(py::none()) : py::str(error));
      },
      "(number of devices, None or the reason why there is none). Never raises.");
  m.def("device", [](int index) {
    const fastgen::CudaDevice d = fastgen::cuda_device(index);
    py::dict result;
    result["name"] = d.name;
    result["capability"] = py::make_tuple(d.major, d.minor);
    result["memory_bytes"] = d.memory_bytes;
    result["multiprocessors"] = d.multiprocessors;
    result["shared_bytes"] = d.shared_bytes;
    return result;
  });
  m.def("compiled_archs", &fastgen::cuda_compiled_archs);
  m.def("runtime_version", &fastgen::cuda_runtime_version);
  m.def(
      "image_load",
      [](uintptr_t photo, uintptr_t out, int64_t n, int64_t height, int64_t width, int64_t rows,
         int64_t columns, float low, float high, bool bgr, bool is_byte, uintptr_t stream) {
        check_sizes(n, height, width, rows, columns);
        check(fastgen::cuda_image_load(
                  reinterpret_cast<const void*>(photo), reinterpret_cast<float*>(out), n, height,
                  width, rows, columns, low, high, bgr, is_byte, reinterpret_cast<void*>(stream)),
              "image_load");
      },
      py::arg("photo"), py::arg("out"), py::arg("n"), py::arg("height"), py::arg("width"),
      py::arg("rows"), py::arg("columns"), py::arg("low"), py::arg("high"), py::arg("bgr"),
      py::arg("is_byte"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "image_store",
      [](uintptr_t y, uintptr_t photo, uintptr_t out, int64_t n, int64_t height, int64_t width,
         int64_t rows, int64_t columns, float low, float high, float strength, bool preserve_color,
         bool bgr, bool is_byte, uintptr_t stream) {
        check_sizes(n, height, width, rows, columns);
        check(fastgen::cuda_image_store(
                  reinterpret_cast<const float*>(y), reinterpret_cast<const void*>(photo),
                  reinterpret_cast<void*>(out), n, height, width, rows, columns, low, high,
                  strength, preserve_color, bgr, is_byte, reinterpret_cast<void*>(stream)),
              "image_store");
      },
      py::arg("y"), py::arg("photo"), py::arg("out"), py::arg("n"), py::arg("height"),
      py::arg("width"), py::arg("rows"), py::arg("columns"), py::arg("low"), py::arg("high"),
      py::arg("strength"), py::arg("preserve_color"), py::arg("bgr"), py::arg("is_byte"),
      py::arg("stream"), py::call_guard<py::gil_scoped_release>());
  fastgen::bind_cuda_ops(m);
  fastgen::bind_cuda_network(m);
  fastgen::bind_cuda_dlpack(m);
}
