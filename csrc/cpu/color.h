// Rows of 4:2:0 frames to RGB bytes and back, once for each instruction set (color.inl).
#pragma once

#include <cstdint>

namespace fastgen {

// Factors have 16 bits of fraction, those of chroma 13.
struct YuvToRgbArgs {
  const uint8_t* y;
  const uint8_t *u[2], *v[2];  // the nearer and the farther row of chroma
  int width;                   // even
  int low, gain, rv, gu, gv, bu;
  int16_t* line;   // room for width/2 + 1 + 2*width
  uint8_t* bytes;  // room for 3*width
  uint8_t* rgb;
};

// Two rows of a frame.
struct RgbToYuvArgs {
  const uint8_t* rgb[2];
  int width;  // even
  int low, yr, yg, yb, ur, ug, ub, vr, vg, vb;
  int16_t* line;   // room for 3*(width + 1)
  uint8_t* bytes;  // room for 6*width
  uint8_t *y[2], *u, *v;
};

struct ColorKernels {
  void (*yuv_to_rgb)(const YuvToRgbArgs&);
  void (*rgb_to_yuv)(const RgbToYuvArgs&);
};

ColorKernels color_scalar();
#ifdef FASTGEN_X86
ColorKernels color_avx2();
#endif

}  // namespace fastgen
