// The tile configurations of one element type; included by one source file per type, so that they
// compile side by side.
#pragma once

#include "conv_kernel.cuh"
#include "conv_plan.h"

namespace fastgen {
namespace gpu {

template <class Tile, int kMinBlocks>
int launch_tile(const CudaConvPlan& plan, const ConvArgs& args, cudaStream_t stream) {
  auto kernel = conv_kernel<Tile, kMinBlocks>;
  if (const int error = allow_shared(kernel, plan.shared_bytes)) return error;
  FASTGEN_LAUNCH(kernel, dim3(plan.blocks_x, plan.blocks_y), dim3(Tile::kThreads),
                 plan.shared_bytes, stream, args);
  return launch_error();
}

// As kTileShapes: pixels, outputs, warps along both.
template <class T>
int launch_conv(const CudaConvPlan& plan, const ConvArgs& args, cudaStream_t stream) {
  switch (plan.tile) {
    case 0:
      return launch_tile<ConvTile<T, 128, 128, 2, 4>, sizeof(T) == 4 ? 1 : 2>(plan, args, stream);
    case 1:
      return launch_tile<ConvTile<T, 128, 64, 4, 2>, 2>(plan, args, stream);
    case 2:
      return launch_tile<ConvTile<T, 64, 64, 2, 2>, 4>(plan, args, stream);
    case 3:
      return launch_tile<ConvTile<T, 64, 32, 2, 2>, 4>(plan, args, stream);
    case 4:
      return launch_tile<ConvTile<T, 256, 32, 8, 1>, 2>(plan, args, stream);
    default:
      return launch_tile<ConvTile<T, 256, 8, 8, 1>, 2>(plan, args, stream);
  }
}

}  // namespace gpu
}  // namespace fastgen
