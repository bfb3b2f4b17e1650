// The fused operations of fastgen._cuda. Also compiled against the emulation in tests/.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "fastgen.h"

namespace py = pybind11;

namespace fastgen {
namespace {

#ifdef FASTGEN_EMULATE
std::string error_text(int error) { return std::to_string(error); }
#else
std::string error_text(int error) { return cuda_error_name(error); }
#endif

void check(int error, const char* what) {
  if (error != 0) throw std::runtime_error(std::string(what) + " failed: " + error_text(error));
}

void require(bool good, const std::string& what) {
  if (!good) throw std::invalid_argument(what);
}

// Bytes of a tensor stay far below 2^63 when its sides do.
void check_sizes(const char* what, std::initializer_list<int64_t> sizes) {
  constexpr int64_t kMaxElements = int64_t{1} << 56;
  int64_t elements = 1;
  for (const int64_t size : sizes) {
    require(size >= 1,
            std::string(what) + ": a size is " + std::to_string(size) + ", must be at least 1");
    require(size <= kMaxElements / elements, std::string(what) + ": the tensor is too large");
    elements *= size;
  }
}

const void* at(uintptr_t address) { return reinterpret_cast<const void*>(address); }
void* at_mutable(uintptr_t address) { return reinterpret_cast<void*>(address); }
const float* floats(uintptr_t address) { return reinterpret_cast<const float*>(address); }
float* floats_mutable(uintptr_t address) { return reinterpret_cast<float*>(address); }

CudaLimits limits(int multiprocessors, int shared_bytes) {
  CudaLimits result;
  result.multiprocessors = multiprocessors;
  result.shared_bytes = shared_bytes;
  return result;
}

CudaConv make_conv(int dtype, int inputs, int outputs, int kernel_h, int kernel_w,
                   int full_kernel_h, int full_kernel_w, int stride, int upsample, int padding,
                   int border, int phases, bool row_mode, float slope, float load_slope, float eps,
                   uintptr_t weights, uintptr_t bias, uintptr_t gamma, uintptr_t beta) {
  require(dtype == kFloat32 || dtype == kFloat16 || dtype == kBFloat16, "conv: unknown dtype");
  require(inputs >= 1 && outputs >= 1 && inputs <= 1 << 20 && outputs <= 1 << 20,
          "conv: the number of channels is outside 1..2^20");
  for (const int k : {kernel_h, kernel_w, full_kernel_h, full_kernel_w})
    require(k >= 1 && k <= 15, "conv: kernel size " + std::to_string(k) + " is outside 1..15");
  require(stride == 1 || stride == 2, "conv: stride must be 1 or 2");
  require(upsample == 1 || upsample == 2, "conv: upsample must be 1 or 2");
  require(padding >= 0 && padding <= 1 << 20, "conv: padding is outside 0..2^20");
  require(border >= 0 && border <= 2, "conv: unknown border");
  require(phases == 1 || (phases == 2 && upsample == 2 && stride == 1), "conv: unknown phases");
  require(weights != 0 && bias != 0, "conv: weights and bias are needed");
  CudaConv c;
  c.dtype = dtype;
  c.inputs = inputs;
  c.outputs = outputs;
  c.kernel_h = kernel_h;
  c.kernel_w = kernel_w;
  c.full_kernel_h = full_kernel_h;
  c.full_kernel_w = full_kernel_w;
  c.stride = stride;
  c.upsample = upsample;
  c.padding = padding;
  c.border = border;
  c.phases = phases;
  c.row_mode = row_mode;
  c.slope = slope;
  c.load_slope = load_slope;
  c.eps = eps;
  c.weights = at(weights);
  c.bias = floats(bias);
  c.gamma = floats(gamma);
  c.beta = floats(beta);
  return c;
}

py::tuple plan_conv(const CudaConv& conv, int64_t n, int64_t height, int64_t width,
                    int multiprocessors, int shared_bytes, int tile) {
  check_sizes("conv", {n, conv.inputs, height, width});
  const CudaConvPlan p =
      cuda_conv_plan(conv, n, height, width, limits(multiprocessors, shared_bytes), tile);
  return py::make_tuple(p.out_height, p.out_width, p.workspace_floats, p.tile, p.blocks_x,
                        p.blocks_y, p.shared_bytes);
}

void run_conv(const CudaConv& conv, uintptr_t x, int64_t n, int64_t height, int64_t width,
              bool channels_last, uintptr_t scale, uintptr_t shift, uintptr_t load_residual,
              uintptr_t residual, bool residual_broadcast, uintptr_t y, uintptr_t workspace,
              uintptr_t out_scale, uintptr_t out_shift, int multiprocessors, int shared_bytes,
              int tile, uintptr_t stream) {
  check_sizes("conv", {n, conv.inputs, height, width});
  require(x != 0 && y != 0, "conv: x and y are needed");
  require((scale == 0) == (shift == 0), "conv: scale and shift come together");
  require((out_scale == 0) == (out_shift == 0), "conv: scale and shift come together");
  require(out_scale == 0 || (workspace != 0 && conv.gamma && conv.beta),
          "conv: statistics need a workspace, gamma and beta");
  CudaConvCall call;
  call.x = at(x);
  call.n = n;
  call.height = height;
  call.width = width;
  call.channels_last = channels_last;
  call.scale = floats(scale);
  call.shift = floats(shift);
  call.load_residual = at(load_residual);
  call.residual = at(residual);
  call.residual_broadcast = residual_broadcast;
  call.y = at_mutable(y);
  call.workspace = floats_mutable(workspace);
  call.out_scale = floats_mutable(out_scale);
  call.out_shift = floats_mutable(out_shift);
  call.tile = tile;
  check(cuda_conv(conv, call, limits(multiprocessors, shared_bytes), at_mutable(stream)), "conv");
}

}  // namespace

void bind_cuda_ops(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def(
      "gram_matrix_workspace",
      [](int64_t n, int64_t c, int64_t pixels, bool channels_last, int dtype, int multiprocessors,
         int shared_bytes) {
        check_sizes("gram_matrix", {n, c, pixels});
        return cuda_gram_matrix_workspace(n, c, pixels, channels_last, dtype,
                                          limits(multiprocessors, shared_bytes));
      },
      "Floats of workspace that gram_matrix needs.", py::arg("n"), py::arg("c"), py::arg("pixels"),
      py::arg("channels_last"), py::arg("dtype"), py::arg("multiprocessors"),
      py::arg("shared_bytes"));
  m.def(
      "gram_matrix",
      [](uintptr_t x, uintptr_t out, uintptr_t workspace, int64_t n, int64_t c, int64_t pixels,
         bool channels_last, int dtype, int multiprocessors, int shared_bytes, uintptr_t stream) {
        check_sizes("gram_matrix", {n, c, pixels});
        check_sizes("gram_matrix", {n, c, c});
        require(x != 0 && out != 0, "gram_matrix: x and out are needed");
        const CudaLimits device = limits(multiprocessors, shared_bytes);
        require(workspace != 0 ||
                    cuda_gram_matrix_workspace(n, c, pixels, channels_last, dtype, device) == 0,
                "gram_matrix: the workspace is missing");
        check(cuda_gram_matrix(at(x), floats_mutable(out), floats_mutable(workspace), n, c, pixels,
                               channels_last, dtype, device, at_mutable(stream)),
              "gram_matrix");
      },
      py::arg("x"), py::arg("out"), py::arg("workspace"), py::arg("n"), py::arg("c"),
      py::arg("pixels"), py::arg("channels_last"), py::arg("dtype"), py::arg("multiprocessors"),
      py::arg("shared_bytes"), py::arg("stream"), release());
  m.def(
      "concat_features",
      [](uintptr_t content, uintptr_t style, uintptr_t out, int64_t n, int64_t content_channels,
         int64_t style_channels, int64_t pixels, int64_t style_n, int64_t style_pixels,
         bool channels_last, int element_bytes, uintptr_t stream) {
        check_sizes("concat_features", {n, content_channels, pixels});
        check_sizes("concat_features", {n, style_channels, pixels});
        require(content != 0 && style != 0 && out != 0, "concat_features: a tensor is missing");
        check(cuda_concat_features(at(content), at(style), at_mutable(out), n, content_channels,
                                   style_channels, pixels, style_n, style_pixels, channels_last,
                                   element_bytes, at_mutable(stream)),
              "concat_features");
      },
      py::arg("content"), py::arg("style"), py::arg("out"), py::arg("n"),
      py::arg("content_channels"), py::arg("style_channels"), py::arg("pixels"), py::arg("style_n"),
      py::arg("style_pixels"), py::arg("channels_last"), py::arg("element_bytes"),
      py::arg("stream"), release());

  m.attr("conv_tiles") = kCudaConvTiles;
  py::class_<CudaConv>(m, "Conv", "A packed convolution; the caller keeps its memory alive.")
      .def(py::init(&make_conv), py::kw_only(), py::arg("dtype"), py::arg("inputs"),
           py::arg("outputs"), py::arg("kernel_h"), py::arg("kernel_w"), py::arg("full_kernel_h"),
           py::arg("full_kernel_w"), py::arg("stride"), py::arg("upsample"), py::arg("padding"),
           py::arg("border"), py::arg("phases"), py::arg("row_mode"), py::arg("slope"),
           py::arg("load_slope"), py::arg("eps"), py::arg("weights"), py::arg("bias"),
           py::arg("gamma"), py::arg("beta"))
      .def("plan", &plan_conv,
           "(rows, columns, floats of workspace, tile, blocks in x, in y, bytes of shared memory)",
           py::arg("n"), py::arg("height"), py::arg("width"), py::arg("multiprocessors"),
           py::arg("shared_bytes"), py::arg("tile") = -1)
      .def("run", &run_conv, py::arg("x"), py::arg("n"), py::arg("height"), py::arg("width"),
           py::arg("channels_last"), py::arg("scale"), py::arg("shift"), py::arg("load_residual"),
           py::arg("residual"), py::arg("residual_broadcast"), py::arg("y"), py::arg("workspace"),
           py::arg("out_scale"), py::arg("out_shift"), py::arg("multiprocessors"),
           py::arg("shared_bytes"), py::arg("tile"), py::arg("stream"), release());
}

}  // namespace fastgen
