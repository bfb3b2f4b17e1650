// The launch of a convolution: geometry, tile configuration and shared memory. Host code only.
#pragma once

#include "../fastgen.h"
#include "conv_geometry.h"

namespace fastgen {
namespace gpu {

struct TileShape {
  int pixels, outputs, threads;
};
// In the order of the instantiations in conv_tiles.cuh.
constexpr TileShape kTileShapes[kCudaConvTiles] = {{128, 128, 256}, {128, 64, 256}, {64, 64, 128},
                                                   {64, 32, 128},   {256, 32, 256}, {256, 8, 256}};

// Throws std::invalid_argument when no tile fits. `args` gets everything but the pointers.
CudaConvPlan plan_conv(const CudaConv& conv, int64_t n, int64_t height, int64_t width,
                       const CudaLimits& limits, int tile, ConvArgs* args);

// Chooses the tile and its rectangle for geometry that is already in `args` and completes it. A
// tile and a width that are not -1 are forced.
void choose_tile(int64_t n, const CudaLimits& limits, int tile, int width_log, int dtype,
                 ConvArgs* args, CudaConvPlan* plan);

// One per element type, each in its own source file.
int launch_conv(int dtype, const CudaConvPlan& plan, const ConvArgs& args, void* stream);
int launch_conv_fp32(const CudaConvPlan& plan, const ConvArgs& args, void* stream);
int launch_conv_fp16(const CudaConvPlan& plan, const ConvArgs& args, void* stream);
int launch_conv_bf16(const CudaConvPlan& plan, const ConvArgs& args, void* stream);

// Joins the statistics of `tiles` tiles for each of n images and outputs: scale and shift of a
// norm.
int launch_statistics(const float* partial, const float* gamma, const float* beta, float* scale,
                      float* shift, int64_t n, int outputs, int64_t tiles, int64_t pixels,
                      float eps, void* stream);

}  // namespace gpu
}  // namespace fastgen
