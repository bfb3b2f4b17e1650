// The stabilizer's functions that are compiled once per instruction set, and their arguments. Like
// kernels.h it must not emit code.
#pragma once

#include <cstdint>

namespace fastgen {

constexpr int kFlowPatch = 8;  // pixels of the half-size picture
constexpr int kFlowSteps = 6;  // of Gauss-Newton, at most
constexpr int kWarpTile = 16;  // pixels of the picture: a patch of the half-size one
constexpr int kQuiet = 48;     // sum of 9 residuals that is noise
constexpr int kSlope = 128;    // beyond it: where nothing is blended any more

struct FlowVector {
  float x, y;    // where it was, less where it is
  float error;   // mean absolute difference of the patch, of 255
  float weight;  // how well its texture tells where it is, above 0
};

// One patch of a level of the pyramids. Vectors are relative to the patch.
struct FlowArgs {
  const uint8_t *now, *before;  // at the patch
  int64_t row;
  int left, right, top, bottom;  // where the patch may be in `before`, relative to it
  int candidates;
  FlowVector candidate[8];
};

struct StabilizerKernels {
  void (*half_rgb)(const uint8_t* a, const uint8_t* b, int width, uint8_t* out);
  void (*half_gray)(const uint8_t* a, const uint8_t* b, int width, uint8_t* out);
  void (*search)(const FlowArgs& f, FlowVector* result);
  void (*residual)(const FlowArgs& f, FlowVector at, uint8_t* out, int64_t out_row);
  void (*warp)(const uint8_t* from, int64_t row, const int16_t* cx, const int16_t* cy, uint8_t* out,
               int64_t out_row);
  void (*weights)(const uint8_t* const* rows, const uint8_t* most, int count, uint8_t* out);
  void (*blend)(const uint8_t* now, const uint8_t* warped, const uint8_t* weight, int count,
                uint8_t* out);
  void (*differences)(const uint8_t* now, const uint8_t* warped, const uint8_t* weight, int count,
                      int least, int64_t* squares, int64_t* values);
  void (*sharpen)(const uint8_t* above, const uint8_t* x, const uint8_t* below, int count, int gain,
                  uint8_t* out);
  double (*laplacian)(const uint8_t* above, const uint8_t* x, const uint8_t* below, int count);
};

const StabilizerKernels* stabilizer_scalar();
#ifdef FASTGEN_X86
const StabilizerKernels* stabilizer_avx2();
const StabilizerKernels* stabilizer_avx512();
#endif

}  // namespace fastgen
