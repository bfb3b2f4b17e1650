// The fused convolution on the caller's own tensors (conv_kernel.cuh).
#include "common.cuh"
#include "conv_plan.h"

namespace fastgen {
namespace gpu {
namespace {

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace
}  // namespace gpu

int cuda_conv(const CudaConv& c, const CudaConvCall& call, const CudaLimits& limits, void* stream) {
  gpu::ConvArgs a;
  const CudaConvPlan plan =
      gpu::plan_conv(c, call.n, call.height, call.width, limits, call.tile, &a);
  a.x = call.x;
  a.weights = c.weights;
  a.bias = c.bias;
  a.residual = call.residual;
  a.y = call.y;
  a.scale = call.scale;
  a.shift = call.shift;
  a.load_residual = call.load_residual;
  a.partial = call.out_scale ? call.workspace : nullptr;
  const int64_t pixels = call.height * call.width, out_pixels = plan.out_height * plan.out_width;
  a.x_image = pixels * c.inputs;
  a.x_pixel = call.channels_last ? c.inputs : 1;
  a.x_channel = call.channels_last ? 1 : pixels;
  a.y_image = out_pixels * c.outputs;
  a.y_pixel = call.channels_last ? c.outputs : 1;
  a.y_channel = call.channels_last ? 1 : out_pixels;
  a.residual_image = call.residual_broadcast ? 0 : a.y_image;
  a.residual_pixel = a.y_pixel;
  a.load_residual_image = a.x_image;
  a.load_residual_pixel = a.x_pixel;
  a.scale_image = c.inputs;
  a.x_tensor = a.y_tensor = -1;
  const int vector = c.dtype == kFloat32 ? 4 : 8;
  a.vector_x = call.channels_last && !c.row_mode && c.inputs % vector == 0 &&
               gpu::aligned(call.x) && gpu::aligned(call.load_residual) &&
               gpu::aligned(call.scale) && gpu::aligned(call.shift);
  a.vector_y = call.channels_last && c.outputs % vector == 0 && gpu::aligned(call.y) &&
               gpu::aligned(call.residual);

  const int error = gpu::launch_conv(c.dtype, plan, a, stream);
  if (error != 0 || !call.out_scale) return error;
  const int64_t tiles = plan.workspace_floats / (3 * call.n * c.outputs);
  return gpu::launch_statistics(a.partial, c.gamma, c.beta, call.out_scale, call.out_shift, call.n,
                                c.outputs, tiles, out_pixels, c.eps, stream);
}

}  // namespace fastgen
