// Whole frames of 4:2:0 YCbCr to RGB and back.
#include "color.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "../fastgen.h"
#include "isa.h"

namespace fastgen {
namespace {

constexpr int kMaxSide = 1 << 16;

int32_t fixed(double x, int bits) { return static_cast<int32_t>(std::lround(std::ldexp(x, bits))); }

void check(const YuvFrame& f, const void* rgb) {
  if (!f.y || !f.u || !f.v || !rgb) throw std::invalid_argument("a plane has no memory");
  if (f.width < 2 || f.height < 2 || f.width % 2 || f.height % 2 || f.width > kMaxSide ||
      f.height > kMaxSide)
    throw std::invalid_argument("4:2:0 frames here have even sides of 2 to 65536, not " +
                                std::to_string(f.width) + "x" + std::to_string(f.height));
  if (f.y_row < f.width || f.uv_row < f.width / 2)
    throw std::invalid_argument("a row of a plane is shorter than the frame");
  if (!(f.kr > 0 && f.kb > 0 && f.kr + f.kb < 1))
    throw std::invalid_argument("the matrix needs kr and kb above 0 with a sum below 1");
}

ColorKernels color_kernels(const std::string& isa) {
  const std::string name = isa_kernels(isa).name;
#ifdef FASTGEN_X86
  if (name != "scalar") return color_avx2();
#endif
  return color_scalar();
}

}  // namespace

void yuv420_to_rgb(const YuvFrame& f, uint8_t* rgb, const std::string& isa) {
  check(f, rgb);
  const ColorKernels kernels = color_kernels(isa);
  const double luma = f.full_range ? 1.0 : 255.0 / 219.0,
               chroma = f.full_range ? 1.0 : 255.0 / 224.0;
  const double kg = 1 - f.kr - f.kb;
  YuvToRgbArgs a{};
  a.width = f.width;
  a.low = f.full_range ? 0 : 16;
  a.gain = fixed(luma, 16);
  // Of eight times the chroma.
  a.rv = fixed(chroma * 2 * (1 - f.kr), 13);
  a.bu = fixed(chroma * 2 * (1 - f.kb), 13);
  a.gv = fixed(chroma * 2 * (1 - f.kr) * f.kr / kg, 13);
  a.gu = fixed(chroma * 2 * (1 - f.kb) * f.kb / kg, 13);
  std::vector<int16_t> line(f.width / 2 + 1 + 2 * static_cast<size_t>(f.width));
  std::vector<uint8_t> bytes(3 * static_cast<size_t>(f.width));
  a.line = line.data(), a.bytes = bytes.data();
  const int rows = f.height / 2;
  for (int y = 0; y < f.height; ++y) {
    const int64_t near = y / 2, far = std::clamp(y / 2 + (y % 2 ? 1 : -1), 0, rows - 1);
    a.y = f.y + y * f.y_row;
    a.u[0] = f.u + near * f.uv_row, a.u[1] = f.u + far * f.uv_row;
    a.v[0] = f.v + near * f.uv_row, a.v[1] = f.v + far * f.uv_row;
    a.rgb = rgb + static_cast<int64_t>(y) * f.width * 3;
    kernels.yuv_to_rgb(a);
  }
}

void rgb_to_yuv420(const uint8_t* rgb, const YuvFrame& f, const std::string& isa) {
  check(f, rgb);
  const ColorKernels kernels = color_kernels(isa);
  const double luma = f.full_range ? 1.0 : 219.0 / 255.0,
               chroma = f.full_range ? 1.0 : 224.0 / 255.0;
  const double kg = 1 - f.kr - f.kb;
  RgbToYuvArgs a{};
  a.width = f.width;
  a.low = f.full_range ? 0 : 16;
  a.yr = fixed(luma * f.kr, 16);
  a.yb = fixed(luma * f.kb, 16);
  a.yg = fixed(luma, 16) - a.yr - a.yb;  // grey stays grey, and white the largest luma
  const double cb = chroma / (2 * (1 - f.kb)), cr = chroma / (2 * (1 - f.kr));
  a.ur = fixed(-cb * f.kr, 13), a.ug = fixed(-cb * kg, 13), a.ub = -a.ur - a.ug;
  a.vg = fixed(-cr * kg, 13), a.vb = fixed(-cr * f.kb, 13), a.vr = -a.vg - a.vb;
  std::vector<int16_t> line(3 * (static_cast<size_t>(f.width) + 1));
  std::vector<uint8_t> bytes(6 * static_cast<size_t>(f.width));
  a.line = line.data(), a.bytes = bytes.data();
  for (int k = 0; k < f.height / 2; ++k) {
    const int64_t top = 2 * static_cast<int64_t>(k);
    for (int i = 0; i < 2; ++i) {
      a.rgb[i] = rgb + (top + i) * f.width * 3;
      a.y[i] = f.y + (top + i) * f.y_row;
    }
    a.u = f.u + k * f.uv_row;
    a.v = f.v + k * f.uv_row;
    kernels.rgb_to_yuv(a);
  }
}

}  // namespace fastgen
