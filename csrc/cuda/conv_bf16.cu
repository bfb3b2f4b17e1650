// The convolution kernels of bf16 tensors.
#include "conv_tiles.cuh"

namespace fastgen {
namespace gpu {

int launch_conv_bf16(const CudaConvPlan& plan, const ConvArgs& args, void* stream) {
  return launch_conv<bhalf_t>(plan, args, static_cast<cudaStream_t>(stream));
}

}  // namespace gpu
}  // namespace fastgen
