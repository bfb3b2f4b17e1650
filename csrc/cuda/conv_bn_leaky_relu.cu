// Convolution with its epilogue, and the statistics of an instance norm (conv_kernel.cuh).
#include <stdexcept>

#include "common.cuh"
#include "conv_plan.h"

namespace fastgen {
namespace gpu {
namespace {

constexpr int kThreads = 128;

// Sum over the block, the same in every thread and run.
FASTGEN_DEVICE float block_sum(const Shared& s, float value) {
  const int thread = threadIdx.x;
  barrier();  // the previous sum has been read
  s.store(4 * thread, value);
  barrier();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half)
      s.store(4 * thread, s.load<float>(4 * thread) + s.load<float>(4 * (thread + half)));
    barrier();
  }
  return s.load<float>(0);
}

// One block per (image, channel): mean and variance from the tiles', then scale and shift.
__global__ void __launch_bounds__(kThreads)
    statistics_kernel(const float* partial, const float* gamma, const float* beta, float* scale,
                      float* shift, int outputs, int64_t tiles, float pixels, float eps) {
  const Shared s = shared_memory();
  const float* mine = partial + 3 * tiles * blockIdx.x;
  float sum = 0;
  for (int64_t t = threadIdx.x; t < tiles; t += kThreads)
    sum += load(mine + 3 * t) * load(mine + 3 * t + 1);
  const float mean = block_sum(s, sum) / pixels;
  float squares = 0;
  for (int64_t t = threadIdx.x; t < tiles; t += kThreads) {
    const float difference = load(mine + 3 * t + 1) - mean;
    squares += load(mine + 3 * t + 2) + load(mine + 3 * t) * difference * difference;
  }
  const float variance = block_sum(s, squares) / pixels;
  if (threadIdx.x != 0) return;
  const int channel = blockIdx.x % outputs;
  const float factor = load(gamma + channel) / sqrtf(variance + eps);
  store(scale + blockIdx.x, factor);
  store(shift + blockIdx.x, load(beta + channel) - mean * factor);
}

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
  const int vector = c.dtype == kFloat32 ? 4 : 8;
  a.vector_x = call.channels_last && !c.row_mode && c.inputs % vector == 0 &&
               gpu::aligned(call.x) && gpu::aligned(call.load_residual) &&
               gpu::aligned(call.scale) && gpu::aligned(call.shift);
  a.vector_y = call.channels_last && c.outputs % vector == 0 && gpu::aligned(call.y) &&
               gpu::aligned(call.residual);

  int error;
  switch (c.dtype) {
    case kFloat32:
      error = gpu::launch_conv_fp32(plan, a, stream);
      break;
    case kFloat16:
      error = gpu::launch_conv_fp16(plan, a, stream);
      break;
    case kBFloat16:
      error = gpu::launch_conv_bf16(plan, a, stream);
      break;
    default:
      throw std::invalid_argument("conv: dtype " + std::to_string(c.dtype) + " does not exist");
  }
  if (error != 0 || !call.out_scale) return error;
  const int64_t tiles = plan.workspace_floats / (3 * call.n * c.outputs);
  auto kernel = gpu::statistics_kernel;
  FASTGEN_LAUNCH(kernel, dim3(static_cast<unsigned>(call.n * c.outputs)), dim3(gpu::kThreads),
                 4 * gpu::kThreads, static_cast<cudaStream_t>(stream), a.partial, c.gamma, c.beta,
                 call.out_scale, call.out_shift, c.outputs, tiles, static_cast<float>(out_pixels),
                 c.eps);
  return gpu::launch_error();
}

}  // namespace fastgen
